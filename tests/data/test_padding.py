"""Which pairs go, which split they are in, and what padding does to them."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.data import records
from rm_assets.data.fingerprint import short_hash
from rm_assets.data.id_lists import rows_of
from rm_assets.data.padding import dropped_rows, padded, padded_table, splits_of
from rm_assets.data.records import Reason


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
    assert dropped_rows(*keys(PAIRS), policy) == expected


def test_no_rows_drop_nothing() -> None:
    assert dropped_rows(*keys([]), "majority") == {}


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
    assert dropped_rows(*keys(pairs), policy) == expected


def test_splits_have_about_the_shares_that_were_asked_for_and_depend_on_the_prompt_alone() -> None:
    prompts = [f"prompt {number}" for number in range(4000)]
    names = splits_of(prompts, "key", 0.05, 0.10).tolist()
    assert names == [name for prompt in prompts for name in splits_of([prompt], "key", 0.05, 0.10).tolist()]
    # Four standard deviations of a binomial share: 4 * sqrt(0.1 * 0.9 / 4000) = 0.019.
    assert abs(names.count("test") / 4000 - 0.10) < 0.019
    assert abs(names.count("validation") / 4000 - 0.05) < 0.014
    assert names != splits_of(prompts, "other key", 0.05, 0.10).tolist()


def test_a_larger_test_fraction_moves_no_prompt_out_of_the_test_split() -> None:
    small, large = (
        set(np.flatnonzero(splits_of([str(n) for n in range(500)], "key", 0.05, fraction) == "test"))
        for fraction in (0.1, 0.3)
    )
    assert small < large


def test_rows_are_padded_at_their_ends() -> None:
    values = np.array([1, 2, 3], dtype=np.int32)
    assert padded(values, np.array([2, 1]), np.array([3, 1]), 0).tolist() == [1, 2, 0, 3]


ROWS = st.lists(st.tuples(*[st.lists(st.integers(0, 5), min_size=1, max_size=6)] * 2), max_size=8)


@given(ROWS)
def test_both_sides_have_one_length_and_masks_that_give_the_ids_back(rows: list[tuple[list[int], list[int]]]) -> None:
    pad = 0  # also a real id here: masks must not come from `ids != pad`
    chosen, rejected = ([np.array(row[side], dtype=np.int32) for row in rows] for side in (0, 1))
    text = [str(number) for number in range(len(rows))]
    columns = dict.fromkeys(("source", "pair_id", "prompt_key", "chosen_key", "rejected_key"), text)
    columns |= {"line": list(range(len(rows))), "margin": [0.0] * len(rows)}
    columns |= {"prefix_length": [0] * len(rows), "num_dropped_turns": [0] * len(rows)}
    arrays = [
        rows_of(chosen if field.name == "chosen_ids" else rejected).array(field.type)
        if field.name.endswith("_ids")
        else pa.array(columns[field.name], field.type)
        for field in records.TOKENIZED
    ]
    table = padded_table(pa.Table.from_arrays(arrays, schema=records.TOKENIZED), pad)
    assert table.schema == records.PADDED
    for row, original in zip(table.to_pylist(), rows, strict=True):
        widths = {
            len(row[f"{side}_{part}"]) for side in ("chosen", "rejected") for part in ("input_ids", "attention_mask")
        }
        assert widths == {max(map(len, original))}
        for side, ids in zip(("chosen", "rejected"), original, strict=True):
            length = row[f"{side}_length"]
            assert row[f"{side}_input_ids"][:length] == ids
            width = max(map(len, original))
            assert row[f"{side}_attention_mask"] == [1] * length + [0] * (width - length)
