"""The sensor that launches a refresh once per new content of the annotation files.

It has no cursor. The content is a hash of the files; the content of the newest data is in its manifest, and the content
of each request in the tags of its run. So a sensor that is reset, renamed or run twice requests nothing twice, and a
failed run loses no file.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
from dagster import DagsterRunStatus as Status

from rm_assets.data.sources.content_version import CONTENT, FILES, Listing, content_listing, file_changes
from rm_assets.data.sources.discovery import NothingToReadError
from rm_assets.data.sources.file_kinds import what_is_not_read
from rm_assets.data.stages import rejects
from rm_assets.data.stages.raw import files_to_read
from rm_assets.data.storage.files import read_file, resolve_path
from rm_assets.data.storage.latest import latest_name
from rm_assets.data.storage.ownership import MANIFEST
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.automation.jobs import everything, refresh_data
from rm_assets.defs.project import ProjectResource
from rm_assets.defs.results.annotation_files import changes_tag
from rm_assets.settings import Settings, SettingsError
from rm_assets.settings_loading import load_settings

CONTENT_TAG = "rm_assets/content_version"
FILES_TAG = "rm_assets/files"
"""For people: how many files are new, changed and gone, such as `+2 ~1 -1`."""
_HASHING_SECONDS = 20.0
"""Dagster allows a tick one minute; the next tick hashes what this one has no time for."""
_SHORTEST_PAUSE_SECONDS = 60.0
"""Dagster's daemon retries a killed run within seconds; the sensor must not do so, too."""
_DESCRIPTION = (
    "Launches refresh_data once per new content of the annotation files, when they have stopped changing. "
    "A tick that launches nothing says why: open the blue '0 runs requested' under Result."
)
_IN_PROGRESS = [Status.QUEUED, Status.STARTING, Status.STARTED, Status.CANCELING]


def _interval() -> int:
    """Seconds between two ticks. Invalid settings are reported by `definitions`, which names the setting."""
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
        ignored = what_is_not_read(annotations.ignored)
        reason = f"nothing new: the data was made from these {listing.num_files:,} files"
        return dg.SkipReason(f"{reason}; {ignored}" if ignored else reason)
    return _request(context.instance, listing, settings)


def published_version(storage: Path) -> str | None:
    """The content version that all data assets were made from; None if they differ in it or are missing."""
    try:
        raw = _latest(storage, Stage.RAW)
        last = _latest(storage, rejects.ASSET)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return raw.facts.get(CONTENT) if last.inputs.get(Stage.RAW) == raw.snapshot else None


class _Head(msgspec.Struct):
    """The members of a manifest that are read here."""

    snapshot: str
    inputs: dict[str, str]
    facts: dict[str, Any]


def _latest(storage: Path, asset: str) -> _Head:
    name = latest_name(storage, asset)
    if name is None:
        raise FileNotFoundError(storage / asset)
    return msgspec.json.decode(read_file(storage / asset / name / MANIFEST), type=_Head)


def _not_ready(listing: Listing) -> str:
    if listing.changing:
        return f"waiting until {_first_of(listing.changing)} stops changing"
    return f"still hashing {_first_of(listing.unread)}: the next tick continues"


def _first_of(sources: Sequence[str]) -> str:
    return repr(sources[0]) + (f" (and {len(sources) - 1:,} more files)" if len(sources) > 1 else "")


def _request(instance: dg.DagsterInstance, listing: Listing, settings: Settings) -> dg.RunRequest | dg.SkipReason:
    """A request for this content, unless a refresh is running or it was requested often enough."""
    version = str(listing.version)
    if running := _running_refresh(instance):
        return dg.SkipReason(
            f"run {running.run_id} of {running.job_name} is in progress: files that it misses are requested after it"
        )
    recent = instance.get_run_records(dg.RunsFilter(job_name=refresh_data.name), limit=settings.refresh_attempts + 1)
    attempts = list(itertools.takewhile(lambda record: record.dagster_run.tags.get(CONTENT_TAG) == version, recent))
    if attempts and (reason := _why_not_retried(attempts, settings)):
        return dg.SkipReason(reason)
    changes = _changes(listing, resolve_path(settings.storage))
    tags = {CONTENT_TAG: version} | ({FILES_TAG: changes} if changes else {})
    return dg.RunRequest(run_key=_run_key(instance, attempts, version), tags=tags)


def _changes(listing: Listing, storage: Path) -> str:
    """What changed since the files were last read; empty if that is unknown, or a failed run has read them already."""
    try:
        before = _latest(storage, Stage.RAW).facts.get(FILES)
    except FileNotFoundError:
        before = {}
    except msgspec.MsgspecError:
        before = None
    return changes_tag(file_changes(before, listing.contents)) if before is not None else ""


def _running_refresh(instance: dg.DagsterInstance) -> dg.DagsterRun | None:
    """A run that is reading the annotations, whoever launched it."""
    for run in instance.get_runs(dg.RunsFilter(statuses=_IN_PROGRESS)):
        selected = run.asset_selection
        is_whole_job = not selected and run.job_name in (refresh_data.name, everything.name)
        if is_whole_job or (selected and dg.AssetKey(Stage.RAW) in selected):
            return run
    return None


def _why_not_retried(attempts: Sequence[dg.RunRecord], settings: Settings) -> str:
    """Why this content is not requested again, at least not yet; empty if it is."""
    run, ended = attempts[0].dagster_run, attempts[0].end_time or attempts[0].update_timestamp.timestamp()
    if run.status is Status.NOT_STARTED:
        return ""
    if run.status is Status.CANCELED:
        return f"run {run.run_id} for these files was cancelled: launch refresh_data by hand, or wait for more files"
    if len(attempts) >= settings.refresh_attempts:
        return (
            f"{len(attempts)} runs for these files did not refresh the data, the last is {run.run_id}: fix its error "
            "and launch refresh_data by hand"
        )
    pause = max(_SHORTEST_PAUSE_SECONDS, settings.arrival_seconds * 2.0 ** len(attempts))
    if abs(time.time() - ended) < pause:  # an end far ahead was recorded before the clock was set back
        return f"run {run.run_id} did not refresh the data: it is requested again {pause:.0f} s after its end"
    return ""


def _run_key(instance: dg.DagsterInstance, attempts: Sequence[dg.RunRecord], version: str) -> str:
    """A new run key, even after runs were deleted, or that of a run that a stopped daemon created but did not start."""
    newest = attempts[0].dagster_run if attempts else None
    if newest and newest.status is Status.NOT_STARTED and (key := newest.tags.get("dagster/run_key")):
        return key
    # Dagster never runs a key twice, and after a deletion a number could repeat: so each key names the run before it
    before = instance.get_runs(dg.RunsFilter(tags={CONTENT_TAG: version}), limit=1)
    return f"{version}:{before[0].run_id}" if before else version
