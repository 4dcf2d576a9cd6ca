"""Promotions in real runs on one storage: a model of shuffled labels, a good one, shuffled ones again, one by hand."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from support import QUICK, polite_rows, write_lines

SELECTION = "*promoted_reward_model"
SETTINGS = QUICK | {"epochs": 4, "batch_pairs": 16, "learning_rate": 3e-3, "keep_snapshots": 1}
del SETTINGS["promotion_requires"]  # the default is meant


def metadata(result: Any, asset: str = "promoted_reward_model") -> dict[str, Any]:
    [event] = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in event.metadata.items()}


def data_version(result: Any) -> str:
    [event] = result.asset_materializations_for_node("promoted_reward_model")
    return event.tags["dagster/data_version"]


def check(result: Any) -> Any:
    return next(c for c in result.get_asset_check_evaluations() if c.check_name == "newest_model_is_promoted")


def errors(result: Any) -> str:
    return "\n".join(event.step_failure_data.error_display_string for event in result.get_step_failure_events())


def shuffled(rows: list[object]) -> list[object]:
    """The same pairs, of which a coin decides the label."""
    generator = random.Random(1)
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    return [{swapped.get(n, n): v for n, v in row.items()} if generator.random() < 0.5 else row for row in rows]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A directory, and settings that keep everything in it."""
    directory = tmp_path_factory.mktemp("promotion")
    return directory, {
        "annotations": str(directory / "a.jsonl"),
        "storage": str(directory / "storage"),
        **SETTINGS,
    }


@pytest.fixture(scope="module")
def first_of_noise(site: tuple[Path, dict[str, Any]], run_graph) -> Any:
    """The result of the storage's first run, on shuffled labels."""
    directory, settings = site
    write_lines(directory / "a.jsonl", shuffled(polite_rows(110)))
    return run_graph(selection=SELECTION, **settings)


@pytest.fixture(scope="module")
def runs(site: tuple[Path, dict[str, Any]], first_of_noise: Any, run_graph) -> tuple[Path, dict[str, Any], Any, Any]:
    """Storage, settings, and the results of a run on good labels and of one on shuffled labels."""
    directory, settings = site
    write_lines(directory / "a.jsonl", polite_rows(110))
    good = run_graph(selection=SELECTION, **settings)
    too_high = run_graph(selection=SELECTION, **settings, fail_below_accuracy=1.0)  # nothing is trained anew
    assert good.success and too_high.success, "the labels follow one word"
    write_lines(directory / "a.jsonl", shuffled(polite_rows(110)))
    return directory / "storage", settings, good, run_graph(selection=SELECTION, **settings)


def test_a_first_model_that_is_not_above_chance_is_not_promoted_and_the_run_fails(first_of_noise) -> None:
    assert not first_of_noise.success
    assert not first_of_noise.asset_materializations_for_node("promoted_reward_model")
    told = errors(first_of_noise)
    assert "no model is promoted, and none was before: the newest model fails what promotion_requires" in told
    assert "accuracy_is_above_chance: accuracy 0." in told and "not clearly better than chance" in told


def test_a_model_below_fail_below_accuracy_never_comes_before_the_promotion(runs, run_graph) -> None:
    _, settings, _, _ = runs
    result = run_graph(selection="reward_model_report*", **settings, fail_below_accuracy=0.999)
    assert not result.success
    assert not result.asset_materializations_for_node("promoted_reward_model")
    assert [event.asset_key.path for event in result.get_asset_materialization_events()] == [["reward_model_report"]]


def test_the_setting_says_which_checks_forbid_a_promotion(runs, run_graph) -> None:
    _, settings, good, _ = runs
    required = run_graph(selection="promoted_reward_model", **settings, promotion_requires=["model_needs_the_prompt"])
    told = metadata(required)
    assert told["promoted_model"] == metadata(good)["promoted_model"]
    assert told["reason"].startswith("the newest model fails what promotion_requires: model_needs_the_prompt: accuracy")
    free = run_graph(selection="promoted_reward_model", **settings, promotion_requires=[])
    assert "against the champion's" in metadata(free)["reason"]
    assert "accuracy_is_above_chance" in metadata(free)["failed_checks_of_the_report"]


def test_the_first_model_is_promoted(runs) -> None:
    _, _, good, _ = runs
    assert good.success
    told = metadata(good)
    assert (told["verdict"], told["champion_before"]) == ("promoted", "none")
    assert told["promoted_model"] == told["newest_model"]
    assert told["path"] == metadata(good, "reward_model")["path"]
    assert check(good).passed


def test_a_model_of_shuffled_labels_is_not_promoted_and_the_run_succeeds(runs) -> None:
    _, _, good, bad = runs
    assert bad.success
    told = metadata(bad)
    assert told["verdict"] == "not promoted"
    assert "accuracy_is_above_chance" in told["failed_checks_of_the_report"]
    assert told["promoted_model"] == metadata(good)["promoted_model"] != told["newest_model"]
    assert told["path"] == metadata(good)["path"]
    assert data_version(bad) == data_version(good)
    assert not check(bad).passed
    assert check(bad).severity.value == "WARN"
    assert check(bad).description == told["reason"]
    assert "fails what promotion_requires: accuracy_is_above_chance" in told["reason"]


def test_the_champions_files_stay_however_few_snapshots_are_kept(runs) -> None:
    storage, _, good, bad = runs
    for run in (good, bad):
        directory = Path(metadata(run, "reward_model")["path"])
        assert (directory / "golden_scores.json").is_file()
    [manifest] = (storage / "promoted_reward_model").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["inputs"] == {"reward_model": metadata(good)["promoted_model"]}


def test_the_same_question_is_not_asked_twice(runs, run_graph) -> None:
    _, settings, _, bad = runs
    again = run_graph(selection="promoted_reward_model", **settings)
    assert metadata(again)["reason"] == metadata(bad)["reason"]
    assert "scoring" not in "\n".join(str(event) for event in again.all_events)


def test_a_model_is_promoted_by_hand(runs, run_graph) -> None:
    _, settings, good, bad = runs
    newest = metadata(bad)["newest_model"]
    pinned = run_graph(selection="promoted_reward_model", **settings, promoted_model=newest)
    assert metadata(pinned)["promoted_model"] == newest
    assert "by hand" in metadata(pinned)["reason"]
    assert data_version(pinned) != data_version(good)
    back = run_graph(selection="promoted_reward_model", **settings, promoted_model=metadata(good)["promoted_model"])
    assert data_version(back) == data_version(good)
    assert not check(back).passed


def test_a_model_that_is_not_there_cannot_be_promoted(runs, run_graph) -> None:
    _, settings, _, _ = runs
    result = run_graph(selection="promoted_reward_model", **settings, promoted_model="nosuchmodel")
    errors = "\n".join(event.step_failure_data.error_display_string for event in result.get_step_failure_events())
    assert "reward_model 'nosuchmodel' is not in" in errors


def test_a_champion_whose_weights_are_damaged_decides_nothing(runs, run_graph) -> None:
    _, settings, good, _ = runs
    weights = Path(metadata(good, "reward_model")["path"]) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        asked_anew = run_graph(
            selection="promoted_reward_model", **settings, max_rescored_pairs=30, promotion_requires=[]
        )
    finally:
        weights.write_bytes(whole)
    errors = "\n".join(event.step_failure_data.error_display_string for event in asked_anew.get_step_failure_events())
    assert f"{str(weights)!r} is damaged (its sha256 is " in errors
    assert "restore it, or train or promote another model" in errors
