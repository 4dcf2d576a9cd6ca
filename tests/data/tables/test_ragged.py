"""Rows of ids as flat arrays: shared beginnings, equality, and the rows that are kept."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.data.tables.ragged import (
    IdLists,
    Texts,
    equal_rows,
    filter_rows,
    join_rows,
    lists_of,
    prefix_lengths,
    rows_with,
)

Rows = list[tuple[list[int], list[int]]]
ROWS = st.lists(st.tuples(*[st.lists(st.integers(0, 2), min_size=1, max_size=6)] * 2), max_size=8)


def both(rows: Rows) -> tuple[IdLists, IdLists]:
    chosen, rejected = (join_rows([np.array(row[side], np.int32) for row in rows]) for side in (0, 1))
    return chosen, rejected


@pytest.mark.parametrize(
    ("chosen", "rejected", "shared"),
    [([1, 2, 3, 4], [1, 2, 9], 2), ([1, 2], [1, 2, 3], 1), ([1], [2], 0), ([1], [1, 2], 0), ([5, 6], [5, 7], 1)],
)
def test_the_shared_prefix_leaves_each_side_a_token_of_its_own(
    chosen: list[int], rejected: list[int], shared: int
) -> None:
    assert prefix_lengths(*both([([7], [8]), (chosen, rejected), ([7], [8])])).tolist() == [0, shared, 0]


@given(ROWS)
def test_prefixes_and_equality_are_those_of_the_rows_one_by_one(rows: Rows) -> None:
    chosen, rejected = both(rows)
    for (one, other), prefix in zip(rows, prefix_lengths(chosen, rejected).tolist(), strict=True):
        limit = min(len(one), len(other)) - 1
        assert one[:prefix] == other[:prefix]
        assert prefix <= limit
        assert prefix == limit or one[prefix] != other[prefix]
    assert equal_rows(chosen, rejected).tolist() == [one == other for one, other in rows]
    assert rows_with(chosen, 1).tolist() == [1 in one for one, _ in rows]


@given(ROWS, st.randoms())
def test_rows_that_are_kept_are_the_same_rows(rows: Rows, random) -> None:
    chosen, _ = both(rows)
    keep = np.array([random.random() < 0.5 for _ in rows], np.bool_)
    kept = chosen.where(keep).array(pa.list_(pa.int32()))
    assert kept.to_pylist() == [one for (one, _), is_kept in zip(rows, keep, strict=True) if is_kept]


@given(ROWS, st.randoms())
def test_tables_are_filtered_as_arrow_filters_them(rows: Rows, random) -> None:
    ids = pa.list_(pa.field("element", pa.int32(), nullable=False))
    schema = pa.schema([pa.field("ids", ids, nullable=False), pa.field("text", pa.string())])
    table = pa.table([[one for one, _ in rows], [str(other) for _, other in rows]], schema=schema)
    keep = np.array([random.random() < 0.5 for _ in rows], np.bool_)
    for part in (table, pa.concat_tables([table, table]).slice(len(rows))):
        assert filter_rows(part, keep).equals(table.filter(pa.array(keep)))


def test_rows_without_ids_contain_none() -> None:
    lists = join_rows([np.array(row, np.int32) for row in ([], [8], [], [7, 8], [7], [])])
    assert rows_with(lists, 8).tolist() == [False, True, False, True, False, False]
    assert rows_with(lists, 9).tolist() == [False] * 6
    assert rows_with(join_rows([]), 8).tolist() == []


def test_a_column_in_several_pieces_reads_as_one() -> None:
    pieces = [pa.array([[1, 2], []], pa.list_(pa.int32())), pa.array([[3]], pa.list_(pa.int32()))]
    lists = lists_of(pa.chunked_array(pieces))
    assert (lists.ids.tolist(), lists.offsets.tolist()) == ([1, 2, 3], [0, 2, 2, 3])


def test_a_part_of_a_column_and_one_without_pieces_are_read() -> None:
    column = pa.chunked_array([pa.array([[1, 2], [3], [4, 5, 6], []], pa.list_(pa.int32()))])
    lists = lists_of(column.slice(1, 2))
    assert (lists.ids.tolist(), lists.offsets.tolist()) == ([3, 4, 5, 6], [0, 1, 4])
    assert [lists.row(number).tolist() for number in (0, 1)] == [[3], [4, 5, 6]]
    assert len(lists_of(pa.chunked_array([], pa.list_(pa.int32()))).ids) == 0


def test_texts_keep_their_bytes_and_come_back_as_a_column() -> None:
    texts = Texts.of(["Bastø", None, "", "a"])
    assert (texts.content, texts.offsets.tolist()) == ("Bastøa".encode(), [0, 6, 6, 6, 7])
    assert texts.array().to_pylist() == ["Bastø", "", "", "a"]
    valid = np.array([True, False, True, False])
    assert texts.array(valid).to_pylist() == ["Bastø", None, "", None]
    lone = Texts.of(["\ud800", None, "a"])  # a surrogate without its pair
    assert (lone.content, lone.offsets.tolist()) == (b"\xed\xa0\x80a", [0, 3, 3, 4])
    nothing = Texts.of([None])
    assert (nothing.content, nothing.offsets.tolist(), Texts.of([]).array().to_pylist()) == (b"", [0, 0], [])
