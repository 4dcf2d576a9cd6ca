"""Small files that share shards: nothing differs but the number of files in the storage."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support import age, plain_row, rejects, rows, run_stages, silent, violations, write_lines

from rm_assets.data.compute import engine
from rm_assets.data.sources import packs
from rm_assets.data.stages import raw as raw_stage
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.rejects import publish_rejects
from rm_assets.data.storage.publication import Publication
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings
from rm_assets.trace import trace

NUM_FILES = 12


def name(number: int) -> str:
    return f"{number:02d}.jsonl"


@pytest.fixture
def many_files(settings: Settings) -> Settings:
    """Files of two pairs each, which make one pack."""
    for number in range(NUM_FILES):
        lines = [plain_row(10 * number), plain_row(10 * number + 1)]
        write_lines(Path(settings.annotations_path) / name(number), lines)
    age(Path(settings.annotations_path))
    return settings


def contents(stages: dict[Stage, Snapshot]) -> dict[Stage, list[dict[str, Any]]]:
    """All rows; those of the splits, which are files of their own, by source and line."""
    found = {stage: rows(snapshot) for stage, snapshot in stages.items()}
    found[Stage.PADDED].sort(key=lambda row: (row["source"], row["line"]))
    return found


def unpacked(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> dict[Stage, Snapshot]:
    """What a shard for each file gives, in a storage of its own."""
    with monkeypatch.context() as patch:
        patch.setattr(packs, "MIN_FILES", 10**9)
        return run_stages(settings.model_copy(update={"storage": f"{settings.storage}-unpacked"}))


def test_files_in_a_pack_give_the_rows_that_they_give_alone(
    many_files: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(many_files.annotations_path)
    write_lines(directory / name(3), [b"\xff", plain_row(0), {"prompt": "p"}, b"", *map(plain_row, range(500, 530))])
    write_lines(directory / name(4), [plain_row(500), {**plain_row(41), "chosen": "x", "rejected": "x"}])
    write_lines(directory / name(5), [plain_row(1), plain_row(50, prompt="long " * 2000)])
    (directory / name(6)).write_bytes(b"")
    together, alone = run_stages(many_files), unpacked(many_files, monkeypatch)
    assert [len(snapshot.manifest.shards) for snapshot in together.values()] == [1] * 5
    assert [len(snapshot.manifest.shards) for snapshot in alone.values()] == [NUM_FILES - 1] * 5
    assert contents(together) == contents(alone)
    for stage, snapshot in together.items():
        assert sorted(rejects(snapshot)) == sorted(rejects(alone[stage]))
        assert snapshot.manifest.num_rows() == alone[stage].manifest.num_rows()
    assert set(violations(together).values()) == {0}
    gathered = [publish_rejects(_in(many_files, stages), stages, silent) for stages in (together, alone)]
    assert rows(gathered[0]) == rows(gathered[1])
    assert len({row["reason"] for row in rows(gathered[0])}) >= 5
    places = [(row["source"], row["line"]) for row in rows(together[Stage.TOKENIZED])]
    assert places == sorted(places)


def _in(settings: Settings, stages: dict[Stage, Snapshot]) -> Settings:
    storage = stages[Stage.RAW].directory.parent.parent
    return settings.model_copy(update={"storage": str(storage)})


def test_a_law_counts_by_file_within_a_pack(many_files: Settings) -> None:
    """A row too many of one file does not make up for one too few of another."""
    stages = run_stages(many_files)
    [shard] = stages[Stage.FLATTENED].manifest.shards
    shard.sources[name(3)]["num_in"] += 1
    shard.sources[name(4)]["num_in"] -= 1
    assert violations(stages)["flattened_conversations: pairs not read"] == 2


# --- changes -------------------------------------------------------------------------------------------------


def test_unchanged_files_are_not_opened_and_compute_nothing(
    many_files: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_stages(many_files)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file whose stamp is unchanged was opened")

    monkeypatch.setattr(raw_stage, "open_annotation_file", refuse)
    second = run_stages(many_files)
    assert [snapshot.num_new_shards for snapshot in second.values()] == [0] * 5
    assert {stage: s.name for stage, s in first.items()} == {stage: s.name for stage, s in second.items()}


@pytest.mark.parametrize("number", [0, 7, NUM_FILES - 1])
def test_a_changed_file_computes_its_pack_alone(many_files: Settings, number: int) -> None:
    directory = Path(many_files.annotations_path)
    for other in range(10):
        write_lines(directory / f"z{other}.jsonl", [plain_row(700 + other)])
    write_lines(directory / "m.jsonl", [plain_row(n, chosen="long " * 99) for n in range(300, 500)])  # parts the packs
    first = run_stages(many_files)
    assert [len(snapshot.manifest.shards) for snapshot in first.values()] == [3] * 5
    write_lines(directory / name(number), [plain_row(999)])
    second = run_stages(many_files)
    assert [snapshot.num_new_shards for snapshot in second.values()] == [1] * 5
    kept = {shard.key for shard in first[Stage.PADDED].manifest.shards}
    assert len(kept & {shard.key for shard in second[Stage.PADDED].manifest.shards}) == 2


def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of two to five files, cut often."""
    monkeypatch.setattr(packs, "MIN_FILES", 2)
    monkeypatch.setattr(packs, "MAX_FILES", 5)
    monkeypatch.setattr(packs, "_FILES_PER_CUT", 4)
    monkeypatch.setattr(raw_stage, "SMALL_BYTES", 1000)


