"""Packs of small files: where the sorted list is cut."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.data.sources import packs
from rm_assets.data.sources.packs import MAX_BYTES, MAX_FILES, MIN_FILES, SMALL_BYTES, cut_packs, name_runs

Files = dict[str, int | None]


def packed(files: Files) -> list[tuple[str, ...]]:
    """The files of each shard."""
    sources = sorted(files)
    found = []
    for run in name_runs(sources):
        names = sources[run]
        found += [tuple(names[pack]) for pack in cut_packs(names, [files[name] for name in names])]
    return found


sizes = st.one_of(st.none(), st.integers(0, SMALL_BYTES))


@given(st.dictionaries(st.text("ab/:0", min_size=1, max_size=12), sizes, max_size=300))
def test_every_file_is_in_one_pack_in_order_and_packs_keep_their_limits(files: Files) -> None:
    shards = packed(files)
    assert [source for shard in shards for source in shard] == sorted(files)
    for shard in shards:
        given_sizes = [files[source] for source in shard]
        assert len(shard) == 1 or MIN_FILES <= len(shard) <= MAX_FILES
        assert len(shard) == 1 or None not in given_sizes
        assert sum(size or 0 for size in given_sizes) <= MAX_BYTES


def names(numbers: Sequence[int]) -> list[str]:
    return [f"{number // 100:04d}/{number:06d}.jsonl" for number in numbers]


@pytest.mark.parametrize("size", [700, 20_000, SMALL_BYTES])
def test_a_file_that_comes_changes_one_pack_or_two(size: int) -> None:
    draw = random.Random(size)
    files: Files = dict.fromkeys(names(range(0, 8_000, 4)), size)
    before = set(packed(files))
    numbers = []
    for source in names([number + 1 for number in draw.sample(range(0, 8_000, 4), 60)]):
        new = set(packed({**files, source: size})) - before
        assert any(source in shard for shard in new)
        numbers.append(sum(len(shard) > 1 for shard in new))
    # a name that cuts parts one pack into two; a pack at its limit is now and then cut in another place
    assert sum(numbers) / len(numbers) < 1.5
    assert max(numbers) <= 4


def test_a_file_that_goes_or_is_no_longer_small_changes_its_own_pack() -> None:
    files: Files = dict.fromkeys(names(range(2000)), 700)
    shards = packed(files)
    for source in names(range(100, 2000, 190)):
        [own] = [shard for shard in shards if source in shard]
        grown: Files = {**files, source: None}
        gone = {name: size for name, size in files.items() if name != source}
        assert {name for shard in set(packed(grown)) - set(shards) for name in shard} <= set(own)
        changed = {name for shard in set(packed(gone)) - set(shards) for name in shard}
        neighbours = shards[max(shards.index(own) - 1, 0) : shards.index(own) + 2]
        assert changed <= {name for shard in neighbours for name in shard}


def test_ten_thousand_files_make_about_a_hundred_packs() -> None:
    shards = packed(dict.fromkeys(names(range(10_000)), 700))
    assert 60 <= sum(len(shard) > 1 for shard in shards) <= 120
    assert sum(len(shard) == 1 for shard in shards) <= 50


def test_about_one_name_in_a_hundred_and_twenty_eight_begins_a_run() -> None:
    sources = names(range(10_000))
    runs = list(name_runs(sources))
    # 78 of a binomial number, whose standard deviation is 8.8; the sizes of the files do not count
    assert abs(len(runs) - 78) < 4 * 8.8
    assert [place for run in runs for place in range(run.start, run.stop)] == list(range(10_000))
    # the name of the first file cuts off nothing, whatever it is
    assert all(list(name_runs([source])) == [slice(0, 1)] for source in sources[:1000])


def test_large_files_are_not_packed_however_many_there_are() -> None:
    assert packed(dict.fromkeys(names(range(20)), None)) == [(name,) for name in names(range(20))]


def test_a_few_files_are_not_packed() -> None:
    assert packed(dict.fromkeys(names(range(MIN_FILES - 1)), 700)) == [(name,) for name in names(range(MIN_FILES - 1))]


def test_a_pack_has_no_more_text_than_a_shard_may_have() -> None:
    names_of_files = names(range(64))
    shards = list(cut_packs(names_of_files, [100] * 64, max_bytes=2000))
    assert {shard.stop - shard.start for shard in shards} <= {1, *range(MIN_FILES, 21)}
    assert max(shard.stop - shard.start for shard in shards) >= MIN_FILES
    assert len(list(cut_packs(names_of_files, [3000] * 64, max_bytes=2000))) == 64


def lengths(number: int, size: int, max_bytes: int = MAX_BYTES) -> list[int]:
    """The numbers of files in the packs of one run of equal files."""
    packs_of_run = cut_packs(names(range(number)), [size] * number, max_bytes)
    return [pack.stop - pack.start for pack in packs_of_run]


def test_a_pack_may_reach_each_of_its_limits() -> None:
    assert lengths(MIN_FILES, 700) == [MIN_FILES]
    assert lengths(MAX_FILES, 700) == [MAX_FILES]
    assert len(lengths(MAX_FILES + 1, 700)) > 1
    assert lengths(64, 100, max_bytes=6400) == [64]
    assert len(lengths(64, 100, max_bytes=6399)) > 1
    assert lengths(MIN_FILES, 100, max_bytes=800) == [MIN_FILES]
    assert lengths(MIN_FILES, 100, max_bytes=799) == [1] * MIN_FILES
    assert lengths(MAX_BYTES // SMALL_BYTES, SMALL_BYTES, max_bytes=10 * MAX_BYTES) == [32]
    assert len(lengths(MAX_BYTES // SMALL_BYTES + 1, SMALL_BYTES, max_bytes=10 * MAX_BYTES)) > 1


def test_a_pack_that_is_too_large_is_cut_so_that_neither_part_is_too_small() -> None:
    for start in range(0, 1600, 16):
        sources = names(range(start, start + 16))
        assert list(cut_packs(sources, [100] * 16, max_bytes=1500)) == [slice(0, 8), slice(8, 16)]
        several = [pack.stop - pack.start for pack in cut_packs(names(range(start, start + 24)), [100] * 24, 1600)]
        assert len(several) > 1 and min(several) >= MIN_FILES


def test_no_pack_spans_the_evaluation_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejects are sorted by source, theirs too."""
    monkeypatch.setattr(packs, "_FILES_PER_CUT", 10**9)
    first, second = [f"a{number}" for number in range(10, 20)], [f"f{number}" for number in range(10, 20)]
    assert packed(dict.fromkeys([*first, *second], 700)) == [tuple(first), tuple(second)]
