"""The checks of reward_model_report: whether to trust the accuracy, and which null baselines explain it as well."""

from typing import Any

import dagster as dg

from rm_assets.defs.results.metadata import MAX_ROWS, numbers, table
from rm_assets.defs.snapshots.reports import ASSET, WrittenReport
from rm_assets.settings import Settings

_NOT_JUDGED = "That says little, as the accuracy itself is not above chance: see accuracy_is_above_chance"
"""In place of advice about what else could explain the accuracy."""

REPORT_CHECKS = [
    dg.AssetCheckSpec(
        "accuracy_is_above_chance",
        asset=ASSET,
        description="The accuracy's 95 % interval is above 0.5, and the accuracy is not below fail_below_accuracy.",
        blocking=True,  # its severity decides: a warning, unless fail_below_accuracy is set and not reached
    ),
    dg.AssetCheckSpec(
        "model_beats_length",
        asset=ASSET,
        description="The accuracy's 95 % interval is above 'the longer wins' and above 'the shorter wins'.",
    ),
    dg.AssetCheckSpec(
        "model_needs_the_prompt",
        asset=ASSET,
        description="The accuracy's 95 % interval is above what the model reaches without the prompt, and with "
        "another pair's prompt.",
    ),
    dg.AssetCheckSpec(
        "scores_do_not_follow_length",
        asset=ASSET,
        description="Within pairs, differences of scores and of lengths have a Spearman correlation of at most "
        "max_length_correlation.",
    ),
]


def report_checks(written: WrittenReport, settings: Settings) -> list[dg.AssetCheckResult]:
    """The results of the checks, in the order of `REPORT_CHECKS`."""
    return [
        _accuracy(written, settings.fail_below_accuracy),
        _length(written),
        _prompt(written),
        _correlation(written.metrics, settings.max_length_correlation),
    ]


def slice_name(row: dict[str, Any]) -> str:
    """A row of the report's table in words, such as `subset: math`, or `all`."""
    return str(row["value"] if row["slice"] == "all" else f"{row['slice']}: {row['value']}")


def interval_text(row: dict[str, Any]) -> str:
    """The 95 % interval of an accuracy, such as `0.512 to 0.634`."""
    return f"{row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}"


def largest_first(rows: list[dict[str, Any]], num_pairs: list[int]) -> list[dict[str, Any]]:
    """Rows in their order if a table shows them all, else those with the most pairs first."""
    if len(rows) <= MAX_ROWS:
        return rows
    return [rows[index] for index in sorted(range(len(rows)), key=lambda index: -num_pairs[index])]


def _accuracy(written: WrittenReport, floor: float | None) -> dg.AssetCheckResult:
    from rm_assets.training.report.reward_model_report import is_above_chance

    metrics = written.metrics
    too_low = floor is not None and metrics["accuracy"] < floor
    text = f"{_accuracy_text(metrics)}, on {metrics['num_pairs']:,} {written.judged_on}"
    if not is_above_chance(metrics):
        text += ": not clearly better than chance, 0.5. Train on more pairs, or test on more"
    if floor is not None:
        text += f"; fail_below_accuracy is {floor}"
    return dg.AssetCheckResult(
        check_name="accuracy_is_above_chance",
        passed=is_above_chance(metrics) and not too_low,
        severity=dg.AssetCheckSeverity.ERROR if too_low else dg.AssetCheckSeverity.WARN,
        description=text,
        metadata=numbers({name: metrics[name] for name in ("accuracy", "accuracy_low", "accuracy_high")}),
    )


def _accuracy_text(metrics: dict[str, Any]) -> str:
    return f"accuracy {metrics['accuracy']:.3f}, 95 % interval {interval_text(metrics)}"


def _length(written: WrittenReport) -> dg.AssetCheckResult:
    from rm_assets.training.report.baselines import LENGTH_BASELINES

    reached = ", ".join(f"'the {name.replace('_', ' ')}' {written.metrics[name]:.3f}" for name in LENGTH_BASELINES)
    advice = "Length alone may perform as well: add pairs whose better reply is the shorter one as often as the longer"
    return _baselines("model_beats_length", written, LENGTH_BASELINES, reached, advice)


def _prompt(written: WrittenReport) -> dg.AssetCheckResult:
    from rm_assets.training.report.baselines import PROMPT_BASELINES

    metrics = written.metrics
    without, other = (metrics.get(name) for name in PROMPT_BASELINES)
    reached = f"without the prompt {without:.3f}" if without is not None else "not evaluated without the prompt"
    reached += f", with another pair's prompt {other:.3f}" if other is not None else ""
    advice = "The replies alone may perform as well: add pairs whose better reply depends on the prompt"
    return _baselines("model_needs_the_prompt", written, PROMPT_BASELINES, reached, advice)


def _baselines(
    check: str, written: WrittenReport, names: tuple[str, ...], reached: str, advice: str
) -> dg.AssetCheckResult:
    """Passes if no baseline reaches the interval over all test pairs; lists the slices where one does."""
    from rm_assets.training.report.baselines import near_baselines
    from rm_assets.training.report.reward_model_report import is_above_chance

    metrics = written.metrics
    advice = advice if is_above_chance(metrics) else _NOT_JUDGED
    near = [
        {
            "slice": slice_name(row),
            "baseline": row["baseline"],
            "pairs": row["num_pairs"],
            "reaches": round(row["reaches"], 3),
            "model": round(row["accuracy"], 3),
        }
        for row in near_baselines(written.table, names).to_dict("records")
    ]
    largest = largest_first(near, [row["pairs"] for row in near])
    passed = not any(metrics[name] >= metrics["accuracy_low"] for name in names if name in metrics)
    text = f"{_accuracy_text(metrics)}; {reached}"
    return dg.AssetCheckResult(
        check_name=check,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=text if passed else f"{text}: not clearly below the model. {advice}",
        metadata={
            **numbers({name: metrics[name] for name in ("accuracy_low", *names) if name in metrics}),
            **({"slices_where_a_baseline_comes_near": table(largest)} if near else {}),
        },
    )


def _correlation(metrics: dict[str, Any], limit: float) -> dg.AssetCheckResult:
    from rm_assets.training.report.reward_model_report import is_above_chance

    found = metrics.get("difference_length_spearman", 0.0)
    text = f"Spearman correlation {found:+.3f} of differences of scores and lengths; the limit is {limit:g}"
    passed = abs(found) <= limit
    if not passed and not is_above_chance(metrics):
        text += f": too high. {_NOT_JUDGED}"
    elif not passed:
        way = "longer" if found > 0 else "shorter"
        text += f": {way} replies score higher. Add pairs whose better reply is not the {way} one"
    return dg.AssetCheckResult(
        check_name="scores_do_not_follow_length",
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=text,
        metadata=numbers({"difference_length_spearman": found, "max_length_correlation": limit}),
    )
