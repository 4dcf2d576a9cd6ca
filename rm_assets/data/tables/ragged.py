"""Rows of different lengths, of token ids or texts, as flat arrays with offsets: no Python object per token or row."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rm_assets.data.tables.message_columns import single_chunk

Ids = NDArray[np.int32]


class IdLists(NamedTuple):
    """Rows of token ids: row i is ids[offsets[i] : offsets[i + 1]]; int32 [tokens] and integers [rows + 1].

    For [7, 8] and [9]: ids [7, 8, 9], offsets [0, 2, 3].
    """

    ids: NDArray[Any]
    offsets: NDArray[Any]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of each row."""
        return np.diff(self.offsets).astype(np.int64)

    def row(self, number: int) -> Ids:
        """The ids of one row."""
        return self.ids[self.offsets[number] : self.offsets[number + 1]]

    def where(self, keep: NDArray[np.bool_]) -> "IdLists":
        """The rows for which `keep` (bool [rows]) is true."""
        if keep.all():
            return self
        return IdLists(self.ids[np.repeat(keep, self.lengths)], offsets_of(self.lengths[keep]))

    def array(self, dtype: pa.DataType) -> pa.ListArray:
        """As an Arrow column of this list type, without copying the ids."""
        return pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), pa.array(self.ids), type=dtype)


def join_rows(rows: Sequence[Ids]) -> IdLists:
    """Concatenate rows that are separate arrays."""
    return IdLists(np.concatenate([np.empty(0, np.int32), *rows]), offsets_of([len(row) for row in rows]))


def lists_of(column: pa.ChunkedArray) -> IdLists:
    """The rows of an Arrow list column."""
    lists = single_chunk(column)
    offsets = lists.offsets.to_numpy()
    return IdLists(lists.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0])


def filter_rows(rows: pa.Table, keep: NDArray[np.bool_]) -> pa.Table:
    """The rows for which `keep` is true. `Table.filter` copies lists id by id, which takes four times as long."""
    mask = pa.array(keep)
    columns = [
        lists_of(column).where(keep).array(column.type) if pa.types.is_list(column.type) else column.filter(mask)
        for column in rows.columns
    ]
    return pa.Table.from_arrays(columns, schema=rows.schema)


def rows_with(lists: IdLists, number: int) -> NDArray[np.bool_]:
    """Whether each row contains this id, bool [rows]: for [7, 8] and [9], 8 gives true and false."""
    return rows_with_any(lists.ids == number, lists.offsets)


def rows_with_any(are_found: NDArray[np.bool_], offsets: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each row has a true value, bool [rows]: [false, true] and [false] give true and false."""
    found = np.zeros(len(offsets) - 1, np.bool_)
    found[np.searchsorted(offsets, np.flatnonzero(are_found), side="right") - 1] = True
    return found


def prefix_lengths(one: IdLists, other: IdLists) -> NDArray[np.int64]:
    """The length of the longest common prefix of each pair of rows, int64 [rows].

    At most one less than the length of the shorter row, which leaves each row at least one token after the prefix: 2
    for [1, 2, 3, 4] and [1, 2, 9], and 1 for [1, 2] and [1, 2, 3].
    """
    limits = np.maximum(np.minimum(one.lengths, other.lengths) - 1, 0)
    ends = np.cumsum(limits)
    starts = ends - limits
    left, right = (lists.ids[prefix_mask(limits, lists.lengths).view(np.bool_)] for lists in (one, other))
    differ = np.flatnonzero(left != right)
    first = np.append(differ, len(left))[np.searchsorted(differ, starts)]  # the first difference after each start
    return np.asarray(np.minimum(first, ends) - starts)


def prefix_mask(lengths: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.int8]:
    """Flat rows of `widths` with 1 at the first `lengths` positions, else 0: [2, 1] and [3, 1] give [1, 1, 0, 1]."""
    runs = np.stack([lengths, widths - lengths], axis=1).ravel()
    return np.repeat(np.tile(np.array([1, 0], np.int8), len(lengths)), runs)


def equal_rows(one: IdLists, other: IdLists) -> NDArray[np.bool_]:
    """Whether the rows of each pair are equal, bool [rows]."""
    are_same = one.lengths == other.lengths
    rows = np.flatnonzero(are_same)
    left, right = one.where(are_same), other.where(are_same)
    differ = np.flatnonzero(left.ids != right.ids)
    are_same[rows[np.searchsorted(left.offsets, differ, side="right") - 1]] = False
    return np.asarray(are_same)


class Texts(NamedTuple):
    """Texts in UTF-8: text i is content[offsets[i] : offsets[i + 1]]; offsets are int64 [texts + 1]."""

    content: bytes
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str | None]) -> "Texts":
        """Concatenate texts; None becomes an empty text."""
        try:
            _, offsets, content = pa.array(texts, pa.large_string()).buffers()
        except UnicodeEncodeError:  # a lone surrogate, which Arrow rejects
            encoded = [text.encode("utf-8", "surrogatepass") if text else b"" for text in texts]
            return cls(b"".join(encoded), offsets_of([len(text) for text in encoded]))
        ends = np.frombuffer(offsets, np.int64, len(texts) + 1)
        return cls(content.slice(0, ends[-1]).to_pybytes() if content else b"", ends)

    def array(self, is_valid: NDArray[np.bool_] | None = None) -> pa.StringArray:
        """As an Arrow column, without copying; null where `is_valid` is false. Raises ValueError above 2 GiB."""
        if len(self.content) > np.iinfo(np.int32).max:
            raise ValueError(f"the texts of one batch have {len(self.content)} bytes: lower max_pairs_per_prompt")
        validity = None if is_valid is None else pa.array(is_valid).buffers()[1]
        offsets = self.offsets.astype(np.int32)
        return pa.StringArray.from_buffers(
            len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(self.content), validity
        )


def offsets_of(lengths: "NDArray[Any] | list[int]") -> NDArray[np.int64]:
    """The offsets of consecutive rows of these lengths, int64 [rows + 1]: [2, 1] gives [0, 2, 3]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
