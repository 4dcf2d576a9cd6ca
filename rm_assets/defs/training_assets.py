"""reward_model and reward_model_report: the trained model, and what it is worth on pairs it never saw."""

import dagster as dg

from rm_assets.data import records
from rm_assets.data.records import Stage
from rm_assets.defs import model_snapshots, report_snapshots, training_results
from rm_assets.defs.data_assets import OWNERS, padded_pairs, validated_preferences
from rm_assets.defs.launcher import TrainingLauncher
from rm_assets.defs.project import ProjectResource
from rm_assets.defs.stage_results import schema_metadata


@dg.asset(
    deps=[padded_pairs],
    group_name="training",
    kinds={"pytorch", "huggingface"},
    owners=OWNERS,
    code_version=str(model_snapshots.VERSION),
    check_specs=training_results.MODEL_CHECKS,
)
def reward_model(
    context: dg.AssetExecutionContext, project: ProjectResource, launcher: TrainingLauncher
) -> dg.MaterializeResult:
    """A Bradley-Terry reward model in Hugging Face's format, trained by a job of its own on padded_pairs."""
    ready = project.ready()
    pairs = ready.snapshot(Stage.PADDED)
    model = model_snapshots.trained_model(ready, pairs, context, launcher)
    return training_results.model_result(model)


@dg.asset(
    deps=[reward_model, validated_preferences],
    group_name="training",
    kinds={"pandas", "parquet"},
    owners=OWNERS,
    code_version=str(report_snapshots.VERSION),
    check_specs=training_results.REPORT_CHECKS,
    metadata=schema_metadata(records.REPORT),
)
def reward_model_report(context: dg.AssetExecutionContext, project: ProjectResource) -> dg.MaterializeResult:
    """Accuracy, calibration and length bias of the newest reward model on the held-out test pairs, by slice."""
    ready = project.ready()
    model = model_snapshots.required_model(ready.storage)
    written = report_snapshots.written_report(ready.settings, model, context.log.info)
    return training_results.report_result(written, ready.settings.fail_below_accuracy)
