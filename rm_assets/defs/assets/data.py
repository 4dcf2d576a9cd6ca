"""The data assets: each reads its parent's newest snapshot, runs its stage, and returns what the UI shows.

`deps` names only the nearest parent, so the lineage is a line. An asset that also reads an earlier stage finds
the snapshot by the inputs in its parent's manifest.
"""

import itertools
import warnings
from collections.abc import Iterator

import dagster as dg

from rm_assets.data.sources.content_version import ASSET, content_listing
from rm_assets.data.stages import flattening, padding, raw, rejects, tokenization, validation
from rm_assets.data.storage.files import resolve_path
from rm_assets.data.storage.snapshots import Snapshot, latest_snapshot
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.assets.explained import explained
from rm_assets.defs.project import ProjectResource, freshness_policy, owners
from rm_assets.defs.results.annotation_files import files_metadata, files_observation, files_of
from rm_assets.defs.results.file_checks import delivery_problems
from rm_assets.defs.results.metadata import schema_metadata
from rm_assets.defs.results.moved_storage import moved_storage
from rm_assets.defs.results.stages import (
    NothingLeftError,
    check_results,
    check_specs,
    nothing_left,
    rejects_result,
    stage_result,
)
from rm_assets.settings import Settings

Results = Iterator[dg.MaterializeResult | dg.AssetCheckResult]


def _observe(project: ProjectResource) -> dg.ObserveResult:
    """The version of the annotation files; only new and changed ones are read."""
    settings = project.settings()
    _, files = raw.files_to_read(settings)
    storage = resolve_path(settings.storage)
    found = content_listing(files, storage)
    before = files_of(latest_snapshot(storage, Stage.RAW))
    return dg.ObserveResult(
        asset_key=ASSET,
        data_version=dg.DataVersion(str(found.version)),
        metadata=files_metadata(found.contents, found.version, before),
    )


