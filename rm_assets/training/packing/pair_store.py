"""The pairs of a job as flat arrays on disk, decoded once from the snapshot's Parquet and memory-mapped.

A store is a directory with a folder for each split and `manifest.json`, written last; it is written beside and
renamed. Pairs of one ranking (adjacent, with equal source, line and prompt) share its distinct sequences: four
replies that were compared two by two are six pairs and four sequences.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rm_assets.data.storage.parquet import open_parquet
from rm_assets.data.storage.snapshots import SnapshotError
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.training.jobs.training_job import TrainingError

KEYS = ("source", "line", "pair_id", "prompt_key")
SIDES = ("chosen", "rejected")
MANIFEST = "manifest.json"
VERSION = 1
_COLUMNS = [*KEYS, *(f"{side}_{what}" for side in SIDES for what in ("input_ids", "length")), "margin"]
KEYS_SCHEMA = pa.schema([schemas.PADDED.field(name) for name in KEYS])
_KEYS_FILE = "keys.arrow"
_ROWS_PER_READ = 256  # bounds the padded ids held at once: 64 MiB where sequences have 32 thousand tokens
_BYTES_PER_READ = 2**20
_ARRAYS: dict[str, Any] = {
    "ids": np.int32,
    "offsets": np.int64,
    "chosen": np.int64,
    "rejected": np.int64,
    "ranking": np.int64,
    "prefix": np.int32,
    "margin": np.float32,
}


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
        """Tokens of some sequences."""
        lengths: NDArray[np.int64] = self.offsets[numbers + 1] - self.offsets[numbers]
        return lengths

    def __getitem__(self, number: int) -> NDArray[np.int32]:
        return self.ids[self.offsets[number] : self.offsets[number + 1]]


@dataclass(frozen=True)
class Pairs:
    """A split. Row i is a pair of two `sequences`, by number: chosen[i] and rejected[i], int64 [pairs].

    `ranking` int64 [pairs], never falling, numbers the ranking of each pair; `prefix` int32 [rankings] is how many
    first tokens all sequences of a ranking share, at most the shortest length - 1, so that each has a token of its
    own. `keys` is a table of KEYS, `margin` float32 [pairs].
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
        """The pair_id of each row."""
        return list(self.keys.column("pair_id").take(pa.array(rows)).to_pylist())

    def lengths(self, side: str) -> NDArray[np.int64]:
        """Tokens of one side of every pair, "chosen" or "rejected"."""
        return self.sequences.lengths_of(self.chosen if side == "chosen" else self.rejected)


def open_store(
    directory: Path, snapshot: str, splits: Mapping[str, Sequence[str]], sha256: Mapping[str, str] | None = None
) -> dict[str, Pairs]:
    """The pairs of every split, memory-mapped from a store in `directory`, which is made where there is none.

    The Parquet files of a split have the schema `schemas.PADDED`. Padding is found by `chosen_length` and
    `rejected_length`, never by the pad id, which may be a real token elsewhere. `sha256` has the hashes of the files,
    by path. The store's name says which snapshot and splits it was made of; one that is damaged is made anew. Memory:
    one read of Parquet rows at a time. Raises TrainingError for a file that is not as it was written, a missing
    column, or a length that its row does not have.
    """
    known = sha256 or {}
    path = directory / _store_name(snapshot, splits, known)
    if not _is_sound(path):
        try:
            _write_store(path, splits, known)
        except SnapshotError as error:
            raise TrainingError(str(error)) from None
    return {name: _open_split(path / name) for name in splits}


def _store_name(snapshot: str, splits: Mapping[str, Sequence[str]], sha256: Mapping[str, str]) -> str:
    files = {
        split: [(Path(path).name, Path(path).stat().st_size, sha256.get(path)) for path in paths]
        for split, paths in splits.items()
    }
    digest = hashlib.sha256(json.dumps([VERSION, snapshot, files], sort_keys=True).encode()).hexdigest()
    return f"pairs-{digest[:32]}"


