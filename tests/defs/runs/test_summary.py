"""The last lines of a successful command: what they say of each kind of run, and when they are printed."""

from collections.abc import Callable
from typing import Any

import click
import dagster as dg
import pytest
from audited import AuditedRun

from rm_assets.defs.results.metadata import table
from rm_assets.defs.runs.summary import (
    BUILT_IN_SAMPLE,
    failed_warnings,
    is_command_of_a_user,
    results_of_failed_run,
    summary,
)

RAW = {"lines": 2010, "annotations": BUILT_IN_SAMPLE}
REASONS = [{"reason": name, "rejects": number} for name, number in zip("abcde", (50, 4, 3, 2, 1), strict=True)]
REJECTS = {"dagster/row_count": 60, "rejects_by_reason": table(REASONS), "path": dg.MetadataValue.path("/r")}
PADDED = {"train_pairs": 1729, "validation_pairs": 102, "test_pairs": 168, "path": dg.MetadataValue.path("/p")}
REPORT = {"accuracy": 0.9351, "accuracy_low": 0.887, "accuracy_high": 0.972, "num_pairs": 1068, "longer_wins": 0.5327}
MODEL = {"path": dg.MetadataValue.path("/m/model"), "trained_now": True}
PROMOTED = {"verdict": "promoted", "reason": "the first model"}
COMMAND, UI = "dagster asset materialize -m rm_assets.definitions --select", "see it in the UI: dagster dev"

Lines = Callable[..., list[str]]


@pytest.fixture
def lines() -> Lines:
    """The summary of a run whose assets record this metadata, and whose checks failed as warnings."""

    def of(
        warnings: tuple[str, ...] = (), error: str = "", lines_of: Any = summary, **shown: dict[str, Any]
    ) -> list[str]:
        def asset(name: str, metadata: dict[str, Any]) -> dg.AssetsDefinition:
            names = [f"check_{number}" for number in range(len(warnings))] if name == "raw_preferences" else []

            @dg.asset(name=name, check_specs=[dg.AssetCheckSpec(check, asset=name) for check in names])
            def made() -> dg.MaterializeResult:
                if error and name == [*shown][-1]:
                    raise ValueError(error)
                results = [
                    dg.AssetCheckResult(
                        passed=False, check_name=check, severity=dg.AssetCheckSeverity.WARN, description=text
                    )
                    for check, text in zip(names, warnings, strict=True)
                ]
                return dg.MaterializeResult(metadata=metadata, check_results=results)

            return made

        with dg.DagsterInstance.ephemeral() as instance:
            assets = [asset(name, metadata) for name, metadata in shown.items()]
            result = dg.materialize(assets, instance=instance, raise_on_error=False)
            return list(lines_of(instance, result.run_id))

    return of


def test_a_whole_run_ends_with_its_result_in_five_lines(lines: Lines) -> None:
    assert lines(
        raw_preferences=RAW,
        padded_pairs=PADDED,
        rejected_annotations=REJECTS,
        reward_model=MODEL,
        reward_model_report=REPORT,
        promoted_reward_model=PROMOTED,
    ) == [
        "result    0.935 of 1,068 test pairs ranked right (95 %: 0.887 to 0.972); the longer reply wins in 0.533",
        "warnings  none",
        "model     /m/model (trained now; promoted); its README.md tells how to use it",
        "rejects   60 rejects of 2,010 lines: 50 a, 4 b, 3 c, 2 d, … (/r)",
        f"next      your own data: RM_ANNOTATIONS=my.jsonl RM_MODEL=Qwen/Qwen3-0.6B {COMMAND} '*'; {UI}",
    ]


def test_a_model_that_is_not_promoted_says_why_and_own_data_lead_to_scoring(lines: Lines) -> None:
    found = lines(
        raw_preferences={**RAW, "annotations": "my.jsonl"},
        reward_model={**MODEL, "trained_now": False},
        promoted_reward_model={"verdict": "not promoted", "reason": "it is worse"},
    )
    assert found[2].startswith("model     /m/model (not trained again: nothing changed; not promoted: it is worse); ")
    assert found[3].startswith("next      score pairs: python -m rm_assets.training.score /m/model pairs.jsonl; ")


def test_a_published_model_is_named_with_its_address(lines: Lines) -> None:
    url, data = (dg.MetadataValue.url(f"https://huggingface.co/{name}") for name in ("me/rm", "datasets/me/data"))
    pushed = {"model_url": url, "model_pushed_now": True, "data_url": data, "data_pushed_now": False}
    found = lines(published_reward_model=pushed)
    expected = "https://huggingface.co/me/rm (pushed now), https://huggingface.co/datasets/me/data (nothing changed)"
    assert f"published {expected}" in found
    del pushed["model_url"]
    assert "published https://huggingface.co/datasets/me/data (nothing changed)" in lines(published_reward_model=pushed)


