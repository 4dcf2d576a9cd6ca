"""Writes tables as Parquet and reads them back: encodings, compression, row groups and verification.

These choices were measured on token ids, texts and hashes:
- zstd at level 1 for everything
- PLAIN for token ids: with zstd, as small as a dictionary and BYTE_STREAM_SPLIT, which DuckDB before 2.0, Spark 3.5 and
  pyarrow 15 cannot read for integers
- dictionaries only for columns with few values; by default, Parquet builds one for every column, and discards it again
  for distinct texts
- pages as large as a row group, because whole groups are read: 7 % faster and smaller

All our files are opened with `open_parquet`, which detects any change of the data. A file of a snapshot must have the
sha256 in its manifest. Reading a few flat columns of a large file, such as the keys of all pairs, would take many times
longer if the rest were hashed too: there, only the footer's hash is checked, and Arrow verifies the checksum of each
page that it reads. Files outside snapshots have these page checksums, or a hash in a job's file.
"""

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rm_assets.data.storage.files import is_remote, read_file
from rm_assets.data.storage.fingerprint import file_sha256
from rm_assets.data.storage.ownership import MANIFEST
from rm_assets.data.storage.snapshots import REJECTS, Manifest, ShardFile, SnapshotError
from rm_assets.data.storage.writing import create_file

ROW_GROUP_BYTES = 8 * 2**20
"""Target size of a row group, in bytes of its rows' text; every stage writes one row group for each that it reads."""
_BATCH_IDS = 2**16
"""Token ids written between two checks whether a page is full; texts keep Arrow's default of 1,024."""
_MANY_ROWS = 10_000
_FEW_BYTES = 2**18
"""Files up to this size are read with one call, which takes half the time of one per column."""
_FOOTER_BYTES = 2**16
"""How much of a file's end is read first; nearly every footer fits."""
_MOMENT_SECONDS = 0.3
_FEW_VALUES = {"source", "role", "name", "format", "subset", "tools", "stage", "reason", "detail", "split"}


