"""What reward_model and reward_model_report show: numbers, pictures and checks."""

import json
from typing import Any

import dagster as dg

from rm_assets.defs.metadata import table
from rm_assets.defs.model_snapshots import ASSET as MODEL
from rm_assets.defs.model_snapshots import ModelSnapshot
from rm_assets.defs.pictures import calibration_plot, markdown_picture, score_histogram, training_curves
from rm_assets.defs.report_snapshots import ASSET as REPORT
from rm_assets.defs.report_snapshots import WrittenReport

MODEL_CHECKS = [
    dg.AssetCheckSpec(
        "files_match_their_hashes",
        asset=MODEL,
        description="Every file of the model is, byte for byte, what the training job wrote.",
        blocking=True,
    )
]
REPORT_CHECKS = [
    dg.AssetCheckSpec(
        "accuracy_is_above_chance",
        asset=REPORT,
        description="The accuracy's 95 % interval lies above 0.5, and the accuracy not below fail_below_accuracy.",
        blocking=True,  # its severity decides: a warning, unless fail_below_accuracy is set and not reached
    ),
    dg.AssetCheckSpec(
        "model_beats_length",
        asset=REPORT,
        description="The accuracy's 95 % interval lies above 'the longer wins' and above 'the shorter wins'.",
    ),
]


def model_result(model: ModelSnapshot) -> dg.MaterializeResult:
    """The materialization of a model: its metrics, how it was trained as a picture, and where it lies."""
    from rm_assets.training.result import METRICS
    from rm_assets.training.result import MODEL as MODEL_DIRECTORY

    lines = [json.loads(line) for line in (model.directory / METRICS).read_text().splitlines()]
    metrics = model.manifest["metrics"]
    directory = model.directory / MODEL_DIRECTORY
    return dg.MaterializeResult(
        data_version=dg.DataVersion(model.directory.name),
        metadata={
            "training_curves": _picture(training_curves(lines), "loss and accuracy by optimizer step"),
            "trained_now": model.trained_now,
            "data_snapshot": model.manifest["data_snapshot"],
            "packing": metrics["packing_reason"],
            **_numbers(metrics),
            "versions": dg.MetadataValue.json(model.manifest["versions"]),
            "dagster/uri": directory.resolve().as_uri(),
            "path": dg.MetadataValue.path(str(directory)),
        },
        check_results=[_hashes(model)],
    )


def _hashes(model: ModelSnapshot) -> dg.AssetCheckResult:
    """Hash the published files once more: what was verified before they were moved is not what is served."""
    from rm_assets.training.result import TrainingResultError, read_result

    try:
        files = read_result(model.directory, model.key)["files"]
        problem = ""
    except TrainingResultError as error:
        files, problem = model.manifest["files"], str(error)
    return dg.AssetCheckResult(
        check_name="files_match_their_hashes",
        passed=not problem,
        description=problem or f"{len(files)} files match the manifest.",
        metadata={"files": len(files)},
    )


def report_result(written: WrittenReport, fail_below_accuracy: float | None) -> dg.MaterializeResult:
    """The materialization of a report: pictures, the table by slice, every figure as a number, and checks."""
    report, metrics = written.report, written.report.metrics
    chosen, rejected = (written.scores[f"{side}_score"].to_numpy() for side in ("chosen", "rejected"))
    return dg.MaterializeResult(
        data_version=dg.DataVersion(written.snapshot.name),
        metadata={
            "scores": _picture(score_histogram(chosen, rejected), "scores of chosen and rejected replies"),
            "calibration": _picture(calibration_plot(report.calibration), "accuracy by confidence"),
            "slices": table(_slices(written.table)),
            **_numbers(metrics),
            "dagster/row_count": len(written.table),
            "dagster/uri": written.snapshot.directory.resolve().as_uri(),
            "path": dg.MetadataValue.path(str(written.snapshot.directory)),
        },
        check_results=[_accuracy(metrics, fail_below_accuracy), _length(metrics)],
    )


def _slices(rows: Any) -> list[dict[str, Any]]:
    """The report's table in few enough columns for the page; the Parquet file has all of them."""
    return [
        {
            "slice": row["value"] if row["slice"] == "all" else f"{row['slice']}: {row['value']}",
            "pairs": row["num_pairs"],
            "accuracy": round(row["accuracy"], 3),
            "95 % interval": f"{row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}",
            "longer wins": round(row["longer_wins"], 3),
        }
        for row in rows.to_dict("records")
    ]


def _numbers(metrics: dict[str, Any]) -> dict[str, int | float]:
    """The figures that Dagster plots over time, without the digits that nobody reads."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in numbers.items()}


def _accuracy(metrics: dict[str, Any], floor: float | None) -> dg.AssetCheckResult:
    from rm_assets.training.report import above_chance

    too_low = floor is not None and metrics["accuracy"] < floor
    interval = f"{metrics['accuracy_low']:.3f} to {metrics['accuracy_high']:.3f}"
    return dg.AssetCheckResult(
        check_name="accuracy_is_above_chance",
        passed=above_chance(metrics) and not too_low,
        severity=dg.AssetCheckSeverity.ERROR if too_low else dg.AssetCheckSeverity.WARN,
        description=f"accuracy {metrics['accuracy']:.3f}, 95 % interval {interval}, on {metrics['num_pairs']} pairs"
        + (f"; fail_below_accuracy is {floor}" if floor is not None else ""),
        metadata={name: metrics[name] for name in ("accuracy", "accuracy_low", "accuracy_high")},
    )


def _length(metrics: dict[str, Any]) -> dg.AssetCheckResult:
    baseline = max(metrics["longer_wins"], metrics["shorter_wins"])
    return dg.AssetCheckResult(
        check_name="model_beats_length",
        passed=metrics["accuracy_low"] > baseline,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"accuracy at least {metrics['accuracy_low']:.3f}, the better length rule {baseline:.3f}",
        metadata={name: metrics[name] for name in ("accuracy_low", "longer_wins", "shorter_wins")},
    )


def _picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(markdown_picture(png, alt))