_SOURCE = dg.AssetSpec(
    ASSET,
    group_name="annotations",
    kinds={"jsonl"},
    owners=owners(),
    description="The annotation files, as raw_preferences last read them. Their version is a hash of the path, size "
    "and content of each; *Observe* checks them without a refresh.",
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", dg.BetaWarning)  # observable sources are beta in Dagster
    annotation_files: dg.AssetsDefinition = dg.multi_observable_source_asset(name=ASSET, specs=[_SOURCE])(_observe)


def _results(
    context: dg.AssetExecutionContext,
    snapshot: Snapshot,
    parent: Snapshot | None,
    settings: Settings,
    before: Snapshot | None = None,
) -> Results:
    """What the UI shows of a stage; raises NothingLeftError if it has no row, after its checks, which say why."""
    manifest = snapshot.manifest
    stage, num_rejects = Stage(manifest.asset), manifest.num_rows(rejects=True)
    new = f"{snapshot.num_new_shards:,} of {len(manifest.shards):,}"
    context.log.info(f"rows {manifest.num_rows():,} · rejects {num_rejects:,} · new shards {new}")
    if not manifest.num_rows():
        yield from check_results(stage, snapshot, parent, settings, before)
        raise NothingLeftError(nothing_left(stage, snapshot, parent))
    yield stage_result(stage, snapshot, parent, settings, before)


@dg.asset(
    deps=[ASSET],
    group_name="annotations",
    kinds={"jsonl", "parquet"},
    owners=owners(),
    code_version=str(raw.VERSION),
    check_specs=check_specs(Stage.RAW),
    metadata=schema_metadata(schemas.RAW),
)
@explained
def raw_preferences(context: dg.AssetExecutionContext, project: ProjectResource) -> Results:
    """One row per non-blank line of the annotation files, cut into shards. Invalid UTF-8 becomes rejects."""
    ready = project.ready()
    if ready.settings.uses_sample_annotations:
        context.log.info("annotations is unset: reading the built-in sample")
    for warning in filter(None, [*ready.warnings, moved_storage(context, ready.storage)]):
        context.log.warning(warning)
    before = latest_snapshot(ready.storage, Stage.RAW)
    snapshot = raw.publish_raw(ready.settings, context.log.info)
    context.log_event(files_observation(snapshot, before))
    yield from _results(context, snapshot, None, ready.settings, before)


@dg.asset(
    deps=[raw_preferences],
    group_name="annotations",
    kinds={"parquet"},
    owners=owners(),
    code_version=str(validation.VERSION),
    check_specs=check_specs(Stage.VALIDATED),
    metadata=schema_metadata(schemas.VALIDATED),
)
@explained
def validated_preferences(context: dg.AssetExecutionContext, project: ProjectResource) -> Results:
    """Valid preferences of every format as prompt, chosen and rejected messages."""
    ready = project.ready()
    parent = ready.snapshot(Stage.RAW)
    snapshot = validation.publish_validated(ready.settings, parent, context.log.info)
    yield from _results(context, snapshot, parent, ready.settings)


@dg.asset(
    deps=[validated_preferences],
    group_name="preparation",
    kinds={"huggingface", "parquet"},
    owners=owners(),
    code_version=str(flattening.VERSION),
    check_specs=check_specs(Stage.FLATTENED),
    metadata=schema_metadata(schemas.FLATTENED),
)
@explained
def flattened_conversations(context: dg.AssetExecutionContext, project: ProjectResource) -> Results:
    """Each pair as text by the model's chat template: prompt + chosen and prompt + rejected are whole conversations."""
    ready = project.ready()
    parent = ready.snapshot(Stage.VALIDATED)
    snapshot = flattening.publish_flattened(ready.settings, ready.tokenizer, parent, context.log.info)
    yield from _results(context, snapshot, parent, ready.settings)


@dg.asset(
    deps=[flattened_conversations],
    group_name="preparation",
    kinds={"huggingface", "parquet"},
    owners=owners(),
    code_version=str(tokenization.VERSION),
    check_specs=check_specs(Stage.TOKENIZED),
    metadata=schema_metadata(schemas.TOKENIZED),
)
@explained
def tokenized_pairs(context: dg.AssetExecutionContext, project: ProjectResource) -> Results:
    """Both sides of each pair as token ids, identical to those of transformers' apply_chat_template."""
    ready = project.ready()
    parent = ready.snapshot(Stage.FLATTENED)
    messages = ready.ancestor(parent, Stage.VALIDATED)
    snapshot = tokenization.publish_tokenized(ready.settings, ready.tokenizer, messages, parent, context.log.info)
    yield from _results(context, snapshot, parent, ready.settings)


@dg.asset(
    deps=[tokenized_pairs],
    group_name="preparation",
    kinds={"parquet"},
    owners=owners(),
    code_version=str(padding.VERSION),
    check_specs=check_specs(Stage.PADDED),
    freshness_policy=freshness_policy(),
    metadata=schema_metadata(schemas.PADDED),
)
@explained
def padded_pairs(context: dg.AssetExecutionContext, project: ProjectResource) -> Results:
    """Pairs without duplicates and conflicts, split by prompt, both sides padded to the longer one's length."""
    ready = project.ready()
    parent = ready.snapshot(Stage.TOKENIZED)
    messages = ready.ancestor(parent, Stage.VALIDATED)
    before = latest_snapshot(ready.storage, Stage.PADDED)
    snapshot = padding.publish_padded(ready.settings, messages, parent, context.log.info)
    yield from _results(context, snapshot, parent, ready.settings, before)


@dg.asset(
    deps=[padded_pairs],
    group_name="preparation",
    kinds={"parquet"},
    owners=owners(),
    code_version=str(rejects.VERSION),
    check_specs=[
        dg.AssetCheckSpec(
            "rejects_are_complete",
            asset=rejects.ASSET,
            description="As many rows as all stages together rejected.",
            blocking=True,
        )
    ],
    metadata=schema_metadata(schemas.REJECTS),
)
@explained
def rejected_annotations(context: dg.AssetExecutionContext, project: ProjectResource) -> dg.MaterializeResult:
    """All rejects of all stages: file, line, stage and reason, without the row's text."""
    ready = project.ready()
    stages = {Stage.PADDED: ready.snapshot(Stage.PADDED)}
    for child, stage in itertools.pairwise(reversed(Stage)):
        stages[stage] = ready.ancestor(stages[child], stage)
    before = latest_snapshot(ready.storage, rejects.ASSET)
    snapshot = rejects.publish_rejects(ready.settings, stages, context.log.info)
    if problems := delivery_problems(stages[Stage.RAW], stages[Stage.VALIDATED]):
        context.log.warning(problems)
    return rejects_result(snapshot, before)
