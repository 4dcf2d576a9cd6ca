"""Reads Parquet files of other writers in batches that take little memory, however the files are laid out."""

import re
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

_BUFFER_BYTES = 2**18
_BATCH_BYTES = 128 * 2**20
_MAX_ROWS = 128
_INDEX_BYTES = 12
"""Upper bound for one value of a dictionary-encoded column: its index and its nesting levels."""
_LENGTHS_ENCODED = "DeltaLengthByteArrayDecoder"
_DIFFERENCES_ENCODED = "DeltaByteArrayDecoder"
"""Named in Arrow's error if the encoding of a text column prevents reading it as a dictionary."""
_PAGE_HEADER = re.compile(rb"\x15(.)\x15([\x80-\xff]*[\x00-\x7f])", re.DOTALL)
_PAGE_HEADER_BYTES = 32
_DICTIONARY_PAGE = b"\x04"


def row_groups(stream: BinaryIO) -> Iterator[tuple[pq.RowGroupMetaData, Iterator[pa.RecordBatch]]]:
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
        next(_batches(stream, metadata, number, 1, [*texts]), None)
    except OSError as error:
        if not any(decoder in str(error) for decoder in (_LENGTHS_ENCODED, _DIFFERENCES_ENCODED)):
            raise
        others = [column.path for column in columns if column.path not in texts]
        next(_batches(stream, metadata, number, 1, [], others), None)
        return min(_rows_of_texts(stream, metadata, number, column) for column in texts.values())
    return _MAX_ROWS


def _rows_of_texts(stream: BinaryIO, metadata: pq.FileMetaData, number: int, column: pq.ColumnSchema) -> int:
    """The same for one column. With DELTA_BYTE_ARRAY, each text may be as long as a whole page."""
    path, num_rows = column.path, _MAX_ROWS
    try:
        next(_batches(stream, metadata, number, 1, [path], [path]), None)
    except OSError as error:
        if _DIFFERENCES_ENCODED in str(error):
            num_rows = 1
            if column.max_repetition_level > 0:
                problem = "strings in lists use the encoding DELTA_BYTE_ARRAY: write the file with another encoding"
                raise pa.ArrowNotImplementedError(problem) from None
        elif _LENGTHS_ENCODED not in str(error):
            raise
        next(_batches(stream, metadata, number, 1, [], [path]), None)
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
            num_rows = max(1, min(num_rows, _BATCH_BYTES // num_bytes))
    return _batches(stream, metadata, number, num_rows, as_dictionaries)


def _batches(
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
        buffer_size=_BUFFER_BYTES,
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
