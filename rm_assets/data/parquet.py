"""How tables are written as Parquet and read back: the one place that knows encodings, compression and row groups.

Measured on token ids, texts and hashes: zstd at its first level everywhere; token ids split into byte streams
(BYTE_STREAM_SPLIT), which writes and reads a quarter faster than a dictionary at the same size; a dictionary only for
columns of few values, since Parquet would build one for every column of distinct texts and throw it away; pages as
large as a row group, as whole groups are read, which writes and reads a fifteenth faster and is as much smaller.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rm_assets.data.snapshots import SnapshotError
from rm_assets.data.storage import is_remote

ROW_GROUP_BYTES = 8 * 2**20
"""About what a row group holds, in bytes of its rows' text; every stage writes a row group for each one it reads."""
_BATCH_IDS = 2**16
"""Ids that are handed to a page at a time. Arrow asks only then whether the page is full: texts keep its own 1,024."""
_MANY_ROWS = 10_000
_FEW_BYTES = 2**18
"""Files up to this size are read in one piece."""
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


def read_table(paths: Iterable[Path], schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Rows of Parquet files with one schema, in order; an empty table where there is no file."""
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    tables = [_whole_file(path, wanted) for path in paths]
    return pa.concat_tables(tables) if tables else wanted.empty_table()


def _whole_file(path: Path, wanted: pa.Schema) -> pa.Table:
    """The rows of one file; a snapshot may have thousands of small ones, for which threads cost more than they give."""
    with parquet_file(path) as file:
        rows = file.read(columns=wanted.names, use_threads=file.metadata.num_rows > _MANY_ROWS)
    return rows if rows.schema.equals(wanted) else rows.cast(wanted)


def read_batches(path: Path | None, schema: pa.Schema, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a Parquet file as tables of one chunk each, one at a time; nothing where there is no file."""
    if path is None:
        return
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    with parquet_file(path) as file:
        for index in range(file.num_row_groups):
            yield file.read_row_group(index, columns=wanted.names).cast(wanted).combine_chunks()


@contextlib.contextmanager
def parquet_file(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file of any storage, open; raises SnapshotError where its pages are not as they were written."""
    try:
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(path.open("rb")) if is_remote(path) else _local_source(path)
            yield stack.enter_context(pq.ParquetFile(source, page_checksum_verification=True))
    except FileNotFoundError:
        raise SnapshotError(f"{str(path)!r} is gone, perhaps removed by another run: run again") from None
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system, and it says what
        told = " ".join(str(error).split())
        raise SnapshotError(f"{str(path)!r} is damaged: remove its snapshot and materialize anew ({told})") from None


def _local_source(path: Path) -> Path | pa.BufferReader:
    """What to read a file from: all its bytes at once if they are few, in half the time of a read for each column."""
    return pa.BufferReader(path.read_bytes()) if path.stat().st_size <= _FEW_BYTES else path
