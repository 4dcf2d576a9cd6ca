"""What reward_model_report shows: pictures, tables, figures and checks, on one page and in the snapshot's files."""

import json
from collections import Counter
from typing import Any

import dagster as dg
import numpy as np

from rm_assets.defs.results.metadata import MAX_ROWS, table
from rm_assets.defs.results.plots import calibration_plot, markdown_picture, score_histogram, training_curves
from rm_assets.defs.results.report_plots import first_slices, history_plot, length_plot, slices_plot
from rm_assets.defs.snapshots.reports import ASSET, REPORT_FILE, WrittenReport
from rm_assets.settings import Settings

CHECKS = [
    dg.AssetCheckSpec(
        "accuracy_is_above_chance",
        asset=ASSET,
        description="The accuracy's 95 % interval lies above 0.5, and the accuracy not below fail_below_accuracy.",
        blocking=True,  # its severity decides: a warning, unless fail_below_accuracy is set and not reached
    ),
    dg.AssetCheckSpec(
        "model_beats_length",
        asset=ASSET,
        description="The accuracy's 95 % interval lies above 'the longer wins' and above 'the shorter wins'.",
    ),
    dg.AssetCheckSpec(
        "model_needs_the_prompt",
        asset=ASSET,
        description="The accuracy's 95 % interval lies above what the model reaches without the prompt, and with "
        "another pair's prompt.",
    ),
    dg.AssetCheckSpec(
        "scores_do_not_follow_length",
        asset=ASSET,
        description="Differences of scores and of lengths within pairs correlate (Spearman) by at most "
        "max_length_correlation.",
    ),
]
_HEADINGS = {
    "accuracy_by_slice": "Accuracy by slice",
    "calibration": "Calibration: how often it is right, by how sure it is",
    "scores": "Scores of chosen and rejected replies",
    "length_bias": "Length: how scores follow it within pairs",
    "learning_curve": "Learning curve",
    "history": "All models so far",
}


def pictures(written: WrittenReport) -> dict[str, bytes]:
    """All pictures as PNG, by name."""
    pairs = written.pairs[written.pairs["split"] == "test"]
    chosen, rejected = (pairs[f"{side}_score"].to_numpy() for side in ("chosen", "rejected"))
    return {
        "accuracy_by_slice": slices_plot(written.table),
        "calibration": calibration_plot(written.calibration),
        "scores": score_histogram(chosen, rejected),
        "length_bias": length_plot(pairs, written.metrics.get("difference_length_spearman")),
        "learning_curve": training_curves(written.steps),
        "history": history_plot(written.history),
    }


def report_files(written: WrittenReport, drawn: dict[str, bytes]) -> dict[str, bytes]:
    """The report for other programs, and the pictures: file name -> content."""
    from rm_assets.training.report.intervals import METHOD

    content = {
        "intervals": METHOD,
        "precision": written.precision,
        "metrics": written.metrics,
        "slices": _plain(written.table),
        "calibration": _plain(written.calibration),
        "history": written.history,
    }
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    return {REPORT_FILE: text.encode("utf-8")} | {f"{name}.png": png for name, png in drawn.items()}


def _plain(frame: Any) -> list[dict[str, Any]]:
    """Rows as JSON has them: no NaN."""
    return list(frame.astype(object).where(frame.notna(), None).to_dict("records"))


def report_result(written: WrittenReport, drawn: dict[str, bytes], settings: Settings) -> dg.MaterializeResult:
    """The materialization of a report: pictures, tables, every figure as a number, and checks."""
    from rm_assets.training.report.intervals import METHOD

    checks = report_checks(written, settings)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(written.snapshot.name),
        metadata={
            "verdict": dg.MetadataValue.md(_verdict(written.metrics, checks)),
            "report": dg.MetadataValue.md(_page(checks, drawn)),
            **({"evaluation_sets": table(sets)} if (sets := _evaluation_sets(written.table)) else {}),
            "slices": table(_slices(written.table)),
            **numbers(written.metrics),
            "intervals": METHOD,
            "precision": written.precision,
            "dagster/row_count": len(written.table),
            "dagster/uri": written.snapshot.directory.resolve().as_uri(),
            "path": dg.MetadataValue.path(str(written.snapshot.directory)),
        },
        check_results=checks,
    )


