"""Which pairs are dropped: duplicates, and those that also occur with flipped labels."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.data.pairs.duplicates import dropped_rows
from rm_assets.data.storage.fingerprint import short_hash
from rm_assets.data.tables.reasons import Reason


def keys(pairs: list[tuple[str, str]]) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    half = len(pairs) // 2
    chunks = [pairs[:half], pairs[half:]]  # rows come in several chunks, one per file
    return tuple(
        pa.chunked_array(
            [pa.array([short_hash(pair[side]) for pair in chunk], pa.string()) for chunk in chunks], pa.string()
        )
        for side in (0, 1)
    )


PAIRS = [("a", "b"), ("a", "b"), ("c", "d"), ("d", "c"), ("d", "c"), ("e", "f"), ("g", "g")]
DUPLICATE, CONFLICT = Reason.DUPLICATE, Reason.CONFLICT


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("drop", {1: DUPLICATE, 2: CONFLICT, 3: CONFLICT, 4: CONFLICT}),
        ("majority", {1: DUPLICATE, 2: CONFLICT, 4: DUPLICATE}),
        ("keep", {1: DUPLICATE, 4: DUPLICATE}),
    ],
)
def test_of_equal_pairs_the_first_stays_and_a_policy_decides_on_flipped_ones(
    policy: str, expected: dict[int, Reason]
) -> None:
    assert dropped_rows(*keys(PAIRS), policy).reasons() == expected


def test_no_rows_drop_nothing() -> None:
    assert dropped_rows(*keys([]), "majority").reasons() == {}


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), max_size=30),
    st.sampled_from(["drop", "majority", "keep"]),
)
def test_dropped_rows_are_those_of_the_plain_definition(pairs: list[tuple[str, str]], policy: str) -> None:
    expected: dict[int, Reason] = {}
    for row, pair in enumerate(pairs):
        against = pairs.count(pair[::-1]) if pair[0] != pair[1] else 0
        wins = policy == "keep" or (policy == "majority" and pairs.count(pair) > against)
        if against and not wins:
            expected[row] = CONFLICT
        elif pair in pairs[:row]:
            expected[row] = DUPLICATE
    assert dropped_rows(*keys(pairs), policy).reasons() == expected


def test_dropped_rows_of_a_file_are_counted_from_its_first() -> None:
    dropped = dropped_rows(*keys(PAIRS), "drop")  # rows 1 to 4
    assert dropped.between(0, 2).reasons() == {1: DUPLICATE}
    assert dropped.between(2, 4).reasons() == {0: CONFLICT, 1: CONFLICT}
    assert dropped.between(4, 7).reasons() == {0: CONFLICT}
    assert dropped.between(5, 7).reasons() == {}
