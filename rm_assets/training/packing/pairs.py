"""Pairs in memory: token sequences in flat arrays, and for each pair the numbers of its two sequences."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rm_assets.data.tables import schemas

KEYS = ("source", "line", "pair_id", "prompt_key")
KEYS_SCHEMA = pa.schema([schemas.PADDED.field(name) for name in KEYS])
SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Sequences:
    """Token sequences laid end to end: sequence i is ids[offsets[i] : offsets[i + 1]].

    For [7, 8] and [9]: ids [7, 8, 9], offsets [0, 2, 3].
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of tokens of each of these sequences."""
        lengths: NDArray[np.int64] = self.offsets[numbers + 1] - self.offsets[numbers]
        return lengths

    def __getitem__(self, number: int) -> NDArray[np.int32]:
        return self.ids[self.offsets[number] : self.offsets[number + 1]]


@dataclass(frozen=True)
class Pairs:
    """The pairs of a split. Pair i compares the sequences with the numbers chosen[i] and rejected[i], int64 [pairs].

    `ranking` int64 [pairs], non-decreasing, is the number of each pair's ranking. `prefix` int32 [rankings] is the
    number of tokens at the start that all sequences of a ranking share, at most the shortest length - 1, so that each
    sequence has a token of its own. `keys` is a table of KEYS, `margin` float32 [pairs].
    """

    keys: pa.Table
    sequences: Sequences
    chosen: NDArray[np.int64]
    rejected: NDArray[np.int64]
    ranking: NDArray[np.int64]
    prefix: NDArray[np.int32]
    margin: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.margin)

    def pair_ids(self, rows: NDArray[np.int64]) -> list[str]:
        """The `pair_id` of each of these pairs."""
        return list(self.keys.column("pair_id").take(pa.array(rows)).to_pylist())

    def lengths(self, side: str) -> NDArray[np.int64]:
        """The number of tokens of one side, "chosen" or "rejected", of every pair."""
        return self.sequences.lengths_of(self.chosen if side == "chosen" else self.rejected)


def common_prefix(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    """The length of the longest common prefix: 2 for [7, 8, 9] and [7, 8, 5, 9]."""
    size = min(len(first), len(second))
    differs = first[:size] != second[:size]
    place = int(differs.argmax()) if size else 0
    return place if size and differs[place] else size