def report_checks(written: WrittenReport, settings: Settings) -> list[dg.AssetCheckResult]:
    """What the checks of the report say, in the order of `CHECKS`."""
    return [
        _accuracy(written.metrics, settings.fail_below_accuracy),
        _length(written),
        _prompt(written),
        _correlation(written.metrics, settings.max_length_correlation),
    ]


def _verdict(metrics: dict[str, Any], checks: list[dg.AssetCheckResult]) -> str:
    """The accuracy, and the names of the checks that warn: a list, as the page shows short ones and cuts long lines."""
    warning = [f"**NOT** {check.check_name}" for check in checks if not check.passed]
    found = [
        f"accuracy {metrics['accuracy']:.3f}",
        f"95 % interval {_interval(metrics)}",
        f"on {metrics['num_pairs']:,} test pairs",
    ]
    lines = [*found, *(warning or ["all checks passed"])]
    return "\n".join(f"- {line}" for line in lines)


def _page(checks: list[dg.AssetCheckResult], drawn: dict[str, bytes]) -> str:
    """The report as one Markdown page: what the checks say, then every picture under its heading."""
    said = [f"- {'yes' if check.passed else '**NO**'}: {check.check_name} ({check.description})" for check in checks]
    pictured = [f"### {heading}\n\n{markdown_picture(drawn[name], heading)}" for name, heading in _HEADINGS.items()]
    return "\n\n".join(["\n".join(said), *pictured])


def numbers(metrics: dict[str, Any]) -> dict[str, int | float]:
    """The figures that Dagster plots over time, without the digits that nobody reads."""
    found = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in found.items()}


def _slices(rows: Any) -> list[dict[str, Any]]:
    """The report's table in few enough rows and columns for the page; the Parquet file has all of them."""
    few = len(rows) <= MAX_ROWS
    first, num_left_out = (rows.to_dict("records"), 0) if few else first_slices(rows, MAX_ROWS - 1)
    shown = [
        {
            "slice": row["value"] if row["slice"] == "all" else f"{row['slice']}: {row['value']}",
            "pairs": row["num_pairs"],
            "accuracy": round(row["accuracy"], 3),
            "95 % interval": _unbroken(f"{row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}"),
            "best baseline": _unbroken(_best_baseline(row)),
        }
        for row in first
    ]
    left_out = f"… {num_left_out:,} more slices, of fewer pairs, in the Parquet file"
    return [*shown, {"slice": left_out}] if num_left_out else shown


