"""The checks of a report at their limits, on figures chosen for it."""

import math
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from rm_assets.data.storage.snapshots import Manifest, Snapshot
from rm_assets.defs.results.metadata import MAX_ROWS
from rm_assets.defs.results.report_checks import REPORT_CHECKS, largest_first, report_checks
from rm_assets.defs.snapshots.reports import WrittenReport
from rm_assets.settings import Settings

FIGURES = {
    "num_pairs": 1234,
    "accuracy": 0.7,
    "accuracy_low": 0.625,
    "accuracy_high": 0.75,
    "longer_wins": 0.45,
    "shorter_wins": 0.55,
    "without_prompt": 0.52,
    "other_prompt": 0.51,
    "difference_length_spearman": 0.125,
}
ABOVE = math.nextafter(0.625, 1)


def checks(
    without: tuple[str, ...] = (),
    rows: tuple[dict[str, Any], ...] = (),
    limits: dict[str, Any] | None = None,
    **figures,
) -> dict[str | None, dg.AssetCheckResult]:
    """The checks of a report with these figures in place of FIGURES, and with these rows of slices."""
    metrics = {name: value for name, value in (FIGURES | figures).items() if name not in without}
    manifest = Manifest(asset="reward_model_report", snapshot="s", identity="", inputs={}, facts={}, shards=())
    names = [*FIGURES][:-1]
    written = WrittenReport(
        snapshot=Snapshot(Path(), manifest),
        metrics=metrics,
        table=pd.DataFrame([{"slice": "all", "value": "all"} | FIGURES, *rows])[["slice", "value", *names]],
        pairs=pd.DataFrame({"split": ["test"]}),
        calibration=None,
        history=[],
        steps=[],
        precision="",
    )
    found = report_checks(written, Settings(**(limits or {})))
    assert [check.check_name for check in found] == [spec.name for spec in REPORT_CHECKS]
    return {check.check_name: check for check in found}


def test_a_good_model_passes_every_check_with_its_figures() -> None:
    found = checks()
    assert all(check.passed and check.severity == dg.AssetCheckSeverity.WARN for check in found.values())
    accuracy = "accuracy 0.700, 95 % interval 0.625 to 0.750"
    assert {name: check.description for name, check in found.items()} == {
        "accuracy_is_above_chance": f"{accuracy}, on 1,234 test pairs",
        "model_beats_length": f"{accuracy}; 'the longer wins' 0.450, 'the shorter wins' 0.550",
        "model_needs_the_prompt": f"{accuracy}; without the prompt 0.520, with another pair's prompt 0.510",
        "scores_do_not_follow_length": "Spearman correlation +0.125 of differences of scores and lengths; "
        "the limit is 0.5",
    }


@pytest.mark.parametrize(
    ("low", "floor", "passed", "severity"),
    [
        (0.5, None, False, "WARN"),
        (0.625, 0.7, True, "WARN"),  # the accuracy is not below it
        (0.625, 0.71, False, "ERROR"),
        (0.5, 0.7, False, "WARN"),
    ],
)
def test_accuracy_below_the_floor_is_an_error_and_at_chance_a_warning(
    low: float, floor: float | None, passed: bool, severity: str
) -> None:
    found = checks(accuracy_low=low, limits={"fail_below_accuracy": floor})["accuracy_is_above_chance"]
    assert (found.passed, found.severity.value) == (passed, severity)
    assert ("not clearly better than chance" in str(found.description)) == (low == 0.5)
    assert str(found.description).endswith("fail_below_accuracy is 0.71") == (floor == 0.71)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("longer_wins", "model_beats_length"),
        ("shorter_wins", "model_beats_length"),
        ("without_prompt", "model_needs_the_prompt"),
        ("other_prompt", "model_needs_the_prompt"),
    ],
)
def test_one_baseline_that_reaches_the_interval_fails_its_check(name: str, check: str) -> None:
    assert checks(**{name: math.nextafter(0.625, 0)})[check].passed
    failed = [found for found in checks(**{name: 0.625}).values() if not found.passed]
    assert [found.check_name for found in failed] == [check]
    assert "not clearly below the model" in str(failed[0].description)
    assert failed[0].metadata[name].value == 0.625


def test_a_baseline_that_was_not_measured_reaches_nothing() -> None:
    found = checks(without=("without_prompt", "other_prompt"), accuracy=0.0, accuracy_low=0.0)
    assert found["model_needs_the_prompt"].passed
    assert "not evaluated without the prompt" in str(found["model_needs_the_prompt"].description)
    assert not found["model_beats_length"].passed


def test_slices_where_a_baseline_comes_near_are_listed() -> None:
    row = {"slice": "subset", "value": "math"} | FIGURES | {"accuracy": 0.61239, "longer_wins": 0.64321}
    [listed] = checks(rows=(row,))["model_beats_length"].metadata["slices_where_a_baseline_comes_near"].value.records
    assert listed.data == {
        "slice": "subset: math",
        "baseline": "longer_wins",
        "pairs": 1234,
        "reaches": 0.643,
        "model": 0.612,
    }


@pytest.mark.parametrize(
    ("correlation", "limit", "passed", "ends"),
    [
        (0.5, 0.5, True, "the limit is 0.5"),
        (-0.5, 0.5, True, "the limit is 0.5"),
        (0.51, 0.5, False, "longer replies score higher. Add pairs whose better reply is not the longer one"),
        (-0.51, 0.5, False, "shorter replies score higher. Add pairs whose better reply is not the shorter one"),
    ],
)
def test_the_limit_of_the_correlation_with_length_is_inclusive(
    correlation: float, limit: float, passed: bool, ends: str
) -> None:
    found = checks(difference_length_spearman=correlation, limits={"max_length_correlation": limit})
    check = found["scores_do_not_follow_length"]
    assert check.passed == passed and str(check.description).endswith(ends)
    assert f"{correlation:+.3f}" in str(check.description)


@pytest.mark.parametrize(("correlation", "ends"), [(0.5, "the limit is 0.5"), (0.51, "see accuracy_is_above_chance")])
def test_of_a_model_at_chance_only_a_correlation_beyond_the_limit_is_too_high(correlation: float, ends: str) -> None:
    found = checks(accuracy_low=0.5, difference_length_spearman=correlation)["scores_do_not_follow_length"]
    assert found.passed == (correlation == 0.5)
    assert str(found.description).endswith(ends)


def test_without_a_correlation_none_is_too_high() -> None:
    found = checks(without=("difference_length_spearman",), limits={"max_length_correlation": 0.0})
    assert found["scores_do_not_follow_length"].passed


def test_rows_keep_their_order_unless_a_table_must_leave_some_out() -> None:
    rows = [{"row": number} for number in range(MAX_ROWS + 1)]
    num_pairs = [1] * MAX_ROWS + [2]
    assert largest_first(rows[1:], num_pairs[1:]) == rows[1:]
    assert largest_first(rows, num_pairs) == [rows[-1], *rows[:-1]]
