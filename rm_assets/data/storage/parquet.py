"""How tables are written as Parquet and read back: the one place that knows encodings, compression and row groups.

Measured on token ids, texts and hashes: zstd at its first level everywhere; token ids split into byte streams
(BYTE_STREAM_SPLIT), which writes and reads a quarter faster than a dictionary at the same size; a dictionary only for
columns of few values, since Parquet would build one for every column of distinct texts and throw it away; pages as
large as a row group, as whole groups are read, which writes and reads a fifteenth faster and is as much smaller.

Every file of ours is opened by `open_parquet`, which lets none be read as other values than were written. A file of a
snapshot must have the sha256 that the manifest states. Only where a few flat columns of a large file are read, as those
that tell all pairs apart, hashing the rest would take many times as long: then its footer must have the stated hash,
and Arrow verifies the checksum of each page. Files that no manifest names have these checksums, or a hash in a job's
file.
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
from rm_assets.data.storage.snapshots import MANIFEST, REJECTS, ShardFile, SnapshotError

ROW_GROUP_BYTES = 8 * 2**20
"""About what a row group holds, in bytes of its rows' text; every stage writes a row group for each one it reads."""
_BATCH_IDS = 2**16
"""Ids that are handed to a page at a time. Arrow asks only then whether the page is full: texts keep its own 1,024."""
_MANY_ROWS = 10_000
_FEW_BYTES = 2**18
"""Files up to this size are read in one piece, at half the time of a read for each column."""
_FOOTER_BYTES = 2**16
"""What is read of a file's end at first, which holds nearly every footer."""
_MOMENT_SECONDS = 0.3
_FOREIGN_BUFFER_BYTES = 2**18
_FOREIGN_BATCH_BYTES = 128 * 2**20
_FOREIGN_ROWS = 128
_INDEX_BYTES = 12
"""What a value of a dictionary takes at most: its number, and how it is nested."""
_LENGTHS_ENCODED = "DeltaLengthByteArrayDecoder"
_DIFFERENCES_ENCODED = "DeltaByteArrayDecoder"
"""What Arrow's error names where texts are encoded so that the column cannot be read as a dictionary."""
_PAGE_HEADER = re.compile(rb"\x15(.)\x15([\x80-\xff]*[\x00-\x7f])", re.DOTALL)
_PAGE_HEADER_BYTES = 32
_DICTIONARY_PAGE = b"\x04"
_FEW_VALUES = {"source", "role", "name", "format", "subset", "tools", "stage", "reason", "detail", "split"}


