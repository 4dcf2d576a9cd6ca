"""Conversations as Arrow columns, and back, without an Arrow call per row."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rm_assets.data import records
from rm_assets.data.preferences import Message

_MESSAGES = records.VALIDATED.field("prompt").type
_EXTRAS = [field.name for field in records.MESSAGE if field.name not in ("role", "content")]

PlainConversation = tuple[tuple[str, ...], tuple[str, ...]]
"""The roles and the contents of messages that have nothing else."""


def message_lists(conversations: Sequence[Sequence[Message]]) -> pa.ListArray:
    """Conversations as a column of lists of messages."""
    messages = [message for conversation in conversations for message in conversation]
    offsets = np.zeros(len(conversations) + 1, np.int32)
    np.cumsum([len(conversation) for conversation in conversations], out=offsets[1:])
    columns = {
        "role": [message.role for message in messages],
        "content": [message.content for message in messages],
        "name": [message.name for message in messages],
        "reasoning_content": [message.reasoning_content for message in messages],
        "tool_calls": [message.tool_calls for message in messages],
        "tool_call_id": [message.tool_call_id for message in messages],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in records.MESSAGE]
    values = pa.StructArray.from_arrays(arrays, fields=list(records.MESSAGE))
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=_MESSAGES)


def plain_conversations(column: pa.ChunkedArray) -> list[PlainConversation | None]:
    """Each row's roles and contents; None where a message has anything else, or no content."""
    lists = single_chunk(column)
    messages, offsets = lists.values, lists.offsets.to_pylist()
    roles, contents = (messages.field(name).to_pylist() for name in ("role", "content"))
    rows: list[PlainConversation | None] = [
        (tuple(roles[start:end]), tuple(contents[start:end])) for start, end in itertools.pairwise(offsets)
    ]
    others = [pc.is_valid(messages.field(name)) for name in _EXTRAS if messages.field(name).null_count < len(messages)]
    if messages.field("content").null_count:
        others.append(pc.is_null(messages.field("content")))
    for other in others:
        for message in np.flatnonzero(other.to_numpy(zero_copy_only=False)):
            rows[int(np.searchsorted(offsets, message, side="right")) - 1] = None
    return rows


def num_equal_conversations(one: pa.ChunkedArray, other: pa.ChunkedArray) -> int:
    """In how many rows both columns hold the same messages; it looks only where both are equally long."""
    rows = pa.array(np.flatnonzero(_content_bytes(one) == _content_bytes(other)))
    pairs = zip(one.take(rows).to_pylist(), other.take(rows).to_pylist(), strict=True)
    return sum(left == right for left, right in pairs)


def _content_bytes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Bytes of all contents of each conversation."""
    lists = single_chunk(column)
    lengths = pc.fill_null(pc.binary_length(lists.values.field("content")), 0).to_numpy()
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return np.asarray(np.diff(ends[lists.offsets.to_numpy()]), np.int64)


def single_chunk(column: pa.ChunkedArray) -> Any:
    """A column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([pa.array([], column.type), *column.chunks])
