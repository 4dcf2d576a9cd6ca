from dataclasses import replace

import numpy as np
import pytest
from architectures import CPU
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.training.model.probe_pairs import pairs_of
from rm_assets.training.packing.batches import collate
from rm_assets.training.packing.layout import Segment
from rm_assets.training.packing.planning import Packing, epoch_steps, num_tokens, plan_rows


def ids(*values):
    return np.array(values, np.int32)


RANKINGS = [[ids(7, 8, 9), ids(7, 8, 5, 6)], [ids(1), ids(2, 3)], [ids(4, 4, n) for n in (1, 2, 3)]]
PAIRS = pairs_of(RANKINGS)  # rows 0, 1, and 2 to 4 of the ranking of three


def micro(packing, row_tokens=100, rows=None, num_processes=1):
    rows = np.arange(len(PAIRS)) if rows is None else np.array(rows)
    return plan_rows(PAIRS, rows, packing, row_tokens, num_processes)


# --- which pairs, when ---------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), epoch=st.integers(1, 100), batch_pairs=st.integers(1, 6))
def test_an_epoch_has_every_pair_once_in_an_order_of_its_own(seed, epoch, batch_pairs):
    steps = epoch_steps(PAIRS, seed, epoch, batch_pairs)
    assert sorted(np.concatenate(steps).tolist()) == [0, 1, 2, 3, 4]
    assert [len(rows) for rows in steps[:-1]] == [batch_pairs] * (len(steps) - 1)
    assert [rows.tolist() for rows in steps] == [rows.tolist() for rows in epoch_steps(PAIRS, seed, epoch, batch_pairs)]


def test_the_pairs_of_a_ranking_come_one_after_the_other():
    order = np.concatenate(epoch_steps(PAIRS, 0, 1, 2)).tolist()
    place = order.index(2)
    assert order[place : place + 3] == [2, 3, 4]


def test_the_order_depends_on_seed_and_epoch():
    pairs = pairs_of([[ids(number), ids(number, 1)] for number in range(50)])
    orders = {tuple(np.concatenate(epoch_steps(pairs, seed, epoch, 8))) for seed in (0, 1) for epoch in (1, 2)}
    assert len(orders) == 4


def test_no_pairs_are_no_steps():
    assert epoch_steps(pairs_of([]), 0, 1, 8) == []
    assert plan_rows(pairs_of([]), np.arange(0), Packing.SHARED, 8, 2) == [[], []]


# --- rows ----------------------------------------------------------------------------------------------------


def test_a_shared_row_has_the_prefix_once_and_every_sequence_of_a_ranking_once():
    [[plan]] = micro(Packing.SHARED)
    assert num_tokens(PAIRS, plan) == (2 + 1 + 2) + (1 + 2) + (2 + 1 + 1 + 1)
    batch = collate(PAIRS, plan, CPU)
    # longest first; of equal ones the first
    assert batch.ids.tolist() == [[7, 8, 9, 5, 6, 4, 4, 1, 2, 3, 1, 2, 3]]
    assert batch.positions.tolist() == [[0, 1, 2, 2, 3, 0, 1, 2, 2, 2, 0, 0, 1]]
    assert batch.last.tolist() == [2, 4, 7, 8, 9, 10, 12]
    assert batch.layout.segments == (
        Segment(0, 3, 0, 0),
        Segment(3, 5, 0, 2),
        Segment(5, 8, 5, 0),
        Segment(8, 9, 5, 2),
        Segment(9, 10, 5, 2),
        Segment(10, 11, 10, 0),
        Segment(11, 13, 10, 0),
    )
    assert batch.rows.tolist() == [0, 2, 3, 4, 1]
    assert batch.chosen.tolist() == [0, 2, 2, 3, 5]
    assert batch.rejected.tolist() == [1, 3, 4, 4, 6]


def test_a_packed_row_has_every_sequence_whole():
    [[plan]] = micro(Packing.PACKED)
    assert num_tokens(PAIRS, plan) == 3 + 4 + 1 + 2 + 3 * 3
    assert all(segment.prefix == 0 for segment in collate(PAIRS, plan, CPU).layout.segments)