def _is_sound(path: Path) -> bool:
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        return all(_sha256(path / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_store(path: Path, splits: Mapping[str, Sequence[str]], sha256: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        for name, paths in splits.items():
            (beside / name).mkdir(parents=True)
            _write_split(beside / name, paths, sha256)
        files = {file.relative_to(beside).as_posix(): _sha256(file) for file in beside.rglob("*") if file.is_file()}
        (beside / MANIFEST).write_text(json.dumps({"files": files}, indent=2) + "\n")
        if path.exists():
            shutil.rmtree(path)
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _open_split(path: Path) -> Pairs:
    arrays = {name: _mapped(path / f"{name}.npy") for name in _ARRAYS}
    keys = pa.ipc.open_file(pa.memory_map(str(path / _KEYS_FILE))).read_all()
    sequences = Sequences(arrays.pop("ids"), arrays.pop("offsets"))
    return Pairs(keys=keys, sequences=sequences, **arrays)


def _mapped(path: Path) -> NDArray[Any]:
    # np.asarray: the plain view of a memmap, whose slices cost a third of a memmap's
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


# --- decoding ------------------------------------------------------------------------------------------------


def _write_split(directory: Path, paths: Sequence[str], sha256: Mapping[str, str]) -> None:
    columns = {name: _Column.create(directory / f"{name}.npy", dtype) for name, dtype in _ARRAYS.items()}
    columns["offsets"].append([0])
    decoder = _Decoder()
    with pa.OSFile(str(directory / _KEYS_FILE), "wb") as sink, pa.ipc.new_file(sink, KEYS_SCHEMA) as keys:
        for path in paths:
            for batch in _batches(path, sha256.get(path, "")):
                keys.write_batch(batch.select(list(KEYS)))
                columns["margin"].append(batch.column("margin").to_numpy(zero_copy_only=False))
                for name, values in decoder.decode(batch, path).items():
                    columns[name].append(values)
    columns["prefix"].append(decoder.last_prefix())
    for column in columns.values():
        column.close()


def _batches(path: str, sha256: str) -> Iterator[pa.RecordBatch]:
    with open_parquet(Path(path), sha256=sha256, asset=Stage.PADDED, buffer_size=_BYTES_PER_READ) as file:
        missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise TrainingError(f"{path!r} has no column {missing[0]!r}: give files of padded_pairs")
        for group in range(file.num_row_groups):  # one after the other: read at once, all of them stay in memory
            batches = file.iter_batches(_ROWS_PER_READ, row_groups=[group], columns=_COLUMNS, use_threads=False)
            yield from (batch for batch in batches if batch.num_rows)


@dataclass
class _Column:
    """A one-dimensional .npy file that grows; its header has room for the length that it ends with."""

    file: BinaryIO
    dtype: Any
    size: int = 0

    @classmethod
    def create(cls, path: Path, dtype: Any) -> "_Column":
        column = cls(path.open("wb"), np.dtype(dtype))
        column._write_header()
        return column

    def append(self, values: Any) -> None:
        array = np.ascontiguousarray(values, self.dtype)
        self.file.write(array.tobytes())
        self.size += len(array)

    def close(self) -> None:
        end = self.file.tell()
        self.file.seek(0)
        self._write_header()
        assert end - self.file.tell() == self.size * self.dtype.itemsize, "the header of a .npy file has grown"
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def _write_header(self) -> None:
        description = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": description, "fortran_order": False, "shape": (self.size,)}
        np.lib.format.write_array_header_1_0(self.file, header)


@dataclass
class _Decoder:
    """From batches of rows to the arrays of a split; it keeps the ranking that the next row may belong to."""

    key: tuple[Any, ...] = ()
    numbers: dict[bytes, int] = field(default_factory=dict)  # the ranking's distinct sequences
    first: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    prefix: int = 0
    num_rankings: int = 0
    num_sequences: int = 0
    num_ids: int = 0

    def decode(self, batch: pa.RecordBatch, path: str) -> dict[str, Any]:
        """What a batch of rows adds to each array but the margins; a ranking's prefix follows when it is complete."""
        found: dict[str, list[Any]] = {name: [] for name in _ARRAYS if name != "margin"}
        sides = [_unpadded(batch, side, path) for side in SIDES]
        keys = zip(*(batch.column(name).to_pylist() for name in ("source", "line", "prompt_key")), strict=True)
        for row, key in enumerate(keys):
            if key != self.key:
                found["prefix"] += self.last_prefix()
                self.key, self.numbers, self.num_rankings = key, {}, self.num_rankings + 1
            for side, sequences in zip(SIDES, sides, strict=True):
                found[side].append(self._number(sequences[row], found))
            found["ranking"].append(self.num_rankings - 1)
        return {**found, "ids": np.concatenate(found["ids"]) if found["ids"] else []}

    def last_prefix(self) -> list[int]:
        """The prefix of the ranking that is complete now, if there is one."""
        return [self.prefix] if self.num_rankings else []

    def _number(self, ids: NDArray[np.int32], found: dict[str, list[Any]]) -> int:
        number = self.numbers.setdefault(ids.tobytes(), self.num_sequences)
        if number == self.num_sequences:
            if len(self.numbers) == 1:
                self.first, self.prefix = ids, len(ids) - 1
            self.prefix = min(self.prefix, len(ids) - 1, common_prefix(self.first, ids))
            self.num_sequences, self.num_ids = self.num_sequences + 1, self.num_ids + len(ids)
            found["ids"].append(ids)
            found["offsets"].append(self.num_ids)
        return number


def common_prefix(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    """How many ids two sequences begin with in common: 2 for [7, 8, 9] and [7, 8, 5, 9]."""
    size = min(len(first), len(second))
    differs = first[:size] != second[:size]
    place = int(differs.argmax()) if size else 0
    return place if size and differs[place] else size


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
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return Sequences(ids[position < np.repeat(lengths, widths)], offsets)
