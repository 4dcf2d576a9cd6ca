"""Trainings that are not published yet: what there is to resume, and which of them are removed.

One has the directory `.training/<snapshot>/`, and from before that its description `.training/<snapshot>.json`.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from rm_assets.data.storage.files import remove_files
from rm_assets.data.storage.ownership import is_snapshot_name
from rm_assets.data.storage.retention import unfinished_trainings
from rm_assets.training.jobs.result import CHECKPOINTS, TrainingResultError, read_result, remove_result


class Description(msgspec.Struct, frozen=True):
    """What is read of a training's description, which exists from before its directory is made until publication."""

    key: str
    data_snapshot: str


def descriptions(home: Path) -> list[Description]:
    """The unfinished trainings, newest first. Files that are not named by their key are not ours."""
    paths = sorted(unfinished_trainings(home).glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    found = []
    for path in paths:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            description = msgspec.json.decode(path.read_bytes(), type=Description)
            if is_snapshot_name(path.stem) and description.key[:16] == path.stem:
                found.append(description)
    return found


def training_directory(home: Path, key: str) -> Path:
    """Where the job of a training writes; its description has the same name with `.json`."""
    return unfinished_trainings(home) / key[:16]


def has_progress(home: Path, key: str) -> bool:
    """Whether there is something to resume: a checkpoint, or a result that is not published yet."""
    return any((training_directory(home, key) / CHECKPOINTS).glob("step-*")) or is_finished(home, key)


def is_finished(home: Path, key: str) -> bool:
    """Whether an earlier run was stopped between the job's end and the publication of its result."""
    with contextlib.suppress(TrainingResultError):
        return bool(read_result(training_directory(home, key), key))
    return False


def remove_old_trainings(home: Path, keep: int, warn: Callable[[str], object]) -> None:
    """Remove unfinished trainings without progress, and those with progress but for the newest `keep`."""
    keys = [description.key for description in descriptions(home)]
    resumable = [key for key in keys if has_progress(home, key)]
    for key in sorted({*keys} - {*resumable[:keep]}):
        if key in resumable:
            warn(f"removing the unfinished training {key[:16]}: {keep} newer ones are kept")
        remove_training(home, key)


def remove_training(home: Path, key: str) -> None:
    """Remove a training's files, then its description: as long as that exists, its pairs are kept."""
    if key in {description.key for description in descriptions(home)}:
        directory = training_directory(home, key)
        remove_result(directory)
        remove_files([directory.with_suffix(".json")])