def test_padded_rows_hold_pairs_of_like_length():
    [plans] = micro(Packing.PADDED)
    # longest sides 4, 2, 3, 3, 3: a side of 2 would waste more than a quarter of a row of 4
    assert [plan.pairs.tolist() for plan in plans] == [[0, 2, 3, 4], [1]]
    assert [branches.prefix for plan in plans for branches in plan.branches] == [0, 0]  # nothing is shared
    batch = collate(PAIRS, plans[0], CPU)
    assert batch.ids.tolist() == [[7, 8, 9, 0], [7, 8, 5, 6], [4, 4, 1, 0], [4, 4, 2, 0], [4, 4, 3, 0]]
    assert batch.last.tolist() == [2, 7, 10, 14, 18]
    assert (batch.chosen.tolist(), batch.rejected.tolist()) == ([0, 2, 2, 3], [1, 3, 4, 4])
    assert batch.layout is None


def test_a_step_may_have_a_part_of_a_ranking():
    [[plan]] = micro(Packing.SHARED, rows=[3])
    batch = collate(PAIRS, plan, CPU)
    assert batch.ids.tolist() == [[4, 4, 1, 3]]
    [[plan]] = micro(Packing.SHARED, rows=[2, 3])
    batch = collate(PAIRS, plan, CPU)
    assert batch.ids.tolist() == [[4, 4, 1, 2, 3]]
    assert (batch.chosen.tolist(), batch.rejected.tolist()) == ([0, 0], [1, 2])


def test_a_ranking_that_overfills_a_row_is_cut_between_pairs():
    pairs = pairs_of([[ids(9, 9, 9, n) for n in range(6)]])
    [plans] = plan_rows(pairs, np.arange(15), Packing.SHARED, 6)
    # three of the sequences fill a row; rows 0 to 14 are 0-1 to 0-5, 1-2 to 1-5, 2-3 to 2-5, 3-4, 3-5 and 4-5
    assert sorted(plan.pairs.tolist() for plan in plans) == [
        [0, 1], [2, 3], [4], [5, 6], [7, 8], [9, 10], [11], [12, 13, 14]
    ]  # fmt: skip
    assert all(num_tokens(pairs, plan) <= 6 for plan in plans)


@pytest.mark.parametrize("packing", list(Packing))
def test_a_process_without_pairs_computes_sixteen_tokens_that_nobody_reads(packing):
    plans = micro(packing, rows=[1], num_processes=3)
    assert [len(of_process) for of_process in plans] == [1, 1, 1]
    batch = collate(PAIRS, plans[2][0], CPU)
    assert batch.ids.shape == (1, 16)
    assert len(batch.last) == 1
    assert (len(batch.chosen), len(batch.rejected), len(batch.margin)) == (0, 0, 0)
    assert num_tokens(PAIRS, plans[2][0]) == 16


@pytest.mark.parametrize("packing", [Packing.SHARED, Packing.PACKED])
def test_rows_lie_in_memory_as_those_without_pairs_do(packing):
    # a compiled layer would be compiled anew for other strides, of dimensions of size 1 too
    for [plan] in micro(packing, rows=[0], num_processes=2):
        batch = collate(PAIRS, plan, CPU)
        assert batch.ids.stride() == batch.positions.stride() == (batch.ids.numel(), 1)


lengths = st.lists(st.integers(1, 12), min_size=2, max_size=4)


@given(
    rankings=st.lists(st.tuples(st.integers(0, 20), lengths), min_size=1, max_size=12),
    packing=st.sampled_from(list(Packing)),
    row_tokens=st.integers(1, 80),
    num_processes=st.integers(1, 4),
)
def test_every_pair_is_planned_once_within_the_budget_and_as_often_in_every_process(
    rankings, packing, row_tokens, num_processes
):
    pairs = pairs_of(
        [
            [ids(*[1] * prefix, *[2 + number] * length) for number, length in enumerate(of_ranking)]
            for prefix, of_ranking in rankings
        ]
    )
    rows = np.arange(len(pairs))
    plans = plan_rows(pairs, rows, packing, row_tokens, num_processes)
    assert len({len(of_process) for of_process in plans}) == 1
    every = [plan for of_process in plans for plan in of_process]
    assert sorted(row for plan in every for row in plan.pairs.tolist()) == rows.tolist()
    if packing is not Packing.PADDED:  # the longest first, so that memory peaks at the start
        sizes = [num_tokens(pairs, plan) for at_once in zip(*plans, strict=True) for plan in at_once if len(plan.pairs)]
        assert sizes == sorted(sizes, reverse=True)
    for plan in every:
        batch = collate(pairs, plan, CPU)
        assert batch.ids.numel() == num_tokens(pairs, plan)
        assert len(plan.pairs) <= 1 or batch.ids.numel() <= row_tokens
        flat = batch.ids.flatten().tolist()
        for row, chosen, rejected in zip(plan.pairs, batch.chosen.tolist(), batch.rejected.tolist(), strict=True):
            for side, number in ((pairs.chosen, chosen), (pairs.rejected, rejected)):
                assert flat[batch.last[number]] == pairs.sequences[side[row]][-1]


