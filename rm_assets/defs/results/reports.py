"""What the UI shows of reward_model_report, as one page with plots, tables and checks, and the same as files."""

import json
from collections import Counter
from typing import Any

import dagster as dg
import numpy as np

from rm_assets.defs.results.metadata import MAX_ROWS, figures_table, location_metadata, numbers, table
from rm_assets.defs.results.plots import calibration_plot, markdown_picture, score_histogram, training_curves
from rm_assets.defs.results.report_checks import interval_text, largest_first, report_checks, slice_name
from rm_assets.defs.results.report_plots import first_slices, history_plot, length_plot, slices_plot
from rm_assets.defs.snapshots.reports import REPORT_FILE, WrittenReport
from rm_assets.settings import Settings
from rm_assets.training.jobs.result import judged_pairs

_FOLLOWED = (
    *("accuracy", "accuracy_low", "accuracy_high", "num_pairs", "log_loss", "expected_calibration_error"),
    *("longer_wins", "shorter_wins", "without_prompt", "other_prompt", "difference_length_spearman"),
)
"""The figures that are numbers of their own, and so plotted over time."""

_HEADINGS = {
    "accuracy_by_slice": "Accuracy by slice",
    "calibration": "Calibration: accuracy by confidence",
    "scores": "Scores of chosen and rejected replies",
    "length_bias": "Length bias: scores against lengths within pairs",
    "learning_curve": "Learning curve",
    "history": "All models so far",
}


def draw_plots(written: WrittenReport) -> dict[str, bytes]:
    """All plots as PNG, by name."""
    pairs = judged_pairs(written.pairs)
    chosen, rejected = (pairs[f"{side}_score"].to_numpy() for side in ("chosen", "rejected"))
    return {
        "accuracy_by_slice": slices_plot(written.table),
        "calibration": calibration_plot(written.calibration),
        "scores": score_histogram(chosen, rejected),
        "length_bias": length_plot(pairs, written.metrics.get("difference_length_spearman")),
        "learning_curve": training_curves(written.steps),
        "history": history_plot(written.history),
    }


def report_files(written: WrittenReport, plots: dict[str, bytes]) -> dict[str, bytes]:
    """The report as JSON for other programs, and the plots: file name -> content."""
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
    return {REPORT_FILE: text.encode("utf-8")} | {f"{name}.png": png for name, png in plots.items()}


def _plain(frame: Any) -> list[dict[str, Any]]:
    """Rows for JSON, with None for NaN."""
    return list(frame.astype(object).where(frame.notna(), None).to_dict("records"))


def report_result(written: WrittenReport, plots: dict[str, bytes], settings: Settings) -> dg.MaterializeResult:
    """The materialization of a report: plots, tables, every figure as a number, and checks."""
    from rm_assets.training.report.intervals import METHOD

    checks = report_checks(written, settings)
    sets = _evaluation_sets(written.table, written.judged_on)
    figures = numbers(written.metrics)
    followed = {name: figures.pop(name) for name in _FOLLOWED if name in figures}
    return dg.MaterializeResult(
        data_version=dg.DataVersion(written.snapshot.name),
        metadata={
            "verdict": dg.MetadataValue.text(_verdict(written, checks)),
            "report": dg.MetadataValue.md(_page(written, checks, plots)),
            **({"evaluation_sets": table(sets)} if sets else {}),
            "slices": table(_slices(written.table)),
            **followed,
            "figures": figures_table(figures),
            "intervals": METHOD,
            "precision": written.precision,
            **location_metadata(written.snapshot.directory),
        },
        check_results=checks,
    )


def _verdict(written: WrittenReport, checks: list[dg.AssetCheckResult]) -> str:
    """The accuracy and the failed checks in a sentence."""
    failed, metrics = [str(check.check_name) for check in checks if not check.passed], written.metrics
    found = f"Ranks {metrics['accuracy']:.3f} of {metrics['num_pairs']:,} {written.judged_on} right"
    warning = f"Failed checks: {', '.join(failed)}." if failed else "All checks passed."
    return f"{found} (95 % interval {interval_text(metrics)}). {warning}"


def _page(written: WrittenReport, checks: list[dg.AssetCheckResult], plots: dict[str, bytes]) -> str:
    """The report as one Markdown page: the verdict, a table of the checks, then each plot under its heading."""
    rows = [
        f"| {'passed' if check.passed else '**failed**'} | {check.check_name} | {_escape_cell(check.description)} |"
        for check in checks
    ]
    answers = "\n".join(["| | check | found |", "|---|---|---|", *rows])
    pictured = [f"### {heading}\n\n{markdown_picture(plots[name], heading)}" for name, heading in _HEADINGS.items()]
    return "\n\n".join([f"**{_verdict(written, checks)}**", answers, *pictured])


def _escape_cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def _slices(rows: Any) -> list[dict[str, Any]]:
    """The report's table, cut to what the page can show; the Parquet file has all rows and columns."""
    few = len(rows) <= MAX_ROWS
    first, num_left_out = (rows.to_dict("records"), 0) if few else first_slices(rows, MAX_ROWS - 1)
    shown = [
        {
            "slice": slice_name(row),
            "pairs": row["num_pairs"],
            "accuracy": f"{row['accuracy']:.3f}",
            "95 % interval": _use_no_break_spaces(interval_text(row)),
            "best baseline": _use_no_break_spaces(_best_baseline(row)),
        }
        for row in first
    ]
    left_out = f"… {num_left_out:,} more slices, of fewer pairs, in the Parquet file"
    return [*shown, {"slice": left_out}] if num_left_out else shown


def _use_no_break_spaces(text: str) -> str:
    """A text with no-break spaces: the page breaks lines at every space rather than scroll."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _best_baseline(row: dict[str, Any]) -> str:
    """The best null baseline, such as `0.601 shorter wins`; empty if there is none."""
    from rm_assets.training.report.baselines import LENGTH_BASELINES, PROMPT_BASELINES

    names = PROMPT_BASELINES if row["slice"] == "length_difference" else (*LENGTH_BASELINES, *PROMPT_BASELINES)
    known = {name: row[name] for name in names if not np.isnan(row[name])}
    best = max(known, key=lambda name: known[name], default="")
    return f"{known[best]:.3f} {best.replace('_', ' ')}" if best else ""


def _evaluation_sets(rows: Any, judged_on: str) -> list[dict[str, Any]]:
    """A row for all pairs and for each subset, a column for the test split and each evaluation set; none without sets.

    Without test pairs, the first column has all sets together.

    A cell is the accuracy and the number of pairs, such as `0.548 of 387`; the table of slices has the intervals.
    """
    first = "test" if judged_on == "test pairs" else "all sets"
    columns = {"all": first, "subset": first}
    for name in dict.fromkeys(name for name in rows["slice"] if name.startswith("evaluation/")):
        short = name.removeprefix("evaluation/")
        columns[name] = name if short in ("subset", first) else short
    if len(columns) == 2:
        return []  # the slices say the same
    cells: dict[str, dict[str, str]] = {"all": {}}
    num_pairs: Counter[str] = Counter()
    for row in rows[rows["slice"].isin(columns)].to_dict("records"):
        cells.setdefault(row["value"], {})[columns[row["slice"]]] = f"{row['accuracy']:.3f} of {row['num_pairs']:,}"
        num_pairs[row["value"]] += row["num_pairs"]
    names = list(dict.fromkeys(columns.values()))
    shown = [{"subset": value, **{name: row.get(name, "") for name in names}} for value, row in cells.items()]
    return largest_first(shown, [num_pairs[row["subset"]] for row in shown])
