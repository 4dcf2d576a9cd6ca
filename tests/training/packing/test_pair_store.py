import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_pairs import padded_row

from rm_assets.data.tables.schemas import PADDED
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.packing.pair_store import open_store
from rm_assets.training.packing.pairs import common_prefix


def opened(directory, paths, snapshot="s"):
    return open_store(directory / "scratch", snapshot, {"train": [str(path) for path in paths]})["train"]


def test_padding_is_found_by_length_whatever_id_it_has(tmp_path, write_pairs):
    rows = [padded_row(0, [0, 9, 0], [7], 0.5, filler=0), padded_row(1, [4, 5], [4, 7, 8, 9], filler=7)]
    pairs = opened(tmp_path, [write_pairs(tmp_path / "a.parquet", rows)])
    assert pairs.sequences.ids.tolist() == [0, 9, 0, 7, 4, 5, 4, 7, 8, 9]
    assert pairs.sequences.offsets.tolist() == [0, 3, 4, 6, 10]
    assert (pairs.chosen.tolist(), pairs.rejected.tolist()) == ([0, 2], [1, 3])
    assert (pairs.ranking.tolist(), pairs.prefix.tolist()) == ([0, 1], [0, 1])
    assert pairs.margin.tolist() == [0.5, 0.0]
    assert pairs.keys.column("line").to_pylist() == [1, 2]
    assert pairs.pair_ids(np.array([1])) == ["pair1"]


def test_four_replies_are_six_pairs_and_four_sequences(tmp_path, write_pairs):
    replies = [[7, 8, 3], [7, 8, 4, 4], [7, 8, 3, 5], [7, 8, 6]]
    pairs = [(replies[i], replies[j]) for i in range(4) for j in range(i + 1, 4)]
    rows = [padded_row(n, *pair) | {"line": 5, "prompt_key": "p"} for n, pair in enumerate(pairs)]
    rows.append(padded_row(6, *pairs[0]) | {"line": 5, "prompt_key": "another"})
    # a ranking may go on in the next row group, and in the next file
    paths = [
        write_pairs(tmp_path / "a.parquet", rows[:4], row_group_size=2),
        write_pairs(tmp_path / "b.parquet", rows[4:]),
    ]
    found = opened(tmp_path, paths)
    assert len(found.sequences) == 6
    assert found.ranking.tolist() == [0] * 6 + [1]
    assert found.prefix.tolist() == [2, 2]
    assert found.chosen.tolist() == [0, 0, 0, 1, 1, 2, 4]
    assert found.rejected.tolist() == [1, 2, 3, 2, 3, 3, 5]


@pytest.mark.parametrize(
    ("first", "second", "prefix"),
    [([7, 8, 9], [7, 8, 5, 9], 2), ([7, 8], [7, 8, 9], 2), ([1], [2], 0), ([], [1], 0), ([3], [3], 1)],
)
def test_the_common_prefix_ends_at_the_first_difference(first, second, prefix):
    assert common_prefix(np.array(first, np.int32), np.array(second, np.int32)) == prefix


ids = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(
    pairs=st.lists(st.tuples(ids, ids, st.floats(-2, 2, width=32), st.integers(1, 2)), max_size=9),
    row_group_size=st.integers(1, 4),
    cut=st.integers(0, 9),
)
def test_what_is_opened_is_what_was_written(tmp_path_factory, pairs, row_group_size, cut):
    directory = tmp_path_factory.mktemp("pairs")
    paths = []
    for part in (pairs[:cut], pairs[cut:]):
        paths.append(str(directory / f"{len(paths)}.parquet"))
        rows = [padded_row(n, *pair[:3]) | {"line": pair[3], "prompt_key": ""} for n, pair in enumerate(part)]
        pq.write_table(pa.Table.from_pylist(rows, schema=PADDED), paths[-1], row_group_size=row_group_size)
    found = opened(directory, paths)
    assert len(found) == len(pairs)
    assert found.keys.num_rows == len(pairs)
    for row, (chosen, rejected, margin, _) in enumerate(pairs):
        sides = [found.sequences[number].tolist() for number in (found.chosen[row], found.rejected[row])]
        assert sides == [chosen, rejected]
        assert found.margin[row] == np.float32(margin)
        prefix = int(found.prefix[found.ranking[row]])
        assert chosen[:prefix] == rejected[:prefix]
        assert prefix < min(len(chosen), len(rejected))


