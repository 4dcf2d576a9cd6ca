"""The trained model, what it is worth on pairs it never saw, whether it is the best so far, and suspect labels."""

import dagster as dg

from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.assets.data import OWNERS, padded_pairs, validated_preferences
from rm_assets.defs.launchers.resource import TrainingLauncher
from rm_assets.defs.project import ProjectResource
from rm_assets.defs.results import models as training_results
from rm_assets.defs.results import promotions as promotion_results
from rm_assets.defs.results import reports as report_results
from rm_assets.defs.results import suspects as suspect_results
from rm_assets.defs.results.stages import schema_metadata
from rm_assets.defs.runs.pool import POOL
from rm_assets.defs.snapshots import models, promotions, reports, suspects


@dg.asset(
    deps=[padded_pairs],
    group_name="training",
    pool=POOL,
    kinds={"pytorch", "huggingface"},
    owners=OWNERS,
    code_version=str(models.VERSION),
    check_specs=training_results.MODEL_CHECKS,
)
def reward_model(
    context: dg.AssetExecutionContext, project: ProjectResource, launcher: TrainingLauncher
) -> dg.MaterializeResult:
    """A Bradley-Terry reward model in Hugging Face's format, trained by a job of its own on padded_pairs.

    What it is worth is told by reward_model_report.
    """
    ready = project.ready()
    pairs = ready.snapshot(Stage.PADDED)
    model = models.trained_model(ready, pairs, context, launcher)
    return training_results.model_result(model)


@dg.asset(
    deps=[reward_model, validated_preferences],
    group_name="training",
    pool=POOL,
    kinds={"pandas", "parquet"},
    owners=OWNERS,
    code_version=str(reports.VERSION),
    check_specs=report_results.CHECKS,
    metadata=schema_metadata(schemas.REPORT),
)
def reward_model_report(
    context: dg.AssetExecutionContext, project: ProjectResource, launcher: TrainingLauncher
) -> dg.MaterializeResult:
    """Whether to trust the newest reward model: accuracy, calibration, slices, null baselines, length bias.

    The metadata `report` is all of it on one page, with its pictures.
    """
    ready = project.ready()
    model = models.required_model(ready.storage)
    written = reports.written_report(ready.settings, model, context, launcher)
    drawn = report_results.pictures(written)
    reports.write_beside(written.snapshot, report_results.report_files(written, drawn), context.log.info)
    return report_results.report_result(written, drawn, ready.settings)


@dg.asset(
    deps=[reward_model_report, validated_preferences],
    group_name="training",
    pool=POOL,
    kinds={"huggingface", "parquet"},
    owners=OWNERS,
    code_version=str(promotions.VERSION),
    check_specs=promotion_results.CHECKS,
    metadata=schema_metadata(schemas.PROMOTED),
)
def promoted_reward_model(
    context: dg.AssetExecutionContext, project: ProjectResource, launcher: TrainingLauncher
) -> dg.MaterializeResult:
    """The best reward model so far: a new one takes its place unless its report forbids it, or it is worse.

    Worse is a model that is right less often on the same test pairs; the setting promotion_requires says which checks
    of the report forbid a promotion.
    """
    ready = project.ready()
    newest = models.required_model(ready.storage)
    written = reports.written_report(ready.settings, newest, context, launcher)
    checks = report_results.report_checks(written, ready.settings)
    promotion = promotions.promotion(ready.settings, newest, checks, context, launcher)
    return promotion_results.promotion_result(promotion)


@dg.asset(
    deps=[padded_pairs, validated_preferences],
    group_name="training",
    pool=POOL,
    kinds={"jsonl", "parquet"},
    owners=OWNERS,
    code_version=str(suspects.VERSION),
    metadata=schema_metadata(schemas.SUSPECTS, margin="chosen_score - rejected_score: below 0, for all are suspect."),
)
def suspect_annotations(
    context: dg.AssetExecutionContext, project: ProjectResource, launcher: TrainingLauncher
) -> dg.MaterializeResult:
    """Annotations that models which never saw them contradict most, to be judged again; off without suspect_folds."""
    ready = project.ready()
    if ready.settings.suspect_folds == 0:
        return suspect_results.off_result()
    padded = ready.snapshot(Stage.PADDED)
    snapshot = suspects.suspects_snapshot(ready, padded, context, launcher)
    jsonl = suspects.suspects_jsonl(ready.storage, snapshot, padded)
    reports.write_beside(snapshot, {suspects.JSONL_FILE: jsonl}, context.log.info)
    return suspect_results.suspects_result(snapshot)


suspect_labels = dg.define_asset_job(
    "suspect_labels",
    selection=[suspect_annotations],
    description="Finds suspect labels in the newest padded_pairs; set suspect_folds in the launchpad.",
)
