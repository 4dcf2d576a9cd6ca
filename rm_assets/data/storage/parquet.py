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
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rm_assets.data.storage.files import create_file, is_remote, read_file
from rm_assets.data.storage.fingerprint import file_sha256
from rm_assets.data.storage.ownership import MANIFEST
from rm_assets.data.storage.snapshots import REJECTS, Manifest, ShardFile, SnapshotError

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
_FOREIGN_BUFFER_BYTES = 2**18
_FOREIGN_BATCH_BYTES = 128 * 2**20
_FOREIGN_ROWS = 128
_INDEX_BYTES = 12
"""Upper bound for one value of a dictionary-encoded column: its index and its nesting levels."""
_LENGTHS_ENCODED = "DeltaLengthByteArrayDecoder"
_DIFFERENCES_ENCODED = "DeltaByteArrayDecoder"
"""Named in Arrow's error if the encoding of a text column prevents reading it as a dictionary."""
_PAGE_HEADER = re.compile(rb"\x15(.)\x15([\x80-\xff]*[\x00-\x7f])", re.DOTALL)
_PAGE_HEADER_BYTES = 32
_DICTIONARY_PAGE = b"\x04"
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


# --- reading Parquet files of other writers ------------------------------------------------------------------


def foreign_row_groups(stream: BinaryIO) -> Iterator[tuple[pq.RowGroupMetaData, Iterator[pa.RecordBatch]]]:
    """The row groups of a Parquet file from another writer: the metadata of each, and its rows in small batches.

    Raises ArrowException, OSError or ValueError if the file is damaged.
    """
    metadata = pq.read_metadata(stream)
    columns = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    for number in range(metadata.num_row_groups):
        # a damaged column's metadata may throw uncaught in C++ and abort the process: read a row first
        num_rows = _rows_at_a_time(stream, metadata, number, columns)
        yield metadata.row_group(number), _guarded_batches(stream, metadata, number, num_rows)


def _rows_at_a_time(stream: BinaryIO, metadata: pq.FileMetaData, number: int, columns: list[pq.ColumnSchema]) -> int:
    """How many rows of a row group may be read at a time, found by reading its first row with texts as dictionaries.

    Arrow cannot read texts of some encodings as dictionaries; the text columns are then tried one by one.
    """
    texts = {column.path: column for column in columns if column.physical_type == "BYTE_ARRAY"}
    try:
        next(_foreign_batches(stream, metadata, number, 1, [*texts]), None)
    except OSError as error:
        if not any(decoder in str(error) for decoder in (_LENGTHS_ENCODED, _DIFFERENCES_ENCODED)):
            raise
        others = [column.path for column in columns if column.path not in texts]
        next(_foreign_batches(stream, metadata, number, 1, [], others), None)
        return min(_rows_of_texts(stream, metadata, number, column) for column in texts.values())
    return _FOREIGN_ROWS


def _rows_of_texts(stream: BinaryIO, metadata: pq.FileMetaData, number: int, column: pq.ColumnSchema) -> int:
    """The same for one column. With DELTA_BYTE_ARRAY, each text may be as long as a whole page."""
    path, num_rows = column.path, _FOREIGN_ROWS
    try:
        next(_foreign_batches(stream, metadata, number, 1, [path], [path]), None)
    except OSError as error:
        if _DIFFERENCES_ENCODED in str(error):
            num_rows = 1
            if column.max_repetition_level > 0:
                problem = "texts in lists are in the encoding DELTA_BYTE_ARRAY: write the file in another one"
                raise pa.ArrowNotImplementedError(problem) from None
        elif _LENGTHS_ENCODED not in str(error):
            raise
        next(_foreign_batches(stream, metadata, number, 1, [], [path]), None)
    return num_rows


def _guarded_batches(
    stream: BinaryIO, metadata: pq.FileMetaData, number: int, num_rows: int
) -> Iterator[pa.RecordBatch]:
    """A row group in batches that each take little memory, however large its dictionaries are.

    One text in a dictionary may be repeated by millions of values. A column that consists of little more than its
    dictionary is read as one; other columns cannot be, because Arrow would add all their other texts to it. For those,
    the larger the dictionary, the fewer rows are read at a time.
    """
    group, as_dictionaries = metadata.row_group(number), []
    for column in (group.column(index) for index in range(group.num_columns)):
        if column.physical_type != "BYTE_ARRAY" or not (num_bytes := _dictionary_bytes(stream, column)):
            continue
        if column.total_uncompressed_size - num_bytes <= _INDEX_BYTES * column.num_values:
            as_dictionaries.append(column.path_in_schema)
        else:
            num_rows = max(1, min(num_rows, _FOREIGN_BATCH_BYTES // num_bytes))
    return _foreign_batches(stream, metadata, number, num_rows, as_dictionaries)


def _foreign_batches(
    stream: BinaryIO,
    metadata: pq.FileMetaData,
    number: int,
    num_rows: int,
    as_dictionaries: list[str],
    columns: list[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Batches of `num_rows`; of each column, only a buffer, a page, its dictionary and one batch are in memory.

    Extension types are read as their storage types.
    """
    with pq.ParquetFile(
        stream,
        metadata=metadata,
        read_dictionary=as_dictionaries,
        buffer_size=_FOREIGN_BUFFER_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,
        arrow_extensions_enabled=False,
    ) as opened:
        yield from opened.iter_batches(num_rows, row_groups=[number], columns=columns, use_threads=False)


def _dictionary_bytes(stream: BinaryIO, column: pq.ColumnChunkMetaData) -> int:
    """The uncompressed size of a column's dictionary, from its page header; 0 without one.

    The header is a struct in Thrift's compact protocol; its first two fields are the page type and the page size (see
    PageHeader in parquet.thrift).
    """
    stream.seek(min(filter(None, (column.dictionary_page_offset, column.data_page_offset))))
    header = _PAGE_HEADER.match(stream.read(_PAGE_HEADER_BYTES))
    if not header or header[1] != _DICTIONARY_PAGE:
        return 0
    digits: bytes = header[2]
    return sum((byte & 127) << 7 * position for position, byte in enumerate(digits)) // 2


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
