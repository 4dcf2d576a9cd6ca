"""The training assets: the reward model, its report, the promoted and the published model, and suspect labels."""

import contextlib
from collections.abc import Iterator

import dagster as dg

from rm_assets.data.storage.snapshots import SnapshotError
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.assets.data import padded_pairs
from rm_assets.defs.assets.explained import explained
from rm_assets.defs.launchers.resource import AssetRun, TrainingLauncher
from rm_assets.defs.project import ProjectResource, freshness_policy, owners
from rm_assets.defs.results.models import MODEL_CHECKS, model_result
from rm_assets.defs.results.moved_storage import moved_storage
from rm_assets.defs.results.promotions import PROMOTION_CHECKS, promotion_result
from rm_assets.defs.results.publications import publication_result
from rm_assets.defs.results.report_checks import REPORT_CHECKS, report_checks
from rm_assets.defs.results.reports import draw_plots, report_files, report_result
from rm_assets.defs.results.stages import require_pairs, sets_without_pairs
from rm_assets.defs.results.suspects import suspects_result
from rm_assets.defs.runs.pool import POOL
from rm_assets.defs.snapshots import models, promotions, publications, reports, suspects


@dg.asset(
    deps=[padded_pairs],
    group_name="training",
    pool=POOL,
    kinds={"pytorch", "huggingface"},
    owners=owners(),
    code_version=str(models.VERSION),
    check_specs=MODEL_CHECKS,
)
@explained
def reward_model(
    context: dg.AssetExecutionContext, project: ProjectResource, launcher: TrainingLauncher
) -> dg.MaterializeResult:
    """A Bradley-Terry reward model in Hugging Face format, trained on padded_pairs in a job of its own.

    The asset reward_model_report evaluates it.
    """
    run = AssetRun(project.ready(), context, launcher)
    pairs = run.project.snapshot(Stage.PADDED)
    require_pairs(pairs, run.project.settings)
    for name in sets_without_pairs(pairs, run.project.settings):
        context.log.warning(f"the evaluation set {name!r} has no pairs, so the report is without it: see its rejects")
    before = None
    with contextlib.suppress(SnapshotError):  # a damaged model is trained again, and compared with nothing
        before = models.newest_model(run.project.storage)
    model = models.train_or_load_model(run, pairs)
    return model_result(model, run.project, before)


@dg.asset(
    deps=[reward_model],
    group_name="training",
    pool=POOL,
    kinds={"parquet"},
    owners=owners(),
    code_version=str(reports.VERSION),
    check_specs=REPORT_CHECKS,
)
@explained
def reward_model_report(
    context: dg.AssetExecutionContext, project: ProjectResource, launcher: TrainingLauncher
) -> dg.MaterializeResult:
    """Whether to trust the newest reward model: accuracy, calibration, slices, null baselines, length bias.

    The metadata `report` is the whole report on one page, with its plots.
    """
    run = AssetRun(project.ready(), context, launcher)
    written = reports.write_report(run, models.required_model(run.project.storage))
    run.log.info("drawing the plots")
    plots = draw_plots(written)
    reports.write_derived_files(written.snapshot, report_files(written, plots), run.log.info)
    return report_result(written, plots, run.project.settings)


@dg.asset(
    deps=[reward_model_report],
    group_name="training",
    pool=POOL,
    kinds={"huggingface", "parquet"},
    owners=owners(),
    code_version=str(promotions.VERSION),
    check_specs=PROMOTION_CHECKS,
    freshness_policy=freshness_policy(),
)
@explained
def promoted_reward_model(
    context: dg.AssetExecutionContext, project: ProjectResource, launcher: TrainingLauncher
) -> dg.MaterializeResult:
    """The best reward model so far: a new model replaces it unless its report forbids that or it is worse.

    Worse means lower accuracy on the same test pairs. The setting promotion_requires names the checks of the report
    that a model must pass to be promoted.
    """
    run = AssetRun(project.ready(), context, launcher)
    newest = models.required_model(run.project.storage)
    checks = report_checks(reports.write_report(run, newest), run.project.settings)
    moved = moved_storage(context, run.project.storage)
    return promotion_result(promotions.promote_model(run, newest, checks), moved)


@dg.asset(
    deps=[promoted_reward_model],
    output_required=False,  # while it is off, nothing is materialized
    group_name="training",
    kinds={"huggingface"},
    owners=owners(),
    code_version=str(publications.VERSION),
)
@explained
def published_reward_model(
    context: dg.AssetExecutionContext, project: ProjectResource
) -> Iterator[dg.MaterializeResult]:
    """The promoted model on the Hugging Face Hub, with its card; needs publish_model_to or publish_data_to."""
    ready = project.ready()
    if not ready.settings.publishes:
        context.log.info("off: neither publish_model_to nor publish_data_to is set")
        return
    yield publication_result(publications.publish_model(ready, context.log.info))


@dg.asset(
    deps=[padded_pairs],
    output_required=False,  # while it is off, nothing is materialized
    group_name="training",
    pool=POOL,
    kinds={"jsonl", "parquet"},
    owners=owners(),
    code_version=str(suspects.VERSION),
)
@explained
def suspect_annotations(
    context: dg.AssetExecutionContext, project: ProjectResource, launcher: TrainingLauncher
) -> Iterator[dg.MaterializeResult]:
    """Annotations most contradicted by models that were not trained on them, for review; needs suspect_folds.

    `margin` is chosen_score - rejected_score, `suspicion` its size in standard deviations of the fold's margins.
    """
    run = AssetRun(project.ready(), context, launcher)
    if run.project.settings.suspect_folds == 0:
        run.log.info("off: suspect_folds is 0; set it to 2 or more, and run the job suspect_labels")
        return
    padded = run.project.snapshot(Stage.PADDED)
    snapshot = suspects.find_suspects(run, padded)
    suspects.write_jsonl(run, snapshot, padded)
    yield suspects_result(snapshot)
