"""From Parquet to micro-batches: pairs without their padding, and the order in which they are trained on.

Everything here is deterministic: the order is a function of (seed, epoch) alone, so that the number of
processes, the size of a micro-batch and a restart change nothing about which pairs form a step.

Letters: B pairs of a micro-batch, T its longest sequence in tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from rm_assets.data import records
from rm_assets.training.job import TrainingError

KEYS = ("source", "line", "pair_id", "prompt_key")
SIDES = ("chosen", "rejected")
_COLUMNS = [*KEYS, *(f"{side}_{what}" for side in SIDES for what in ("input_ids", "length")), "margin"]
_ROWS_PER_READ = 4096  # bounds the padded ids held at once


@dataclass(frozen=True)
class Sequences:
    """Token sequences laid end to end: sequence i is ids[offsets[i] : offsets[i + 1]].

    For [7, 8] and [9]: ids [7, 8, 9], offsets [0, 2, 3].
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of some sequences."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]


@dataclass(frozen=True)
class Pairs:
    """A split, in memory proportional to its tokens: `keys` is a table of KEYS, `margin` float32 [pairs]."""

    keys: pa.Table
    chosen: Sequences
    rejected: Sequences
    margin: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.margin)

    def pair_ids(self, rows: NDArray[np.int64]) -> list[str]:
        """The pair_id of each row."""
        return list(self.keys.column("pair_id").take(pa.array(rows)).to_pylist())


@dataclass(frozen=True)
class Batch:
    """A micro-batch: int64 ids [2B, T], the chosen sides first; int64 lengths [2B]; float32 margin [B]."""

    ids: Tensor
    lengths: Tensor
    margin: Tensor


def read_pairs(paths: Sequence[str]) -> Pairs:
    """The pairs of Parquet files with the schema `records.PADDED`, in their order, without padding.

    Padding is found by `chosen_length` and `rejected_length`, never by the pad id, which may be a real token
    elsewhere. Raises TrainingError for a missing column, or a length that its row does not have.
    """
    parts = [part for path in paths for part in _parts(path)]
    if not parts:
        schema = pa.schema([records.PADDED.field(name) for name in KEYS])
        nothing = Sequences(np.empty(0, np.int32), np.zeros(1, np.int64))
        return Pairs(schema.empty_table(), nothing, nothing, np.empty(0, np.float32))
    return Pairs(
        pa.concat_tables([part.keys for part in parts]),
        _joined([part.chosen for part in parts]),
        _joined([part.rejected for part in parts]),
        np.concatenate([part.margin for part in parts]),
    )


def _parts(path: str) -> Iterator[Pairs]:
    with pq.ParquetFile(path) as file:
        missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise TrainingError(f"{path!r} has no column {missing[0]!r}: give files of padded_pairs")
        for batch in file.iter_batches(_ROWS_PER_READ, columns=_COLUMNS):
            if batch.num_rows:
                chosen, rejected = (_unpadded(batch, side, path) for side in SIDES)
                keys = pa.Table.from_batches([batch.select(list(KEYS))])
                yield Pairs(keys, chosen, rejected, batch.column("margin").to_numpy(zero_copy_only=False))


def _unpadded(batch: pa.RecordBatch, side: str, path: str) -> Sequences:
    padded = batch.column(f"{side}_input_ids")
    widths = padded.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    lengths = batch.column(f"{side}_length").to_numpy(zero_copy_only=False).astype(np.int64)
    wrong = np.flatnonzero((lengths < 1) | (lengths > widths))
    if wrong.size:
        row = int(wrong[0])
        raise TrainingError(
            f"{side}_length is {int(lengths[row])!r} in a row of {int(widths[row])} ids, "
            f"pair {batch.column('pair_id')[row].as_py()!r} of {path!r}: make padded_pairs again"
        )
    position = np.arange(widths.sum()) - np.repeat(np.cumsum(widths) - widths, widths)
    ids = padded.flatten().to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return Sequences(ids[position < np.repeat(lengths, widths)], _offsets(lengths))


def _joined(parts: list[Sequences]) -> Sequences:
    lengths = np.concatenate([part.lengths for part in parts])
    return Sequences(np.concatenate([part.ids for part in parts]), _offsets(lengths))


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def epoch_order(seed: int, epoch: int, num_pairs: int) -> NDArray[np.int64]:
    """The order of an epoch: a permutation of all rows, a pure function of its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(num_pairs)


def split_into(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """The rows in runs of `size`, the last one smaller where they do not divide."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def by_length(pairs: Pairs, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows sorted by their pair's longer side, longest first, so that memory peaks at the start.

    Within a step this is exact: a sum of gradients has no order.
    """
    longest = np.maximum(pairs.chosen.lengths_of(rows), pairs.rejected.lengths_of(rows))
    return rows[np.argsort(-longest, kind="stable")]


def collate(pairs: Pairs, rows: NDArray[np.int64], device: torch.device) -> Batch:
    """The rows as one right-padded micro-batch, no wider than its longest sequence."""
    sequences = [side[row] for side in (pairs.chosen, pairs.rejected) for row in rows]
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    ids = np.zeros((len(sequences), lengths.max()), np.int64)  # masked by length, so any id may fill the rest
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
    margin = torch.from_numpy(pairs.margin[rows])
    return Batch(torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device), margin.to(device))
