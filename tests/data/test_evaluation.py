"""Evaluation sets: kept apart from training, and what overlaps them kept out of it."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support import plain_row, run_stages, write_lines

from rm_assets.data.evaluation import evaluation_folder, evaluation_name, overlapping_rows, prompt_grams
from rm_assets.data.laws import LAWS
from rm_assets.data.records import Stage
from rm_assets.data.snapshots import REJECTS
from rm_assets.settings import Settings, SettingsError
from rm_assets.settings_loading import load_settings

WORDS = [f"word{number}" for number in range(14)]


def overlap(one: str, other: str) -> bool:
    return bool(prompt_grams([one]) & prompt_grams([other]))


def test_thirteen_words_in_a_row_overlap_and_twelve_do_not() -> None:
    thirteen, twelve = " ".join(WORDS[:13]), " ".join(WORDS[:12])
    assert len(prompt_grams([" ".join(WORDS)])) == 2
    assert overlap(f"Some words before: {thirteen}, and after.", f"{thirteen.upper()}!")
    assert not overlap(f"Some words before: {twelve}, and after.", f"Other words stand here: {twelve} too")


def test_a_short_prompt_overlaps_an_equal_one_only() -> None:
    assert overlap("What is love?", "what is  LOVE")
    assert not overlap("What is love?", "What is love, really?")
    assert prompt_grams(["?!", " "]) == set()


def test_characters_count_where_a_script_has_no_spaces() -> None:
    thirteen = "一二三四五六七八九十百千万"
    assert overlap(f"请问{thirteen}是什么", f"关于{thirteen}的问题")
    assert not overlap(f"请问{thirteen[:12]}是什么意思呢", f"关于{thirteen[:12]}的许多问题啊")


def test_the_words_of_all_user_turns_count_as_one_text() -> None:
    assert prompt_grams(["one two", "three"]) == prompt_grams(["one two three"])


def test_no_sets_overlap_nothing(tmp_path: Path) -> None:
    assert overlapping_rows([tmp_path / "is never read"], {}) == {}


def test_the_name_of_a_set_is_in_the_source() -> None:
    assert evaluation_name("evaluation:held/a/b.jsonl") == "held"
    assert evaluation_folder("evaluation:held/a/b.jsonl") == "evaluation/held"
    assert evaluation_folder("evaluation/held/b.jsonl") == ""


@pytest.fixture
def with_sets(settings: Settings, tmp_path: Path) -> Settings:
    """Ten annotations, of which rows 3 and 4 have the prompts of the two rows of a set."""
    write_lines(Path(settings.annotations_path) / "a.jsonl", [plain_row(n) for n in range(1, 11)])
    held = [plain_row(3, chosen="Four."), plain_row(4, chosen="Five."), plain_row(4, chosen="Five.")]
    write_lines(tmp_path / "held.jsonl", held)
    return settings.model_copy(update={"evaluation_files": {"held": str(tmp_path / "held.jsonl")}})


def test_a_set_is_never_split_or_thinned_and_overlapping_annotations_are_rejects(with_sets: Settings) -> None:
    stages = run_stages(with_sets)
    padded = stages[Stage.PADDED]
    [held] = [pq.read_table(path, partitioning=None) for path in padded.paths("evaluation/held")]
    assert held["line"].to_pylist() == [1, 2, 3]
    rejects = [row for path in padded.paths(REJECTS) for row in pq.read_table(path, partitioning=None).to_pylist()]
    assert [(row["line"], row["reason"], row["detail"]) for row in rejects] == [
        (3, "overlaps_evaluation", "evaluation set 'held'"),
        (4, "overlaps_evaluation", "evaluation set 'held'"),
    ]
    assert padded.manifest.total("num_evaluation") == 3
    parents = dict(zip(list(Stage)[1:], stages.values(), strict=False))
    for stage, laws in LAWS.items():
        parent = parents[stage].manifest if stage in parents else None
        assert {n for law in laws for n in law.violations(stages[stage].manifest, parent).values()} == {0}


def test_with_unchanged_sets_a_second_run_computes_nothing_and_a_changed_set_only_the_padding(
    with_sets: Settings, tmp_path: Path
) -> None:
    run_stages(with_sets)
    assert [snapshot.num_new_shards for snapshot in run_stages(with_sets).values()] == [0] * 5
    write_lines(tmp_path / "held.jsonl", [plain_row(5, chosen="Six.")])
    changed = run_stages(with_sets)
    assert [snapshot.num_new_shards for snapshot in changed.values()] == [1, 1, 1, 1, 2]
    without = run_stages(with_sets.model_copy(update={"evaluation_files": {}}))
    assert without[Stage.PADDED].manifest.num_rows() == 10


def test_sets_come_as_json_from_the_environment() -> None:
    given = json.dumps({"held": "held.jsonl"})
    assert load_settings({}, {"RM_EVALUATION_FILES": given}).evaluation_files == {"held": "held.jsonl"}
    with pytest.raises(SettingsError, match=r"evaluation_files \(or RM_EVALUATION_FILES\)"):
        load_settings({}, {"RM_EVALUATION_FILES": "held.jsonl"})
    with pytest.raises(SettingsError, match=r"the name '\.\./x'"):
        load_settings({"evaluation_files": {"../x": "held.jsonl"}}, {})


def test_a_set_that_is_not_there_is_named(with_sets: Settings, tmp_path: Path) -> None:
    missing = with_sets.model_copy(update={"evaluation_files": {"held": str(tmp_path / "gone.jsonl")}})
    with pytest.raises(SettingsError, match=r"evaluation_files \(or RM_EVALUATION_FILES\), 'held', is .* no such file"):
        run_stages(missing)