def parquet_writer(stream: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet writer into an open binary file, with page checksums."""
    leaves = list(_leaves(schema))
    ids = [path for path, _, dtype in leaves if _is_ids(path, dtype)]
    return pq.ParquetWriter(
        stream,
        schema,
        compression="zstd",
        use_dictionary=[path for path, name, dtype in leaves if name in _FEW_VALUES],
        # only for numbers, which readers may filter by
        write_statistics=[path for path, _, dtype in leaves if path in schema.names and not pa.types.is_string(dtype)],
        write_page_checksum=True,
        data_page_size=ROW_GROUP_BYTES,
        write_batch_size=_BATCH_IDS if ids else None,
    )


def _is_ids(path: str, dtype: pa.DataType) -> bool:
    return dtype == pa.int32() and "." in path


def _leaves(fields: Iterable[pa.Field], prefix: str = "") -> Iterator[tuple[str, str, pa.DataType]]:
    """The Parquet columns of these fields: each with its path (`chosen.list.element.role`), its own name and type."""
    for field in fields:
        path = prefix + field.name
        if pa.types.is_list(field.type):
            yield from _leaves([field.type.value_field.with_name("element")], f"{path}.list.")
        elif pa.types.is_struct(field.type):
            yield from _leaves(field.type.fields, f"{path}.")
        else:
            yield path, field.name, field.type


def write_table(path: Path, table: pa.Table) -> str:
    """Write a table to a durable file; returns its sha256."""
    with create_file(path) as stream, parquet_writer(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.sha256


def read_table(paths: Iterable[Path], schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """The rows of Parquet files with the same schema, in order; an empty table if there are no files."""
    wanted = _selected(schema, columns)
    only_flat = columns is not None and _are_flat(wanted)
    tables = [_whole_file(path, wanted, only_flat=only_flat) for path in paths]
    return pa.concat_tables(tables) if tables else wanted.empty_table()


def _selected(schema: pa.Schema, columns: list[str] | None) -> pa.Schema:
    return schema if columns is None else pa.schema([schema.field(name) for name in columns])


def _are_flat(schema: pa.Schema) -> bool:
    return not any(pa.types.is_nested(field.type) for field in schema)


def _whole_file(path: Path, wanted: pa.Schema, *, only_flat: bool) -> pa.Table:
    """The rows of one file, read without threads if it is small: a snapshot may have thousands of those."""
    with open_parquet(path, only_flat=only_flat) as file:
        rows = file.read(columns=wanted.names, use_threads=file.metadata.num_rows > _MANY_ROWS)
        _require_all(rows, file.metadata.num_rows)
    return rows if rows.schema.equals(wanted) else rows.cast(wanted)


def read_batches(path: Path | None, schema: pa.Schema, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a Parquet file, one at a time, as tables of one chunk each; none if `path` is None.

    Reads only the parts of nested columns that the schema names.
    """
    if path is None:
        return
    wanted = _selected(schema, columns)
    leaves = [leaf for leaf, _, _ in _leaves(wanted)]
    with open_parquet(path, only_flat=columns is not None and _are_flat(wanted)) as file:
        for index in range(file.num_row_groups):
            yield _row_group(file, index, leaves).cast(wanted).combine_chunks()


def _row_group(file: pq.ParquetFile, index: int, names: list[str]) -> pa.Table:
    rows = file.read_row_group(index, columns=names)
    _require_all(rows, file.metadata.row_group(index).num_rows)
    return rows


def _require_all(rows: pa.Table, num_rows: int) -> None:
    """Raise ArrowInvalid if a damaged page returned fewer rows than it holds."""
    if rows.num_rows != num_rows:
        raise pa.ArrowInvalid(f"{rows.num_rows} rows instead of {num_rows}")


def read_matching_rows(
    path: Path, wanted: Mapping[str, Any], columns: list[str], sha256: str = ""
) -> list[dict[str, Any]]:
    """These columns of the rows with the wanted values; row groups without such rows are not read in full."""
    condition = functools.reduce(lambda one, other: one & other, [pc.field(n) == value for n, value in wanted.items()])

    def matching(file: pq.ParquetFile, group: int, names: Iterable[str]) -> pa.Table:
        return _row_group(file, group, [*dict.fromkeys([*wanted, *names])]).filter(condition)

    with open_parquet(path, sha256=sha256, only_flat=True) as file:
        groups = [group for group in range(file.num_row_groups) if matching(file, group, []).num_rows]
    if not groups:
        return []
    with open_parquet(path, sha256=sha256) as file:
        return [row for group in groups for row in matching(file, group, columns).select(columns).to_pylist()]


# --- opening -------------------------------------------------------------------------------------------------


class _Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What a file must be like, by its snapshot's manifest (which also states `num_rows`) or by a caller's hash."""

    asset: str
    sha256: str
    footer_sha256: str = ""
    num_rows: int | None = None


@contextlib.contextmanager
def open_parquet(
    path: Path, *, sha256: str = "", asset: str = "", only_flat: bool = False, buffer_size: int = 0
) -> Iterator[pq.ParquetFile]:
    """Open and verify a Parquet file of any storage; raises SnapshotError if it is not as it was written.

    Give `sha256`, and `asset` for the error's advice, if the file is not named in the manifest of a snapshot. With
    `only_flat`, the caller reads a few flat columns, and only the footer's hash is checked.
    """
    expected = _Expected(asset=asset, sha256=sha256) if sha256 else _expected_by_manifest(path)
    try:
        with contextlib.ExitStack() as stack:
            try:
                opened = _open_verified(path, expected, only_flat, buffer_size, stack)
            except pa.ArrowInvalid:
                if sha256 or expected is None:
                    raise
                expected = _expected_by_newest_manifest(path) or expected
                opened = _open_verified(path, expected, only_flat, buffer_size, stack)
            yield opened
    except FileNotFoundError:
        raise SnapshotError(f"{str(path)!r} is gone, perhaps removed by another run: run again") from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # from the file system, with its reason
        problem, owner = " ".join(str(error).split()), expected.asset if expected else asset
        advice = f"materialize {owner} again with RM_VERIFY=full" if owner else "remove it and run again"
        raise SnapshotError(f"{str(path)!r} is damaged ({problem}): {advice}") from None


def find_damage(path: Path, file: ShardFile) -> str:
    """How a file differs from what its manifest states, with all its bytes read; empty if it does not."""
    expected = _expected("", file)
    try:
        for only_flat in (False, True):  # the hash of the whole file, then that of its footer
            with contextlib.ExitStack() as stack:
                _open_verified(path, expected, only_flat, 0, stack)
    except (pa.ArrowException, OSError) as error:
        return " ".join(str(error).split())
    return ""


def _open_verified(
    path: Path, expected: _Expected | None, only_flat: bool, buffer_size: int, stack: contextlib.ExitStack
) -> pq.ParquetFile:
    """Open a file, with its bytes or at least its footer as expected; raises ArrowInvalid if they are not."""
    footer_sha256 = expected.footer_sha256 if expected and only_flat else ""
    metadata, source = None, _source(path, stack, is_read_whole=expected is not None and not footer_sha256)
    if isinstance(source, bytes):
        _require_equal("sha256", expected and expected.sha256, hashlib.sha256(source).hexdigest())
        source = pa.BufferReader(source)
    elif footer_sha256:
        footer = _footer(stack.enter_context(path.open("rb")) if source is path else source)
        _require_equal("sha256 of the footer", footer_sha256, hashlib.sha256(footer).hexdigest())
        metadata = pq.read_metadata(pa.BufferReader(footer))
    elif expected:
        _require_equal("sha256", expected.sha256, file_sha256(path))
    opened = pq.ParquetFile(source, metadata=metadata, buffer_size=buffer_size, page_checksum_verification=True)
    stack.enter_context(opened)
    _require_equal("number of rows", expected and expected.num_rows, opened.metadata.num_rows)
    return opened


def _source(path: Path, stack: contextlib.ExitStack, *, is_read_whole: bool) -> Any:
    """What to read a file from: its bytes if it is small, or remote and needed whole; else its path or a stream."""
    if is_remote(path):
        return read_file(path) if is_read_whole else stack.enter_context(path.open("rb"))
    return read_file(path) if path.stat().st_size <= _FEW_BYTES else path


def _require_equal(what: str, expected: Any, found: Any) -> None:
    if expected is not None and expected != found:
        raise pa.ArrowInvalid(f"its {what} is {found}, not {expected}")


def _footer(stream: Any) -> bytes:
    """The end of a Parquet file from the start of its metadata; any end of a file without valid metadata."""
    size = stream.seek(0, os.SEEK_END)
    num_bytes = _FOOTER_BYTES
    while True:
        stream.seek(max(size - num_bytes, 0))
        tail = bytes(stream.read())
        needed = int.from_bytes(tail[-8:-4], "little") + 8
        if needed <= len(tail) or needed > size:
            return tail[-needed:]
        num_bytes = needed


# --- expectations by manifest --------------------------------------------------------------------------------


def _expected(asset: str, file: ShardFile) -> _Expected:
    return _Expected(asset=asset, sha256=file.sha256, footer_sha256=file.footer_sha256, num_rows=file.num_rows)


def _expected_by_manifest(path: Path) -> _Expected | None:
    """What the manifest of its snapshot states about a file; None for a file outside snapshots or not named there."""
    if any(part.startswith(".") for part in path.parts[-4:-1]):  # staging, where files are not published yet
        return None
    folder = path.parent
    directory = folder.parent.parent if folder.parent.name == "evaluation" else folder.parent
    name = path.relative_to(directory).as_posix()
    try:
        if name not in _expected_files(directory):  # the manifest may have been replaced
            _expected_files.cache_clear()
        return _expected_files(directory).get(name)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):  # not a snapshot
        return None


@functools.lru_cache(maxsize=8)
def _expected_files(directory: Path) -> dict[str, _Expected]:
    manifest = msgspec.json.decode(read_file(directory / MANIFEST), type=Manifest)
    return {file.path: _expected(manifest.asset, file) for shard in manifest.shards for file in shard.files}


def _expected_by_newest_manifest(path: Path) -> _Expected | None:
    """The same, not cached: a snapshot's rejects may be replaced, and its manifest a moment after them."""
    if path.parent.name == REJECTS:
        time.sleep(_MOMENT_SECONDS)
    _expected_files.cache_clear()
    return _expected_by_manifest(path)
