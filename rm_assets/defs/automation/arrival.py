"""Annotations that arrive: the sensor that asks for a refresh once per content of the files.

The sensor keeps no cursor. What the files hold is hashed, what the data were made from stands in their manifests, and
what was asked for in the tags of runs: a sensor that is reset, renamed or run twice asks for nothing twice, and no file
is lost with a run that failed.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Sequence

import dagster as dg
from dagster import DagsterRunStatus as Status

from rm_assets.data.sources.content_version import Listing, content_listing, published_version
from rm_assets.data.sources.discovery import NothingToReadError
from rm_assets.data.sources.file_kinds import what_is_not_read
from rm_assets.data.stages.raw import files_to_read
from rm_assets.data.storage.files import resolve_path
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.automation.jobs import everything, refresh_data
from rm_assets.defs.project import ProjectResource
from rm_assets.settings import Settings, SettingsError
from rm_assets.settings_loading import load_settings

CONTENT_TAG = "rm_assets/content_version"
_HASHING_SECONDS = 20.0
"""A tick ends well before the minute that Dagster gives it; what is not hashed by then is left to the next one."""
_SHORTEST_PAUSE_SECONDS = 60.0
"""A run that was killed is started once more by Dagster's daemon, which looks every few seconds."""
_DESCRIPTION = (
    "Asks for refresh_data once per new content of the annotation files, when none of them is changing any more. "
    "A tick that asks for nothing says why: open its '0 runs requested'."
)
_IN_PROGRESS = [Status.QUEUED, Status.STARTING, Status.STARTED, Status.CANCELING]


def _interval() -> int:
    """Seconds between two ticks. Of settings that cannot be used the ticks tell; the location must load to have any."""
    with contextlib.suppress(SettingsError):
        return load_settings({}, os.environ).arrival_seconds
    return int(Settings.model_fields["arrival_seconds"].default)


@dg.sensor(
    name="new_annotations",
    job=refresh_data,
    description=_DESCRIPTION,
    minimum_interval_seconds=_interval(),
    default_status=dg.DefaultSensorStatus.STOPPED,
)
def new_annotations(context: dg.SensorEvaluationContext, project: ProjectResource) -> dg.RunRequest | dg.SkipReason:
    settings = project.settings()
    if settings.uses_sample_annotations:
        return dg.SkipReason("annotations is unset, and the built-in sample never changes: set RM_ANNOTATIONS")
    try:
        annotations, files = files_to_read(settings)
    except NothingToReadError as error:
        return dg.SkipReason(f"nothing has arrived yet: {error}")
    storage = resolve_path(settings.storage)
    listing = content_listing(files, storage, settled_seconds=settings.arrival_seconds, seconds=_HASHING_SECONDS)
    if listing.version is None:
        return dg.SkipReason(_not_ready(listing))
    if listing.version == published_version(storage):
        told = what_is_not_read(annotations.ignored)
        made = f"nothing new: the data were made from these {listing.num_files:,} files"
        return dg.SkipReason(f"{made}; {told}" if told else made)
    return _asked(context.instance, listing.version, settings)


def _not_ready(listing: Listing) -> str:
    if listing.changing:
        return f"waiting until {_named(listing.changing)} has stood still"
    return f"still hashing {_named(listing.unread)}: the next tick goes on"


def _named(sources: Sequence[str]) -> str:
    return repr(sources[0]) + (f" (and {len(sources) - 1:,} more files)" if len(sources) > 1 else "")


def _asked(instance: dg.DagsterInstance, version: str, settings: Settings) -> dg.RunRequest | dg.SkipReason:
    """A request for these contents, unless a refresh is running or they were asked for often enough."""
    if running := _running_refresh(instance):
        return dg.SkipReason(
            f"run {running.run_id} of {running.job_name} is in progress: what it does not find is asked for after it"
        )
    recent = instance.get_run_records(dg.RunsFilter(job_name=refresh_data.name), limit=settings.refresh_attempts + 1)
    attempts = list(itertools.takewhile(lambda record: record.dagster_run.tags.get(CONTENT_TAG) == version, recent))
    if attempts and (reason := _why_not_again(attempts, settings)):
        return dg.SkipReason(reason)
    tags = {CONTENT_TAG: version, "rm_assets/attempt": str(len(attempts) + 1)}
    return dg.RunRequest(run_key=_run_key(instance, attempts, version), tags=tags)


def _running_refresh(instance: dg.DagsterInstance) -> dg.DagsterRun | None:
    """A run that reads the annotations now, whoever started it."""
    for run in instance.get_runs(dg.RunsFilter(statuses=_IN_PROGRESS)):
        selected = run.asset_selection
        is_whole_job = not selected and run.job_name in (refresh_data.name, everything.name)
        if is_whole_job or (selected and dg.AssetKey(Stage.RAW) in selected):
            return run
    return None


def _why_not_again(attempts: Sequence[dg.RunRecord], settings: Settings) -> str:
    """Why contents that were asked for are not asked for again, at least not yet; empty where they are."""
    run, ended = attempts[0].dagster_run, attempts[0].end_time or attempts[0].update_timestamp.timestamp()
    if run.status is Status.NOT_STARTED:
        return ""
    if run.status is Status.CANCELED:
        return f"run {run.run_id} of these contents was cancelled: launch refresh_data by hand, or wait for more"
    if len(attempts) >= settings.refresh_attempts:
        return (
            f"{len(attempts)} runs of these contents did not refresh the data, the last is {run.run_id}: mend what it "
            "says and launch refresh_data by hand"
        )
    pause = max(_SHORTEST_PAUSE_SECONDS, settings.arrival_seconds * 2.0 ** len(attempts))
    if abs(time.time() - ended) < pause:  # far ahead is an end that a clock noted which was set back since
        return f"run {run.run_id} did not refresh the data: asked for again {pause:.0f} s after its end"
    return ""


def _run_key(instance: dg.DagsterInstance, attempts: Sequence[dg.RunRecord], version: str) -> str:
    """A key that no run has, whichever were deleted, or that of a run which a stopped daemon made and never started."""
    newest = attempts[0].dagster_run if attempts else None
    if newest and newest.status is Status.NOT_STARTED and (key := newest.tags.get("dagster/run_key")):
        return key
    # Dagster runs no key twice: each names the run before it, where a number could come back after a deletion
    before = instance.get_runs(dg.RunsFilter(tags={CONTENT_TAG: version}), limit=1)
    return f"{version}:{before[0].run_id}" if before else version