CONTENTS: list[Callable[[int], list[object]]] = [
    lambda number: [plain_row(number)],
    lambda number: [plain_row(number + place) for place in range(4)],
    lambda number: [plain_row(number + place) for place in range(30)],  # not small
    lambda number: [],
    lambda number: [{"wrong": number}, plain_row(number)],  # held back
    lambda number: [b"\xff", plain_row(number)],
]
Change = tuple[int, str, Callable[[int], list[object]]]


def changes(num_files: int) -> st.SearchStrategy[Change]:
    kinds = st.sampled_from(["write", "remove", "rename"])
    return st.tuples(st.integers(0, num_files - 1), kinds, st.sampled_from(CONTENTS))


@hypothesis_settings(max_examples=4, deadline=None)
@given(st.lists(st.lists(changes(14), min_size=1, max_size=6), min_size=2, max_size=3))
def test_any_order_of_changes_ends_where_a_fresh_storage_does(
    tmp_path_factory: pytest.TempPathFactory, turns: list[list[Change]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        small_packs(patch)
        check_changes(tmp_path_factory.mktemp("changes"), 14, turns)


@pytest.mark.soak
@hypothesis_settings(max_examples=3, deadline=None)
@given(st.lists(st.lists(changes(1000), min_size=5, max_size=40), min_size=2, max_size=3))
def test_any_order_of_changes_to_a_thousand_files_ends_where_a_fresh_storage_does(
    tmp_path_factory: pytest.TempPathFactory, turns: list[list[Change]]
) -> None:
    """With packs as they are; half of the files are there at first."""
    check_changes(tmp_path_factory.mktemp("changes"), 1000, turns)


def check_changes(home: Path, num_files: int, turns: list[list[Change]]) -> None:
    settings = Settings(annotations=str(home / "in"), storage=str(home / "storage"), num_workers=1)
    for number in range(0, num_files, 2):
        write_lines(home / "in" / name(number), [plain_row(100 * number)])
    write_lines(home / "in" / "always.jsonl", [plain_row(5)])
    run_stages(settings)
    for turn in turns:
        for number, kind, content in turn:
            path = home / "in" / name(number)
            if kind == "write":
                write_lines(path, content(100 * number))
            elif kind == "remove":
                path.unlink(missing_ok=True)
            elif path.exists():
                path.rename(path.with_name(name((number + 5) % num_files)))
        age(home / "in")
        stages = run_stages(settings)
    fresh = run_stages(settings.model_copy(update={"storage": str(home / "fresh")}))
    assert {stage: s.name for stage, s in stages.items()} == {stage: s.name for stage, s in fresh.items()}
    assert {stage: s.manifest.shards for stage, s in stages.items()} == {s: f.manifest.shards for s, f in fresh.items()}
    assert set(violations(stages).values()) == {0}


def test_a_storage_of_single_files_is_packed_like_a_new_one(
    many_files: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(packs, "MIN_FILES", 10**9)
        before = run_stages(many_files)
    # stamps as they were before files were packed
    stamps = Path(many_files.storage) / Stage.RAW / "stamps.json"
    old = {
        source: {"stamp": known["stamp"], "keys": known["keys"]}
        for source, known in json.loads(stamps.read_text()).items()
    }
    stamps.write_text(json.dumps(old))
    packed = run_stages(many_files)
    fresh = run_stages(many_files.model_copy(update={"storage": str(tmp_path / "fresh")}))
    assert {stage: s.name for stage, s in packed.items()} == {stage: s.name for stage, s in fresh.items()}
    assert contents(packed) == contents(before)  # the old snapshot is still there


# --- verdicts on one file ------------------------------------------------------------------------------------


def test_a_file_that_is_held_back_costs_its_neighbours_nothing(
    many_files: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_stages(many_files)
    write_lines(Path(many_files.annotations_path) / name(7), [plain_row(70), {"wrong": 1}])
    stages = run_stages(many_files)
    assert list(stages[Stage.VALIDATED].manifest.facts["held_back"]) == [name(7)]
    assert rejects(stages[Stage.VALIDATED]) == [(name(7), 1, "held_back_file"), (name(7), 2, "unknown_format")]
    for stage in list(Stage)[1:]:
        kept = [row for row in contents(before)[stage] if row["source"] != name(7)]
        assert contents(stages)[stage] == kept
    assert contents(stages) == contents(unpacked(many_files, monkeypatch))
    assert set(violations(stages).values()) == {0}


def test_a_damaged_file_in_a_pack_is_a_reject_at_line_0(many_files: Settings) -> None:
    before = run_stages(many_files)
    damaged = gzip.compress(b"".join(json.dumps(plain_row(n)).encode() + b"\n" for n in range(50)))[:-20]
    (Path(many_files.annotations_path) / f"{name(7)}.gz").write_bytes(damaged)
    stages = run_stages(many_files)
    assert [len(snapshot.manifest.shards) for snapshot in stages.values()] == [1] * 5
    assert rejects(stages[Stage.RAW]) == [(f"{name(7)}.gz", 0, "damaged_archive")]
    assert contents(stages) == contents(before)
    assert set(violations(stages).values()) == {0}
    [line, *found] = trace(Path(many_files.storage), f"{name(7)}.gz", "1")
    assert line == f"{name(7)}.gz, line 1"
    assert "rejected, damaged_archive" in found[0]


def test_a_line_in_a_pack_is_traced(many_files: Settings) -> None:
    run_stages(many_files)
    [line, *found] = trace(Path(many_files.storage), name(7), "2")
    assert line == f"{name(7)}, line 2"
    assert "What is 71 plus one?" in found[0]
    assert len(found) == 5


def test_rules_for_some_files_hold_for_those_of_a_pack(many_files: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Path(many_files.annotations_path)
    for number in (3, 4):
        own = {"prompt": f"q{number}", "winner": "a", "loser": "b"}
        write_lines(directory / name(number), [own])
    columns = {"03*": {"chosen": "winner", "rejected": "loser"}}
    settings = many_files.model_copy(update={"columns": columns})
    stages = run_stages(settings)
    assert list(stages[Stage.VALIDATED].manifest.facts["held_back"]) == [name(4)]
    assert [row["line"] for row in rows(stages[Stage.VALIDATED]) if row["source"] == name(3)] == [1]
    assert contents(stages) == contents(unpacked(settings, monkeypatch))


def test_two_line_files_are_paired_within_each_file_of_a_pack(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def side(number: int, reply: str) -> dict[str, str]:
        return {"text": f"\n\nHuman: Question {number}?\n\nAssistant: {reply}"}

    for number in range(12):
        lines = [side(number, "Yes."), side(number, "No.")]
        if number == 5:
            lines.append(side(50, "Alone."))
        if number == 6:  # lost among the pairs of one prompt
            lines = [side(6, "Yes."), side(6, "No."), side(6, "Why?"), side(6, "So."), side(6, "Then.")]
        write_lines(Path(settings.annotations_path) / name(number), lines)
    settings = settings.model_copy(update={"two_line_files": True, "max_malformed_fraction": 0.5})
    stages = run_stages(settings)
    assert len(stages[Stage.RAW].manifest.shards) == 1
    assert list(stages[Stage.VALIDATED].manifest.facts["held_back"]) == [name(6)]
    alone = unpacked(settings, monkeypatch)
    assert contents(stages) == contents(alone)
    assert rejects(stages[Stage.VALIDATED]) == rejects(alone[Stage.VALIDATED])
    assert set(violations(stages).values()) == {0}


def test_tools_are_compared_with_the_line_of_their_own_file(settings: Settings) -> None:
    for number in range(10):
        tool = {"type": "function", "function": {"name": f"f{number}", "parameters": {"b": 1, "a": number}}}
        row = plain_row(number, tools=[tool]) if number % 2 else plain_row(number)
        write_lines(Path(settings.annotations_path) / name(number), [row])
    stages = run_stages(settings)
    assert len(stages[Stage.RAW].manifest.shards) == 1
    assert violations(stages)["validated_preferences: lines with other tools or calls"] == 0
    assert sum(bool(row["tools"]) for row in rows(stages[Stage.VALIDATED])) == 5


# --- crashes, damage, several machines ------------------------------------------------------------------------


def test_a_pack_of_a_killed_run_is_found_again(many_files: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run_stages(many_files.model_copy(update={"storage": f"{many_files.storage}-undisturbed"}))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Publication, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            publish_raw(many_files, silent)
    with monkeypatch.context() as patch:
        patch.setattr(raw_stage, "write_shard", killed)
        publish_raw(many_files, silent)
    stages = run_stages(many_files)
    assert {stage: s.name for stage, s in stages.items()} == {stage: s.name for stage, s in expected.items()}


def test_damage_to_a_pack_is_found_once_and_repaired(many_files: Settings) -> None:
    before = run_stages(many_files)
    for snapshot in before.values():
        for path in snapshot.paths():
            path.write_bytes(b"x" * path.stat().st_size)
    told: list[str] = []
    settings = many_files.model_copy(update={"verify": "full"})
    raw = publish_raw(settings, told.append)
    assert len(told) == 1
    assert told[0].endswith(f"its shard of '{name(0)}' to '{name(NUM_FILES - 1)}' is computed again")
    stages = run_stages(settings)
    assert stages[Stage.RAW].name == raw.name
    assert {stage: s.name for stage, s in stages.items()} == {stage: s.name for stage, s in before.items()}
    assert len(rows(stages[Stage.TOKENIZED])) == 2 * NUM_FILES


def test_processes_compute_the_same_packs(
    many_files: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_packs(monkeypatch)
    one = run_stages(many_files)
    assert len(one[Stage.RAW].manifest.shards) > 3
    monkeypatch.setattr(engine, "_SMALL_BYTES", 0)
    two = run_stages(many_files.model_copy(update={"num_workers": 2, "storage": str(tmp_path / "other")}))
    assert {stage: s.name for stage, s in one.items()} == {stage: s.name for stage, s in two.items()}
