"""Columns of conversations as flat arrays: no Arrow call per row."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rm_assets.data.tables import schemas

_EXTRAS = [field.name for field in schemas.MESSAGE if field.name not in ("role", "content")]

ROLES = ("system", "user", "assistant", "tool")


class MessageColumn:
    """A column of conversations, for working on all messages at once: `contents` has one text per message.

    The column must not be a slice of another one.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        lists = single_chunk(column)
        messages = lists.values
        self.offsets: NDArray[np.int64] = lists.offsets.to_numpy().astype(np.int64)
        self.contents: pa.StringArray = messages.field("content")
        roles = pc.index_in(messages.field("role"), pa.array(ROLES))
        self._roles = pc.fill_null(roles, len(ROLES)).to_numpy().astype(np.uint8).tobytes()
        extras = [messages.field(name) for name in _EXTRAS]
        others = [pc.is_valid(extra) for extra in extras if extra.null_count < len(messages)]
        others += [pc.is_null(found) for found in (self.contents, roles) if found.null_count]
        self._others = [np.flatnonzero(other.to_numpy(zero_copy_only=False)) for other in others]

    def rows_of(self, messages: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each of these messages."""
        return np.asarray(np.searchsorted(self.offsets, messages, side="right") - 1)

    def messages_with(self, some_bytes: Iterable[int]) -> NDArray[np.int64]:
        """The numbers of the messages whose content contains any of these bytes."""
        _, offsets, data = self.contents.buffers()
        if data is None:
            return np.empty(0, np.int64)
        content = np.frombuffer(data, np.uint8)
        is_sought = np.zeros(len(content), np.bool_)
        for byte in some_bytes:
            is_sought |= content == byte
        ends = np.frombuffer(offsets, np.int32)[self.contents.offset : self.contents.offset + len(self.contents) + 1]
        messages = np.unique(np.searchsorted(ends, np.flatnonzero(is_sought), side="right") - 1)
        return messages[(messages >= 0) & (messages < len(self.contents))]

    def is_plain(self) -> NDArray[np.bool_]:
        """For each row, whether it has messages, and none of them more than a role and a content."""
        is_plain = np.diff(self.offsets) > 0
        for messages in self._others:
            is_plain[self.rows_of(messages)] = False
        return np.asarray(is_plain)

    def shapes(self) -> list[bytes]:
        """The roles of each row, one byte per message: the index in `ROLES`, or `len(ROLES)` for another role."""
        roles = self._roles
        return [roles[first:last] for first, last in itertools.pairwise(self.offsets.tolist())]

    def arrays(self, rows: NDArray[np.int64]) -> list[pa.StringArray]:
        """The contents of rows with the same shape: one array of all first messages, one of all second messages, ..."""
        starts = self.offsets[rows]
        length = int(self.offsets[rows[0] + 1] - starts[0])
        return [self.contents.take(pa.array(starts + number)) for number in range(length)]


def num_equal_conversations(one: pa.ChunkedArray, other: pa.ChunkedArray) -> int:
    """In how many rows both columns hold the same messages. Only rows of equal length are compared."""
    rows = pa.array(np.flatnonzero(_content_bytes(one) == _content_bytes(other)))
    pairs = zip(one.take(rows).to_pylist(), other.take(rows).to_pylist(), strict=True)
    return sum(left == right for left, right in pairs)


def _content_bytes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """The total length in bytes of each conversation's contents."""
    lists = single_chunk(column)
    lengths = pc.fill_null(pc.binary_length(lists.values.field("content")), 0).to_numpy()
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return np.asarray(np.diff(ends[lists.offsets.to_numpy()]), np.int64)


def single_chunk(column: pa.ChunkedArray) -> Any:
    """A column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([pa.array([], column.type), *column.chunks])
