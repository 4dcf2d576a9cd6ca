"""The rows of a Parquet file written by other software, each as one line of JSON.

Text, numbers, booleans and nulls are kept. NaN becomes null, since pandas writes it for missing numbers; infinity
becomes the number 1e999, which is never taken for a finite one. Decimals become numbers of the same digits, dates and
times ISO strings, durations the stored numbers, maps objects. Bytes are not text, and become
`{"num_bytes": 3, "sha256": "ba78..."}`. Two columns of one name become two fields of that name.

Parquet's compression has no limit, so the decoded size is limited: first by the footer, then by the decoded values.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rm_assets.data.sources.blocks import Piece, SkippedLine
from rm_assets.data.sources.opened_file import BEYOND_LIMIT, RejectedFileError
from rm_assets.data.sources.parquet_batches import row_groups
from rm_assets.data.sources.signatures import NUM_BYTES, describe_signature
from rm_assets.data.tables.reasons import Reason

_PART_BYTES = 8 * 2**20
"""Batches of more bytes are converted to Python values in halves, down to single rows."""
_DETAIL_CHARACTERS = 200
_INFINITE = msgspec.Raw(b"1e999")
_ENCODER = msgspec.json.Encoder(decimal_format="number")


def parquet_rows(stream: BinaryIO, max_line_bytes: int, most_bytes: int) -> Iterator[Piece]:
    """The rows, in order; raises RejectedFileError where the file is damaged or its values exceed `most_bytes`."""
    try:
        for group, batches in row_groups(stream):
            _require_at_most(most_bytes, _footer_bytes(group))
            num_rows = 0
            for batch in batches:
                num_rows += batch.num_rows
                num_bytes = sum(map(_num_bytes, batch.columns))
                _require_at_most(most_bytes, num_bytes)
                most_bytes -= num_bytes
                yield from _lines(batch, max_line_bytes)
            if num_rows != group.num_rows:
                raise pa.ArrowInvalid(f"a row group has {num_rows} rows instead of {group.num_rows}")
    except RejectedFileError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise RejectedFileError(
            Reason.DAMAGED_FILE, f"not a readable Parquet file: {_describe_problem(stream, error)}"
        ) from None


def _describe_problem(stream: BinaryIO, error: Exception) -> str:
    """The message of the error, or the kind of the file if it is not Parquet."""
    stream.seek(0)
    head = stream.read(NUM_BYTES)
    other = "" if head.startswith(b"PAR1") else describe_signature(head)
    return f"it is {other}" if other else " ".join(str(error).split())[:_DETAIL_CHARACTERS]


def _require_at_most(most_bytes: int, num_bytes: int) -> None:
    if num_bytes > most_bytes:
        raise RejectedFileError(Reason.DECOMPRESSION_BOMB, BEYOND_LIMIT)


def _footer_bytes(group: pq.RowGroupMetaData) -> int:
    """The decoded size of a row group by the footer, counting at least one byte per value."""
    columns = [group.column(number) for number in range(group.num_columns)]
    return sum(max(column.total_uncompressed_size, column.num_values) for column in columns)


def _lines(batch: pa.RecordBatch, max_line_bytes: int) -> Iterator[Piece]:
    """A line for each row; large batches are halved first."""
    num_bytes = sum(map(_num_bytes, batch.columns))
    if batch.num_rows == 1 and num_bytes > max_line_bytes:
        yield _skipped(batch, num_bytes, Reason.LINE_TOO_LONG, f"{num_bytes} bytes")
        return
    if batch.num_rows > 1 and num_bytes > _PART_BYTES:
        yield from _halves(batch, max_line_bytes)
        return
    try:
        columns = [_encoded(batch.column(number)) for number in range(batch.num_columns)]
    except UnicodeDecodeError:
        if batch.num_rows > 1:
            yield from _halves(batch, max_line_bytes)
        else:
            yield _skipped(batch, num_bytes, Reason.NOT_UTF8, "a string in the row")
        return
    names = [_ENCODER.encode(name) + b":" for name in batch.schema.names]
    for values in zip(*columns, strict=True):
        yield b"{%s}\n" % b",".join(map(bytes.__add__, names, values))


def _skipped(row: pa.RecordBatch, num_bytes: int, reason: Reason, detail: str) -> SkippedLine:
    """A row that is not kept, with the hash of its values in Arrow's format."""
    sha256 = hashlib.sha256(row.serialize()).hexdigest()
    return SkippedLine(num_bytes=num_bytes, end_bytes=1, sha256=sha256, reason=reason, detail=detail)