def parquet_writer(stream: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer into an open binary file, with checksums on its pages."""
    leaves = list(_leaves(schema))
    ids = [path for path, _, dtype in leaves if _is_ids(path, dtype)]
    return pq.ParquetWriter(
        stream,
        schema,
        compression="zstd",
        use_dictionary=[path for path, name, dtype in leaves if name in _FEW_VALUES],
        column_encoding=dict.fromkeys(ids, "BYTE_STREAM_SPLIT"),
        # of numbers that a reader may filter by; of texts nobody asks for the smallest
        write_statistics=[path for path, _, dtype in leaves if path in schema.names and not pa.types.is_string(dtype)],
        write_page_checksum=True,
        data_page_size=ROW_GROUP_BYTES,
        write_batch_size=_BATCH_IDS if ids else None,
    )


def _is_ids(path: str, dtype: pa.DataType) -> bool:
    return dtype == pa.int32() and "." in path


def _leaves(schema: pa.Schema) -> Iterator[tuple[str, str, pa.DataType]]:
    """Each column as Parquet knows it, by path (`chosen.list.element.role`), with its last name and its type."""
    for field in schema:
        yield from _leaves_of(field, field.name)


def _leaves_of(field: pa.Field, path: str) -> Iterator[tuple[str, str, pa.DataType]]:
    if pa.types.is_list(field.type):
        yield from _leaves_of(field.type.value_field, f"{path}.list.element")
    elif pa.types.is_struct(field.type):
        for child in field.type.fields:
            yield from _leaves_of(child, f"{path}.{child.name}")
    else:
        yield path, field.name, field.type


def write_table(path: Path, table: pa.Table) -> str:
    """Write a file of one table, durable afterwards; returns its sha256."""
    with create_file(path) as stream, parquet_writer(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.sha256


def read_table(paths: Iterable[Path], schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Rows of Parquet files with one schema, in order; an empty table where there is no file."""
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    only_flat = columns is not None and _are_flat(wanted)
    tables = [_whole_file(path, wanted, only_flat=only_flat) for path in paths]
    return pa.concat_tables(tables) if tables else wanted.empty_table()


def _are_flat(schema: pa.Schema) -> bool:
    return not any(pa.types.is_nested(field.type) for field in schema)


def _whole_file(path: Path, wanted: pa.Schema, *, only_flat: bool) -> pa.Table:
    """The rows of one file; a snapshot may have thousands of small ones, for which threads cost more than they give."""
    with open_parquet(path, only_flat=only_flat) as file:
        rows = file.read(columns=wanted.names, use_threads=file.metadata.num_rows > _MANY_ROWS)
        _require_all(rows, file.metadata.num_rows)
    return rows if rows.schema.equals(wanted) else rows.cast(wanted)


def read_batches(path: Path | None, schema: pa.Schema, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a Parquet file as tables of one chunk each, one at a time; nothing where there is no file.

    Of nested columns no more is read than the schema names.
    """
    if path is None:
        return
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    leaves = [leaf for leaf, _, _ in _leaves(wanted)]
    with open_parquet(path, only_flat=columns is not None and _are_flat(wanted)) as file:
        for index in range(file.num_row_groups):
            yield _row_group(file, index, leaves).cast(wanted).combine_chunks()


def _row_group(file: pq.ParquetFile, index: int, names: list[str]) -> pa.Table:
    rows = file.read_row_group(index, columns=names)
    _require_all(rows, file.metadata.row_group(index).num_rows)
    return rows


def _require_all(rows: pa.Table, num_rows: int) -> None:
    """Raise ArrowInvalid where a damaged page gave fewer rows than it holds."""
    if rows.num_rows != num_rows:
        raise pa.ArrowInvalid(f"{rows.num_rows} rows instead of {num_rows}")


def read_matching_rows(
    path: Path, wanted: Mapping[str, Any], columns: list[str], sha256: str = ""
) -> list[dict[str, Any]]:
    """These columns of the rows with the wanted values; of row groups without such rows only what decides is read."""
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


class _Stated(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a file: by a manifest, which also tells how many rows it has, or by its hash alone."""

    asset: str
    sha256: str
    footer_sha256: str = ""
    num_rows: int | None = None


@contextlib.contextmanager
def open_parquet(
    path: Path, *, sha256: str = "", asset: str = "", only_flat: bool = False, buffer_size: int = 0
) -> Iterator[pq.ParquetFile]:
    """A Parquet file of any storage, open; raises SnapshotError where it is not as it was written.

    `sha256` is that of a file which no snapshot's manifest names, and `asset` what it was made by, if these are known.
    `only_flat` says that a few flat columns will be read, for which not all bytes are hashed.
    """
    stated = _Stated(asset=asset, sha256=sha256) if sha256 else _stated(path)
    try:
        with contextlib.ExitStack() as stack:
            try:
                opened = _opened(path, stated, only_flat, buffer_size, stack)
            except pa.ArrowInvalid:
                if sha256 or stated is None:
                    raise
                stated = _stated_anew(path) or stated
                opened = _opened(path, stated, only_flat, buffer_size, stack)
            yield opened
    except FileNotFoundError:
        raise SnapshotError(f"{str(path)!r} is gone, perhaps removed by another run: run again") from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system, and it says what
        told, owner = " ".join(str(error).split()), stated.asset if stated else asset
        advice = f"materialize {owner} again with RM_VERIFY=full" if owner else "remove it and run again"
        raise SnapshotError(f"{str(path)!r} is damaged ({told}): {advice}") from None


def find_damage(path: Path, file: ShardFile) -> str:
    """How a file differs from what is stated of it, all its bytes read; empty where it does not."""
    stated = _statement("", file)
    try:
        for only_flat in (False, True):  # the hash of all, and that of the footer
            with contextlib.ExitStack() as stack:
                _opened(path, stated, only_flat, 0, stack)
    except (pa.ArrowException, OSError) as error:
        return " ".join(str(error).split())
    return ""


def _statement(asset: str, file: ShardFile) -> _Stated:
    return _Stated(asset=asset, sha256=file.sha256, footer_sha256=file.footer_sha256, num_rows=file.num_rows)


def _opened(
    path: Path, stated: _Stated | None, only_flat: bool, buffer_size: int, stack: contextlib.ExitStack
) -> pq.ParquetFile:
    """A file, open, whose bytes, or at least footer, are as stated; raises ArrowInvalid where they are not."""
    footer_sha256 = stated.footer_sha256 if stated and only_flat else ""
    metadata, source = None, _source(path, stack, is_read_whole=stated is not None and not footer_sha256)
    if isinstance(source, bytes):
        _require_equal("sha256", stated and stated.sha256, hashlib.sha256(source).hexdigest())
        source = pa.BufferReader(source)
    elif footer_sha256:
        footer = _footer(stack.enter_context(path.open("rb")) if source is path else source)
        _require_equal("sha256 of the footer", footer_sha256, hashlib.sha256(footer).hexdigest())
        metadata = pq.read_metadata(pa.BufferReader(footer))
    elif stated:
        _require_equal("sha256", stated.sha256, file_sha256(path))
    opened = pq.ParquetFile(source, metadata=metadata, buffer_size=buffer_size, page_checksum_verification=True)
    stack.enter_context(opened)
    _require_equal("number of rows", stated and stated.num_rows, opened.metadata.num_rows)
    return opened


def _source(path: Path, stack: contextlib.ExitStack, *, is_read_whole: bool) -> Any:
    """What to read a file from: its bytes, if they are few, or remote and all needed; else its path or a stream."""
    if is_remote(path):
        return read_file(path) if is_read_whole else stack.enter_context(path.open("rb"))
    return read_file(path) if path.stat().st_size <= _FEW_BYTES else path


def _require_equal(what: str, stated: Any, found: Any) -> None:
    if stated is not None and stated != found:
        raise pa.ArrowInvalid(f"its {what} is {found}, not {stated}")


def _footer(stream: Any) -> bytes:
    """The last bytes of a Parquet file, from where its metadata begin; other last bytes where there are none."""
    size = stream.seek(0, os.SEEK_END)
    num_bytes = _FOOTER_BYTES
    while True:
        stream.seek(max(size - num_bytes, 0))
        tail = bytes(stream.read())
        needed = int.from_bytes(tail[-8:-4], "little") + 8
        if needed <= len(tail) or needed > size:
            return tail[-needed:]
        num_bytes = needed


# --- files of others -----------------------------------------------------------------------------------------


def foreign_row_groups(stream: BinaryIO) -> Iterator[tuple[pq.RowGroupMetaData, Iterator[pa.RecordBatch]]]:
    """What the footer of a Parquet file that somebody else wrote says of each row group, and its rows, a few at a time.

    Raises ArrowException, OSError or ValueError where the file is damaged.
    """
    metadata = pq.read_metadata(stream)
    columns = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    for number in range(metadata.num_row_groups):
        # what a footer says of a column may throw where nothing catches it, and end the process: a row is read first
        num_rows = _rows_at_a_time(stream, metadata, number, columns)
        yield metadata.row_group(number), _guarded_batches(stream, metadata, number, num_rows)


def _rows_at_a_time(stream: BinaryIO, metadata: pq.FileMetaData, number: int, columns: list[pq.ColumnSchema]) -> int:
    """How many rows of a row group to read at most at a time, as its first row shows, whose texts become dictionaries.

    Arrow cannot do so with texts of some encodings, which therefore are tried column by column.
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
    """The same of one column. Where texts are encoded by their differences, each may be as long as all of a page."""
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
    """A row group in batches of which each takes little memory, whatever its dictionaries hold.

    One text of a dictionary may stand for millions of values: a column that has hardly more than its dictionary stays
    one (Arrow would put all other texts into it, too), and the longer another one's texts may be, the fewer rows are
    read.
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
    """No more of a column is held than a buffer, a page, its dictionary and the values of so many rows.

    Types that some library registers are read as what they are stored as.
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
    """What the dictionary of a column takes, by the header of its page; 0 where it has none.

    The header is Thrift's compact form of a struct whose first fields are two numbers: the kind of page, its size.
    """
    stream.seek(min(filter(None, (column.dictionary_page_offset, column.data_page_offset))))
    header = _PAGE_HEADER.match(stream.read(_PAGE_HEADER_BYTES))
    if not header or header[1] != _DICTIONARY_PAGE:
        return 0
    digits: bytes = header[2]
    return sum((byte & 127) << 7 * place for place, byte in enumerate(digits)) // 2


# --- what manifests say --------------------------------------------------------------------------------------


class _ShardFiles(msgspec.Struct, frozen=True):
    files: tuple[ShardFile, ...]


class _Contents(msgspec.Struct, frozen=True):
    asset: str
    shards: tuple[_ShardFiles, ...]


def _stated(path: Path) -> _Stated | None:
    """What the manifest of its snapshot says of a file; None if it lies in none, or is not named there."""
    if any(part.startswith(".") for part in path.parts[-4:-1]):  # where files lie that are not published yet
        return None
    folder = path.parent
    directory = folder.parent.parent if folder.parent.name == "evaluation" else folder.parent
    name = path.relative_to(directory).as_posix()
    try:
        if name not in _stated_files(directory):  # by now it may be
            _stated_files.cache_clear()
        return _stated_files(directory).get(name)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):  # no snapshot
        return None


@functools.lru_cache(maxsize=8)
def _stated_files(directory: Path) -> dict[str, _Stated]:
    contents = msgspec.json.decode(read_file(directory / MANIFEST), type=_Contents)
    return {file.path: _statement(contents.asset, file) for shard in contents.shards for file in shard.files}


def _stated_anew(path: Path) -> _Stated | None:
    """The same by the manifest of now: a snapshot's rejects may change, and its manifest a moment after them."""
    if path.parent.name == REJECTS:
        time.sleep(_MOMENT_SECONDS)
    _stated_files.cache_clear()
    return _stated(path)
