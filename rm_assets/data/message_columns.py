"""Conversations as Arrow columns, without an Arrow call per row."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rm_assets.data import records
from rm_assets.data.preferences import Message

_MESSAGES = records.VALIDATED.field("prompt").type


def message_lists(conversations: Sequence[Sequence[Message]]) -> pa.ListArray:
    """Conversations as a column of lists of messages."""
    messages = [message for conversation in conversations for message in conversation]
    offsets = np.zeros(len(conversations) + 1, np.int32)
    np.cumsum([len(conversation) for conversation in conversations], out=offsets[1:])
    columns = [pa.array(map(attrgetter(field.name), messages), field.type) for field in records.MESSAGE]
    values = pa.StructArray.from_arrays(columns, fields=list(records.MESSAGE))
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=_MESSAGES)


def num_equal_conversations(one: pa.ChunkedArray, other: pa.ChunkedArray) -> int:
    """In how many rows both columns hold the same messages; only where both are equally long it takes a look."""
    rows = np.flatnonzero(_content_bytes(one) == _content_bytes(other))
    pairs = zip(one.take(rows).to_pylist(), other.take(rows).to_pylist(), strict=True)
    return sum(left == right for left, right in pairs)


def _content_bytes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Bytes of all contents of each conversation."""
    lists = single_chunk(column)
    lengths = pc.fill_null(pc.binary_length(lists.values.field("content")), 0).to_numpy()
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return np.diff(ends[lists.offsets.to_numpy()])


def single_chunk(column: pa.ChunkedArray) -> Any:
    """A column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