def alike(number, *replies, prefix=()):
    """So many pairs of replies of these lengths, each after this prefix."""
    return pairs_of([[ids(*prefix, *[token] * n) for token, n in enumerate(replies)] for _ in range(number)])


def num_rows(pairs, packing, row_tokens, num_processes=1):
    """How many rows with pairs each process gets."""
    plans = plan_rows(pairs, np.arange(len(pairs)), packing, row_tokens, num_processes)
    return [sum(len(plan.pairs) > 0 for plan in of_process) for of_process in plans]


def test_rows_are_filled_to_the_last_token_and_shared_out_to_all_processes():
    pairs = alike(4, 1, 1, prefix=[9, 9, 9])  # 5 tokens each, or twice 4
    assert num_rows(pairs, Packing.SHARED, 10) == [2]
    assert num_rows(pairs, Packing.SHARED, 9) == [4]
    assert num_rows(pairs, Packing.PACKED, 16) == [2]
    assert num_rows(pairs, Packing.PACKED, 15) == [4]
    assert num_rows(pairs, Packing.SHARED, 10, 2) == [1, 1]
    assert num_rows(pairs, Packing.SHARED, 20, 2) == [1, 1]
    assert num_rows(pairs, Packing.SHARED, 20, 3) == [1, 1, 1]


def test_rows_that_do_not_suffice_grow_by_a_sixteenth():
    pairs = alike(200, 1, 1, prefix=[9, 9])  # 4 tokens each: 80 rows of 10 have room for all tokens, not for all pairs
    assert num_rows(pairs, Packing.SHARED, 10) == [100]  # after 85, 90 and 95
    assert num_rows(pairs, Packing.SHARED, 10, 2) == [51, 51]  # after 84, 88, 92 and 96
    few = alike(10, 1, 1, prefix=[9, 9])
    assert num_rows(few, Packing.SHARED, 10) == [5]  # after 4: by one at least
    assert num_rows(few, Packing.SHARED, 10, 2) == [3, 3]


def test_a_pair_whose_sides_are_one_sequence_computes_it_once():
    same = replace(PAIRS, rejected=PAIRS.chosen)
    [[plan]] = plan_rows(same, np.array([0]), Packing.SHARED, 100)
    assert num_tokens(same, plan) == 3
    assert collate(same, plan, CPU).ids.tolist() == [[7, 8, 9]]


@pytest.mark.parametrize(("shorter", "expected"), [(75, [1]), (74, [2])])
def test_a_padded_row_wastes_at_most_a_quarter(shorter, expected):
    pairs = pairs_of([[ids(*[1] * n), ids(*[2] * n)] for n in (100, shorter)])
    assert num_rows(pairs, Packing.PADDED, 1000) == expected


def test_padded_rows_are_filled_to_the_last_token_and_shared_out_to_all_processes():
    pairs = alike(4, 4, 3)  # each pair pads to twice 4
    assert num_rows(pairs, Packing.PADDED, 16) == [2]
    assert num_rows(pairs, Packing.PADDED, 15) == [4]
    assert num_rows(pairs, Packing.PADDED, 100) == [1]
    assert num_rows(pairs, Packing.PADDED, 100, 2) == [1, 1]
    # 46 tokens for three processes, 16 each: two pairs of 4 and 4, of 3 and 3 twice, and one more
    uneven = pairs_of([[ids(*[1] * n), ids(*[2] * n)] for n in (4, 4, 3, 3, 3, 3, 3)])
    assert num_rows(uneven, Packing.PADDED, 100, 3) == [2, 1, 1]


def test_processes_get_rows_of_like_size():
    pairs = pairs_of([[ids(*[1] * n), ids(*[2] * n)] for n in range(1, 41)])
    plans = plan_rows(pairs, np.arange(40), Packing.SHARED, 500, 4)
    sizes = [sum(num_tokens(pairs, plan) for plan in of_process) for of_process in plans]
    assert sum(sizes) == 40 * 41
    assert max(sizes) < 1.05 * min(sizes)