def test_no_files_are_no_pairs(tmp_path):
    pairs = opened(tmp_path, [])
    assert (len(pairs), len(pairs.sequences), len(pairs.prefix)) == (0, 0, 0)
    assert pairs.keys.column_names == ["source", "line", "pair_id", "prompt_key"]


@pytest.mark.parametrize("length", [0, 4, -1])
def test_a_length_that_the_row_does_not_have_is_an_error_with_the_pair(tmp_path, write_pairs, length):
    path = write_pairs(tmp_path / "a.parquet", [padded_row(0, [4, 5, 6], [7]) | {"chosen_length": length}])
    with pytest.raises(TrainingError, match=f"chosen_length is {length} in a row of 3 ids, pair 'pair0'"):
        opened(tmp_path, [path])
    assert list((tmp_path / "scratch").iterdir()) == []  # nothing half made is left behind


def test_a_file_of_another_stage_is_an_error(tmp_path):
    pq.write_table(pa.table({"source": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(TrainingError, match="has no column 'line'"):
        opened(tmp_path, [tmp_path / "a.parquet"])


def test_no_flipped_bit_of_a_file_is_trained_on(tmp_path, write_pairs):
    path = Path(write_pairs(tmp_path / "a.parquet", [([4, 5, 6], [4, number]) for number in range(7, 30)]))
    content, chance = path.read_bytes(), random.Random(0)
    sha256 = {str(path): hashlib.sha256(content).hexdigest()}

    def sequences():
        found = open_store(tmp_path / "scratch", "s", {"train": [str(path)], "test": []}, sha256)
        return found["train"].sequences.ids.tolist()

    for _ in range(50):
        place = chance.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :])
        with pytest.raises(
            TrainingError, match=r"a.parquet' is damaged \(its sha256 is .*materialize padded_pairs again"
        ):
            sequences()
    path.write_bytes(content)
    assert sequences()[:4] == [4, 5, 6, 4]


def test_a_job_whose_files_moved_knows_their_hashes(make_job):
    job = make_job()
    [train] = job.splits["train"]
    moved = job.model_copy(update={"sha256": {train: "abc"}}).with_paths(lambda path: f"/there{path}", "/output")
    assert moved.splits["train"] == [f"/there{train}"]
    assert moved.sha256 == {f"/there{train}": "abc"}


def test_a_sound_store_is_used_again_and_another_snapshot_gets_its_own(tmp_path, write_pairs):
    path = write_pairs(tmp_path / "a.parquet", [([4, 5], [4, 6])])
    opened(tmp_path, [path])
    [store] = (tmp_path / "scratch").iterdir()
    made = (store / "manifest.json").stat().st_mtime_ns
    assert set(json.loads((store / "manifest.json").read_text())["files"]) >= {"train/ids", "train/keys.arrow"}
    opened(tmp_path, [path])
    assert (store / "manifest.json").stat().st_mtime_ns == made
    opened(tmp_path, [path], snapshot="t")
    assert len(list((tmp_path / "scratch").iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flip", "manifest", "file"])
def test_a_damaged_store_is_made_anew(tmp_path, write_pairs, damage):
    path = write_pairs(tmp_path / "a.parquet", [([4, 5], [4, 6])])
    opened(tmp_path, [path])
    [store] = (tmp_path / "scratch").iterdir()
    file = store / "train" / "ids"
    sound = file.read_bytes()
    if damage == "cut":
        file.write_bytes(sound[:-1])
    elif damage == "flip":
        file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    elif damage == "manifest":
        (store / "manifest.json").unlink()
    else:
        file.unlink()
    assert opened(tmp_path, [path]).sequences.ids.tolist() == [4, 5, 4, 6]
    assert file.read_bytes() == sound