def test_a_run_of_the_data_alone_ends_with_its_pairs(lines: Lines) -> None:
    assert lines(raw_preferences={"lines": 9, "annotations": "my.jsonl"}, padded_pairs=PADDED) == [
        "result    pairs: 1,729 train, 102 validation, 168 test (/p)",
        "warnings  none",
        f"next      train: {COMMAND} 'reward_model*'; {UI}",
    ]
    [result, *_] = lines(tokenized_pairs={})
    assert result == "result    materialized tokenized_pairs"


def test_each_failed_check_is_a_warning_on_one_short_line(lines: Lines) -> None:
    found = lines(warnings=("held\n back\x1b[31m", "long " * 200), raw_preferences=RAW)
    assert found[1] == r"warnings  check_0: held back\x1b[31m"
    assert found[2].startswith("warnings  check_1: long long") and found[2].endswith(" …")
    assert len(found[2]) < 450


def test_a_failed_run_has_no_summary(lines: Lines) -> None:
    assert lines(error="no", raw_preferences=RAW) == []


def test_a_run_that_failed_after_training_shows_the_model_and_its_accuracy(lines: Lines) -> None:
    shown = {"raw_preferences": RAW, "reward_model": MODEL, "reward_model_report": REPORT, "promoted_reward_model": {}}
    model = "model     /m/model (trained now); its README.md tells how to use it"
    result = "result    0.935 of 1,068 test pairs ranked right (95 %: 0.887 to 0.972); the longer reply wins in 0.533"
    assert lines(error="no", lines_of=results_of_failed_run, **shown) == [result, model]
    del shown["promoted_reward_model"]
    assert lines(error="no", lines_of=results_of_failed_run, **shown) == [model]
    assert lines(error="no", lines_of=results_of_failed_run, padded_pairs=PADDED, reward_model=MODEL) == []


def test_only_the_commands_of_people_print_it() -> None:
    assert not is_command_of_a_user()
    for path, expected in ((("dagster", "asset", "materialize"), True), (("dagster", "api", "execute_run"), False)):
        context = None
        for name in path:
            context = click.Context(click.Command(name), parent=context, info_name=name)
        assert context is not None
        with context:
            assert is_command_of_a_user() is expected


def test_a_real_command_prints_each_line_once_and_ends_with_the_summary(audited: AuditedRun) -> None:
    assert audited.run.returncode == 0, audited.run.stderr
    [result, *warnings, model, _rejects, _next] = audited.run.stdout.splitlines()
    assert result.startswith(f"result    {audited.accuracy:.3f} of ")
    assert warnings and all(line.startswith("warnings  ") for line in warnings)
    assert model.startswith("model     ") and "/model (trained now; promoted)" in model
    told = (audited.run.stdout + audited.run.stderr).splitlines()
    told = [line for line in told if " - still working, " not in line and "pairs done" not in line]  # on a busy machine
    progress = [line.rpartition(" - ")[2] for line in told if "step 1/" in line or "loading torch" in line]
    assert sorted(progress)[:2] == ["loading torch", "loading torch"]  # of the training and of the scoring job
    assert len(progress) == 3
    of_the_run = ("RUN_START", "ENGINE_EVENT", "RUN_SUCCESS")  # without a dagster.yaml; those of steps are hidden
    assert [line for line in told if " DEBUG " in line and not any(name in line for name in of_the_run)] == []


def test_rejects_are_counted_with_up_to_four_reasons(lines: Lines) -> None:
    def rejects(number: int, num_reasons: int) -> dict[str, Any]:
        return {**REJECTS, "dagster/row_count": number, "rejects_by_reason": table(REASONS[:num_reasons])}

    def line(found: list[str]) -> str:
        [line] = [text for text in found if text.startswith("rejects ")]
        return line

    assert line(lines(rejected_annotations=rejects(59, 4))) == "rejects   59 rejects: 50 a, 4 b, 3 c, 2 d (/r)"
    assert line(lines(rejected_annotations=rejects(0, 0))) == "rejects   0 rejects"
    none = lines(raw_preferences={"lines": 1234, "annotations": "my.jsonl"}, rejected_annotations=rejects(0, 0))
    assert line(none) == "rejects   0 rejects of 1,234 lines"


def test_checks_that_passed_or_failed_as_errors_are_no_warnings() -> None:
    outcomes = {"passes": (True, "WARN"), "warns": (False, "WARN"), "fails": (False, "ERROR")}

    @dg.asset(check_specs=[dg.AssetCheckSpec(name, asset="made") for name in outcomes])
    def made() -> dg.MaterializeResult:
        return dg.MaterializeResult(
            check_results=[
                dg.AssetCheckResult(
                    check_name=name, passed=passed, severity=dg.AssetCheckSeverity[severity], description=name
                )
                for name, (passed, severity) in outcomes.items()
            ]
        )

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([made], instance=instance)
        assert list(failed_warnings(instance, result.run_id)) == ["warns: warns"]