def _halves(batch: pa.RecordBatch, max_line_bytes: int) -> Iterator[Piece]:
    half = batch.num_rows // 2
    yield from _lines(batch.slice(0, half), max_line_bytes)
    yield from _lines(batch.slice(half), max_line_bytes)


def _encoded(column: pa.Array) -> list[bytes]:
    """The values of a column as JSON."""
    wanted = _json_type(column.type)
    values = (column if wanted == column.type else column.cast(wanted)).to_pylist(maps_as_pydicts="strict")
    if _has_bytes(wanted) or _has_infinite(column):
        values = map(_to_json, values)
    return [_ENCODER.encode(value) for value in values]


def _to_json(value: Any) -> Any:
    """A value with bytes and infinities replaced, which JSON does not have."""
    match value:
        case bytes():
            return {"num_bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()}
        case float() if math.isinf(value):
            return _INFINITE if value > 0 else msgspec.Raw(b"-1e999")
        case list():
            return [*map(_to_json, value)]
        case dict():
            return {name: _to_json(member) for name, member in value.items()}
    return value


# --- types ---------------------------------------------------------------------------------------------------


def _json_type(dtype: pa.DataType) -> pa.DataType:
    """The type a column is converted to: strings for dates and times, plain values for dictionaries."""
    if pa.types.is_dictionary(dtype):
        return dtype.value_type
    if pa.types.is_temporal(dtype):
        return pa.int64() if pa.types.is_duration(dtype) else pa.string()
    if pa.types.is_struct(dtype):
        return pa.struct([_json_field(field) for field in dtype.fields])
    if pa.types.is_map(dtype):
        return pa.map_(_json_field(dtype.key_field), _json_field(dtype.item_field))
    if pa.types.is_fixed_size_list(dtype):
        return pa.list_(_json_field(dtype.value_field), dtype.list_size)
    if pa.types.is_large_list(dtype):
        return pa.large_list(_json_field(dtype.value_field))
    return pa.list_(_json_field(dtype.value_field)) if pa.types.is_list(dtype) else dtype


def _json_field(field: pa.Field) -> pa.Field:
    return field.with_type(_json_type(field.type))


def _leaves(array: pa.Array) -> Iterator[pa.Array]:
    """The flat arrays that a nested array consists of; of lists only the values in use."""
    dtype = array.type
    if pa.types.is_struct(dtype):
        for child in array.flatten():
            yield from _leaves(child)
    elif pa.types.is_map(dtype):  # stored as a list of structs
        entries = pa.list_(pa.struct([dtype.key_field, dtype.item_field]))
        yield from _leaves(array.cast(entries))
    elif pa.types.is_nested(dtype):
        yield from _leaves(array.flatten())
    else:
        yield array


def _num_bytes(column: pa.Array) -> int:
    """Bytes of the values; a dictionary's value counts each time the column uses it."""
    return sum(map(_leaf_bytes, _leaves(column)))


def _leaf_bytes(leaf: pa.Array) -> int:
    if pa.types.is_dictionary(leaf.type):
        lengths = pc.binary_length(leaf.dictionary).cast(pa.int64())
        return int(pc.sum(lengths.take(leaf.indices)).as_py() or 0)
    if pa.types.is_string(leaf.type) or pa.types.is_binary(leaf.type):
        return int(pc.sum(pc.binary_length(leaf).cast(pa.int64())).as_py() or 0)
    return int(leaf.nbytes)


def _has_infinite(column: pa.Array) -> bool:
    return any(pa.types.is_floating(leaf.type) and pc.any(pc.is_inf(leaf)).as_py() for leaf in _leaves(column))


def _has_bytes(dtype: pa.DataType) -> bool:
    """Whether values of a type contain bytes."""
    if pa.types.is_nested(dtype):
        return any(_has_bytes(dtype.field(number).type) for number in range(dtype.num_fields))
    return any(is_kind(dtype) for is_kind in _KINDS_OF_BYTES)


_KINDS_OF_BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_fixed_size_binary,
    pa.types.is_binary_view,
)