def _unbroken(text: str) -> str:
    """A text that keeps to one line: the page would rather break each of its words than scroll."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _best_baseline(row: dict[str, Any]) -> str:
    """The null baseline that comes nearest, such as `0.601 shorter wins`; empty where there is none."""
    from rm_assets.training.report.baselines import LENGTH_BASELINES, PROMPT_BASELINES

    names = PROMPT_BASELINES if row["slice"] == "length_difference" else (*LENGTH_BASELINES, *PROMPT_BASELINES)
    known = {name: row[name] for name in names if not np.isnan(row[name])}
    best = max(known, key=lambda name: known[name], default="")
    return f"{known[best]:.3f} {best.replace('_', ' ')}" if best else ""


def _evaluation_sets(rows: Any) -> list[dict[str, Any]]:
    """A row for all pairs and for each subset, a column for the test split and each evaluation set; none without sets.

    A cell reads `0.548 of 387`, accuracy and number of pairs; the intervals stand in the table of slices.
    """
    columns = {"all": "test", "subset": "test"}
    for name in dict.fromkeys(name for name in rows["slice"] if name.startswith("evaluation/")):
        short = name.removeprefix("evaluation/")
        columns[name] = name if short in ("subset", "test") else short
    if len(columns) == 2:
        return []  # the slices say the same
    cells: dict[str, dict[str, str]] = {"all": {}}
    num_pairs: Counter[str] = Counter()
    for row in rows[rows["slice"].isin(columns)].to_dict("records"):
        cells.setdefault(row["value"], {})[columns[row["slice"]]] = f"{row['accuracy']:.3f} of {row['num_pairs']:,}"
        num_pairs[row["value"]] += row["num_pairs"]
    names = list(dict.fromkeys(columns.values()))
    shown = [{"subset": value, **{name: row.get(name, "") for name in names}} for value, row in cells.items()]
    return _largest_first(shown, [num_pairs[row["subset"]] for row in shown])


def _largest_first(rows: list[dict[str, Any]], num_pairs: list[int]) -> list[dict[str, Any]]:
    """Rows in their order if a table shows them all, else those of most pairs first."""
    if len(rows) <= MAX_ROWS:
        return rows
    return [rows[index] for index in sorted(range(len(rows)), key=lambda index: -num_pairs[index])]


def _accuracy(metrics: dict[str, Any], floor: float | None) -> dg.AssetCheckResult:
    from rm_assets.training.report.reward_model_report import is_above_chance

    too_low = floor is not None and metrics["accuracy"] < floor
    told = f"{_accuracy_told(metrics)}, on {metrics['num_pairs']:,} test pairs"
    if not is_above_chance(metrics):
        told += ": not surely better than a coin, 0.5. Train on more pairs, or test on more"
    if floor is not None:
        told += f"; fail_below_accuracy is {floor}"
    return dg.AssetCheckResult(
        check_name="accuracy_is_above_chance",
        passed=is_above_chance(metrics) and not too_low,
        severity=dg.AssetCheckSeverity.ERROR if too_low else dg.AssetCheckSeverity.WARN,
        description=told,
        metadata=numbers({name: metrics[name] for name in ("accuracy", "accuracy_low", "accuracy_high")}),
    )


def _interval(metrics: dict[str, Any]) -> str:
    return f"{metrics['accuracy_low']:.3f} to {metrics['accuracy_high']:.3f}"


def _accuracy_told(metrics: dict[str, Any]) -> str:
    return f"accuracy {metrics['accuracy']:.3f}, 95 % interval {_interval(metrics)}"


def _length(written: WrittenReport) -> dg.AssetCheckResult:
    from rm_assets.training.report.baselines import LENGTH_BASELINES

    reached = ", ".join(f"'the {name.replace('_', ' ')}' {written.metrics[name]:.3f}" for name in LENGTH_BASELINES)
    advice = "Length alone may do as well: add pairs whose better reply is the shorter one as often as the longer"
    return _baselines("model_beats_length", written, LENGTH_BASELINES, reached, advice)


def _prompt(written: WrittenReport) -> dg.AssetCheckResult:
    from rm_assets.training.report.baselines import PROMPT_BASELINES

    metrics = written.metrics
    without, other = (metrics.get(name) for name in PROMPT_BASELINES)
    reached = f"without the prompt {without:.3f}" if without is not None else "never tried without the prompt"
    reached += f", with another pair's prompt {other:.3f}" if other is not None else ""
    advice = "The replies alone may do as well: add pairs whose better reply depends on the prompt"
    return _baselines("model_needs_the_prompt", written, PROMPT_BASELINES, reached, advice)


def _baselines(
    check: str, written: WrittenReport, names: tuple[str, ...], reached: str, advice: str
) -> dg.AssetCheckResult:
    """Passed where no baseline reaches the interval over all test pairs; slices where one does are shown."""
    from rm_assets.training.report.baselines import near_baselines

    metrics = written.metrics
    near = [
        {
            "slice": row["value"] if row["slice"] == "all" else f"{row['slice']}: {row['value']}",
            "baseline": row["baseline"],
            "pairs": row["num_pairs"],
            "reaches": round(row["reaches"], 3),
            "model": round(row["accuracy"], 3),
        }
        for row in near_baselines(written.table, names).to_dict("records")
    ]
    largest = _largest_first(near, [row["pairs"] for row in near])
    passed = not any(metrics.get(name, 0.0) >= metrics["accuracy_low"] for name in names)
    told = f"{_accuracy_told(metrics)}; {reached}"
    return dg.AssetCheckResult(
        check_name=check,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=told if passed else f"{told}: not surely below the model. {advice}",
        metadata={
            **numbers({name: metrics[name] for name in ("accuracy_low", *names) if name in metrics}),
            **({"slices_where_a_baseline_comes_near": table(largest)} if near else {}),
        },
    )


def _correlation(metrics: dict[str, Any], limit: float) -> dg.AssetCheckResult:
    found = metrics.get("difference_length_spearman", 0.0)
    told = f"Spearman correlation {found:+.3f} of differences of scores and lengths; the limit is {limit:g}"
    passed = abs(found) <= limit
    if not passed:
        way = "longer" if found > 0 else "shorter"
        told += f": {way} replies score higher. Add pairs whose better reply is not the {way} one"
    return dg.AssetCheckResult(
        check_name="scores_do_not_follow_length",
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=told,
        metadata=numbers({"difference_length_spearman": found, "max_length_correlation": limit}),
    )
