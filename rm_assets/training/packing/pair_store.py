"""The pairs of a job as flat arrays on disk, decoded once from the snapshot's Parquet and memory-mapped.

A store is a directory with a folder of arrays for each split and `manifest.json`, written last; it is written to a
temporary directory and renamed. Pairs of one ranking (adjacent, with equal source, line and prompt) share its distinct
sequences: four replies that were compared two by two are six pairs and four sequences.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rm_assets.data.storage.fingerprint import file_sha256
from rm_assets.data.storage.parquet import open_parquet
from rm_assets.data.storage.snapshots import SnapshotError
from rm_assets.data.tables.schemas import Stage
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.packing.pairs import KEYS, KEYS_SCHEMA, SIDES, Pairs, Sequences, common_prefix

MANIFEST = "manifest.json"
VERSION = 2
"""Version of the files' format. It is part of a store's name, so a store of another version is written again."""
_COLUMNS = [*KEYS, *(f"{side}_{what}" for side in SIDES for what in ("input_ids", "length")), "margin"]
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
"""Files of a split, each with the raw bytes of one array."""


def open_store(
    directory: Path, snapshot: str, splits: Mapping[str, Sequence[str]], sha256: Mapping[str, str] | None = None
) -> dict[str, Pairs]:
    """The pairs of every split, memory-mapped from a store in `directory`, which is written if there is none.

    The Parquet files of a split have the schema `schemas.PADDED`, and `sha256` their hashes by path. Padding is found
    by `chosen_length` and `rejected_length`, never by the pad id, which may be a real token elsewhere. The store's name
    is a hash of the snapshot and the splits; a damaged store is written again. Memory: one read of Parquet rows at a
    time. Raises TrainingError for a file that has changed, a missing column, or a length that exceeds its row.
    """
    known = sha256 or {}
    path = directory / _store_name(snapshot, splits, known)
    if not _is_intact(path):
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


def _is_intact(path: Path) -> bool:
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        return all(file_sha256(path / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _write_store(path: Path, splits: Mapping[str, Sequence[str]], sha256: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        for name, paths in splits.items():
            (temporary / name).mkdir(parents=True)
            _write_split(temporary / name, paths, sha256)
        files = {
            file.relative_to(temporary).as_posix(): file_sha256(file) for file in temporary.rglob("*") if file.is_file()
        }
        (temporary / MANIFEST).write_text(json.dumps({"files": files}, indent=2) + "\n")
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open_split(path: Path) -> Pairs:
    arrays = {name: _mapped(path / name, dtype) for name, dtype in _ARRAYS.items()}
    keys = pa.ipc.open_file(pa.memory_map(str(path / _KEYS_FILE))).read_all()
    sequences = Sequences(arrays.pop("ids"), arrays.pop("offsets"))
    return Pairs(keys=keys, sequences=sequences, **arrays)


def _mapped(path: Path, dtype: Any) -> NDArray[Any]:
    if not path.stat().st_size:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    # np.asarray: the plain view of a memmap, whose slices cost a third of a memmap's
    return np.asarray(np.memmap(path, dtype, mode="r"))


# --- decoding ------------------------------------------------------------------------------------------------


def _write_split(directory: Path, paths: Sequence[str], sha256: Mapping[str, str]) -> None:
    decoder = _Decoder()
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((directory / name).open("wb")) for name in _ARRAYS}

        def append(name: str, values: Any) -> None:
            files[name].write(np.ascontiguousarray(values, _ARRAYS[name]).tobytes())

        sink = stack.enter_context(pa.OSFile(str(directory / _KEYS_FILE), "wb"))
        keys = stack.enter_context(pa.ipc.new_file(sink, KEYS_SCHEMA))
        append("offsets", [0])
        for path in paths:
            for batch in _batches(path, sha256.get(path, "")):
                keys.write_batch(batch.select(list(KEYS)))
                append("margin", batch.column("margin").to_numpy(zero_copy_only=False))
                for name, values in decoder.decode(batch, path).items():
                    append(name, values)
        append("prefix", decoder.last_prefix())
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())


def _batches(path: str, sha256: str) -> Iterator[pa.RecordBatch]:
    with open_parquet(Path(path), sha256=sha256, asset=Stage.PADDED, buffer_size=_BYTES_PER_READ) as file:
        missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise TrainingError(f"{path!r} has no column {missing[0]!r}: give files of padded_pairs")
        for group in range(file.num_row_groups):  # one at a time: read together, all of them stay in memory
            batches = file.iter_batches(_ROWS_PER_READ, row_groups=[group], columns=_COLUMNS, use_threads=False)
            yield from (batch for batch in batches if batch.num_rows)


@dataclass
class _Decoder:
    """Turns batches of rows into the arrays of a split; remembers the ranking that the next row may belong to."""

    key: tuple[Any, ...] = ()
    numbers: dict[bytes, int] = field(default_factory=dict)  # the ranking's distinct sequences
    first: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    prefix: int = 0
    num_rankings: int = 0
    num_sequences: int = 0
    num_ids: int = 0

    def decode(self, batch: pa.RecordBatch, path: str) -> dict[str, Any]:
        """The values that a batch adds to each array except `margin`; a ranking's prefix when it is complete."""
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
        """The prefix of the ranking just completed, if there is one."""
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


def _unpadded(batch: pa.RecordBatch, side: str, path: str) -> Sequences:
    padded = batch.column(f"{side}_input_ids")
    widths = padded.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    lengths = batch.column(f"{side}_length").to_numpy(zero_copy_only=False).astype(np.int64)
    wrong = np.flatnonzero((lengths < 1) | (lengths > widths))
    if wrong.size:
        row = int(wrong[0])
        raise TrainingError(
            f"{side}_length is {int(lengths[row])!r} in a row of {int(widths[row])} ids, "
            f"pair {batch.column('pair_id')[row].as_py()!r} of {path!r}: materialize padded_pairs again"
        )
    position = np.arange(widths.sum()) - np.repeat(np.cumsum(widths) - widths, widths)
    ids = padded.flatten().to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return Sequences(ids[position < np.repeat(lengths, widths)], offsets)
