"""The schedule that trains every night if enough pairs changed since the newest model."""

import time
from pathlib import Path

import dagster as dg
from dagster import DagsterRunStatus as Status

from rm_assets.data.pairs.changes import num_changed_pairs
from rm_assets.data.storage.snapshots import Snapshot, SnapshotError, read_snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.automation.jobs import TRAINS, train_model
from rm_assets.defs.project import ProjectResource
from rm_assets.defs.snapshots.models import newest_model

_LAUNCH_SECONDS = 600.0
"""A run that has been NOT_STARTED for longer was abandoned by a process that died."""
_UNFINISHED = [Status.NOT_STARTED, Status.QUEUED, Status.STARTING, Status.STARTED, Status.CANCELING]


@dg.schedule(
    name="nightly_training",
    job=train_model,
    cron_schedule="0 2 * * *",
    description="Launches train_model if at least train_after_pairs pairs changed since the newest model was trained.",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
)
def nightly_training(context: dg.ScheduleEvaluationContext, project: ProjectResource) -> dg.RunRequest | dg.SkipReason:
    """Launches train_model at 2:00 UTC if at least train_after_pairs pairs changed since the newest model's data.

    After a night whose training failed or was stopped, the next night launches it again, and it resumes.
    """
    ready = project.ready()
    try:
        pairs = ready.snapshot(Stage.PADDED)
    except SnapshotError as error:
        return dg.SkipReason(f"there is nothing to train on: {error}")
    if running := _running_training(context.instance):
        return dg.SkipReason(f"run {running} is training")
    model = newest_model(ready.storage)
    trained_on = _read_pairs(ready.storage / Stage.PADDED / model.manifest["data_snapshot"]) if model else None
    if trained_on:
        num_changed, enough = num_changed_pairs(trained_on, pairs), ready.settings.train_after_pairs
        if num_changed < enough:
            return dg.SkipReason(
                f"{num_changed:,} pairs changed since the newest model was trained on padded_pairs {trained_on.name}: "
                f"training waits for {enough:,} (train_after_pairs)"
            )
    # the date is part of the key, as Dagster never runs a key twice
    return dg.RunRequest(run_key=f"{pairs.name}:{context.scheduled_execution_time:%Y-%m-%d}")


def _running_training(instance: dg.DagsterInstance) -> str | None:
    """The id of a run that is training or about to train."""
    for record in instance.get_run_records(dg.RunsFilter(tags={TRAINS: "true"}, statuses=_UNFINISHED)):
        is_new = time.time() - record.create_timestamp.timestamp() < _LAUNCH_SECONDS
        if record.dagster_run.status is not Status.NOT_STARTED or is_new:
            return record.dagster_run.run_id
    return None


def _read_pairs(directory: Path) -> Snapshot | None:
    """The pairs of a model; None if they were removed, so that the change cannot be counted."""
    try:
        return read_snapshot(directory)
    except (FileNotFoundError, SnapshotError):
        return None
