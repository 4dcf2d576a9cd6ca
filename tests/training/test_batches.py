import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_assets.training.batches import by_length, collate, epoch_order, read_pairs, split_into
from rm_assets.training.group import Group
from rm_assets.training.job import TrainingError

from .conftest import padded_row


def test_padding_is_found_by_length_whatever_id_it_has(tmp_path, write_pairs):
    rows = [padded_row(0, [0, 9, 0], [7], 0.5, filler=0), padded_row(1, [4, 5], [6, 7, 8, 9], filler=7)]
    pairs = read_pairs([write_pairs(tmp_path / "a.parquet", rows)])
    assert pairs.chosen.ids.tolist() == [0, 9, 0, 4, 5]
    assert pairs.chosen.offsets.tolist() == [0, 3, 5]
    assert pairs.rejected.ids.tolist() == [7, 6, 7, 8, 9]
    assert pairs.rejected.offsets.tolist() == [0, 1, 5]
    assert pairs.margin.tolist() == [0.5, 0.0]
    assert pairs.keys.column("line").to_pylist() == [1, 2]


ids = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(
    pairs=st.lists(st.tuples(ids, ids, st.floats(-2, 2, width=32)), max_size=9),
    row_group_size=st.integers(1, 4),
    cut=st.integers(0, 9),
)
def test_what_is_read_is_what_was_written(tmp_path_factory, pairs, row_group_size, cut):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rm_assets.data.records import PADDED

    directory = tmp_path_factory.mktemp("pairs")
    paths = []
    for part in (pairs[:cut], pairs[cut:]):
        paths.append(str(directory / f"{len(paths)}.parquet"))
        rows = [padded_row(number, *pair) for number, pair in enumerate(part)]
        pq.write_table(pa.Table.from_pylist(rows, schema=PADDED), paths[-1], row_group_size=row_group_size)
    found = read_pairs(paths)
    assert len(found) == len(pairs)
    for row, (chosen, rejected, margin) in enumerate(pairs):
        assert (found.chosen[row].tolist(), found.rejected[row].tolist()) == (chosen, rejected)
        assert found.margin[row] == np.float32(margin)


def test_no_files_are_no_pairs():
    pairs = read_pairs([])
    assert len(pairs) == 0
    assert pairs.keys.column_names == ["source", "line", "pair_id", "prompt_key"]


@pytest.mark.parametrize("length", [0, 4, -1])
def test_a_length_that_the_row_does_not_have_is_an_error_with_the_pair(tmp_path, write_pairs, length):
    path = write_pairs(tmp_path / "a.parquet", [padded_row(0, [4, 5, 6], [7]) | {"chosen_length": length}])
    with pytest.raises(TrainingError, match=f"chosen_length is {length} in a row of 3 ids, pair 'pair0'"):
        read_pairs([path])


def test_a_file_of_another_stage_is_an_error(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"source": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(TrainingError, match="has no column 'line'"):
        read_pairs([str(tmp_path / "a.parquet")])


@given(seed=st.integers(0, 2**32), epoch=st.integers(1, 100), num_pairs=st.integers(0, 50))
def test_the_order_is_a_permutation_and_a_function_of_its_arguments(seed, epoch, num_pairs):
    order = epoch_order(seed, epoch, num_pairs)
    assert sorted(order.tolist()) == list(range(num_pairs))
    assert order.tolist() == epoch_order(seed, epoch, num_pairs).tolist()


def test_the_order_depends_on_seed_and_epoch():
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in (0, 1) for epoch in (1, 2)}
    assert len(orders) == 4


def test_the_last_smaller_batch_is_kept():
    assert [rows.tolist() for rows in split_into(np.arange(7), 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert split_into(np.arange(0), 3) == []


def test_a_step_is_sorted_by_the_longer_side_and_shared_out_in_turn(tmp_path, write_pairs):
    lengths = [(2, 3), (9, 1), (1, 1), (4, 5), (1, 9)]
    pairs = read_pairs([write_pairs(tmp_path / "a.parquet", [([5] * a, [6] * b) for a, b in lengths])])
    rows = by_length(pairs, np.array([4, 2, 0, 3, 1]))
    assert rows.tolist() == [4, 1, 3, 0, 2]
    shares = [Group(rank, 2, torch.device("cpu")).share(rows).tolist() for rank in (0, 1)]
    assert shares == [[4, 3, 2], [1, 0]]
    assert [Group(rank, 3, torch.device("cpu")).share(rows[:1]).tolist() for rank in range(3)] == [
        [4],
        [],
        [],
    ]


def test_a_micro_batch_is_no_wider_than_its_longest_sequence(tmp_path, write_pairs):
    triples = [([5, 5], [6], 0.25), ([7] * 9, [8]), ([9], [9, 9, 4], 0.75)]
    pairs = read_pairs([write_pairs(tmp_path / "a.parquet", triples)])
    batch = collate(pairs, np.array([2, 0]), torch.device("cpu"))
    assert batch.lengths.tolist() == [1, 2, 3, 1]  # chosen of 2 and 0, then rejected of 2 and 0
    assert batch.ids.shape == (4, 3)
    assert [row[:length].tolist() for row, length in zip(batch.ids, batch.lengths, strict=True)] == [
        [9],
        [5, 5],
        [9, 9, 4],
        [6],
    ]
    assert batch.margin.tolist() == [0.75, 0.25]
