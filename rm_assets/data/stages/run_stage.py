"""What flattening, tokenization, padding and validation have in common: one task per shard, computed and published."""

from collections.abc import Callable
from typing import Any

from rm_assets.data.compute.engine import Task, compute_shards
from rm_assets.data.stages.identities import stage_identity
from rm_assets.data.storage.files import resolve_path
from rm_assets.data.storage.publication import Publication, open_publication
from rm_assets.data.storage.shards import InvariantFunction, StageFunction
from rm_assets.data.storage.snapshots import Shard, Snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

Log = Callable[[str], object]


def shard_task(shard: Shard, key: str, arguments: Any) -> Task:
    """The task of making a stage's shard from its parent's: the same name, source and size."""
    return Task(name=shard.name, source=shard.source, key=key, num_bytes=shard.num_bytes, arguments=arguments)


def run_stage(
    stage: Stage,
    settings: Settings,
    parent: Snapshot,
    plan: Callable[[Publication], list[Task]],
    compute: StageFunction,
    measure: InvariantFunction,
    log: Log,
    *,
    tokenizer: str = "",
    facts: Callable[[Publication, list[Shard]], dict[str, Any]] = lambda publisher, shards: {},
) -> Snapshot:
    """Compute the planned shards whose keys are not found, and publish all of them as the stage's next snapshot.

    `compute` writes a shard, `measure` reads it back for the invariants. `facts` computes figures of the whole
    snapshot, and is called only if that differs from the last one. `tokenizer` is the tokenizer's identity, in the
    stage that adds it to the snapshot's.
    """
    with open_publication(
        resolve_path(settings.storage), stage, settings.keep_snapshots, log, settings.verify
    ) as publisher:
        shards = compute_shards(publisher, plan(publisher), compute, measure, settings, log)
        identity = stage_identity(stage, settings, parent.manifest.identity, tokenizer)
        inputs = {parent.manifest.asset: parent.name}
        return publisher.publish(shards, inputs, lambda: facts(publisher, shards), identity)


def log_slow_paths(snapshot: Snapshot, what: str, statistic: str, log: Log) -> None:
    """Log why a fast path was not taken: each reason once, from the figure `statistic` of the shards."""
    for reason in sorted({shard.stats[statistic] for shard in snapshot.manifest.shards} - {""}):
        log(f"{snapshot.manifest.asset}: {what}: {reason}")
