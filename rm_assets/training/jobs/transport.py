"""Sends a job to another machine through the storage, and brings back what it wrote.

`<storage>/.jobs/<name>/<attempt>/` holds `job.json`, `inputs/` and `output/`. Each attempt removes its own directory
and those of earlier attempts. Files in a storage that both machines see as a directory are used where they are. Where
the storage is at a URI, so is `job.json`, and the other machine works on copies: see `receiving`. No torch here.
"""

import contextlib
import functools
import itertools
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rm_assets.data.storage.files import (
    file_sizes,
    is_remote,
    read_file,
    remove_directories,
    remove_files,
    remove_tree,
    resolve_path,
    subdirectories,
)
from rm_assets.data.storage.writing import copy_file, download, upload, write_json
from rm_assets.training.jobs.result import CHECKPOINTS, MANIFEST
from rm_assets.training.jobs.scoring_job import ScoringJob
from rm_assets.training.jobs.training_job import TrainingJob

JOBS = ".jobs"
CHECKPOINT = "step-"
"""Prefix of the names of finished checkpoints."""

_ATTEMPT = re.compile(r"[0-9a-f]{32}")
Job = TrainingJob | ScoringJob


@dataclass(frozen=True)
class SentJob:
    """A job as the other machine finds it: `name` identifies it, `place` is its `job.json`."""

    name: str
    place: Path
    output: Path


@contextlib.contextmanager
def sent_job(job: Job, storage: Path, name: str) -> Iterator[SentJob]:
    """Send the job; on leaving, however it ended, what it wrote is copied to its own output directory.

    Checkpoints that earlier attempts left in the storage are brought back first, and sent again.
    """
    home = storage / JOBS / name / uuid.uuid4().hex
    earlier = [home.parent / attempt for attempt in subdirectories(home.parent) if _ATTEMPT.fullmatch(attempt)]
    output = _shared_path(Path(job.output_directory), storage) or home / "output"
    brought_back = output.parent == home
    if brought_back:
        for attempt in earlier:
            copy_from_storage(attempt / "output" / CHECKPOINTS, Path(job.output_directory) / CHECKPOINTS)
    for attempt in earlier:
        _remove_attempt(attempt)
    if brought_back:
        _send_checkpoints(Path(job.output_directory), output)
    send = copier(home / "inputs", lambda name: _must_be_sent(name, storage), upload, copy_file)
    sent = job.with_paths(send, str(output))
    write_json(home / "job.json", sent.model_dump(mode="json"))
    try:
        yield SentJob(name=name, place=home / "job.json", output=output)
    finally:
        if brought_back:
            with contextlib.suppress(FileNotFoundError):  # removed by a later attempt, which took it over
                copy_from_storage(output, Path(job.output_directory))
        _remove_attempt(home)
        if not is_remote(storage):
            with contextlib.suppress(OSError):  # a later attempt has its directory there
                home.parent.rmdir()


def _remove_attempt(home: Path) -> None:
    remove_files([home / "job.json"])
    remove_tree(home / "inputs")
    remove_tree(home / "output")
    remove_directories([home])


def _must_be_sent(name: str, storage: Path) -> bool:
    """Whether the other machine cannot read this path; neither a URI nor a name on the Hub is sent."""
    return "://" not in name and Path(name).exists() and not _shared_path(Path(name), storage)


def copier(
    home: Path,
    is_to_copy: Callable[[str], bool],
    copy_directory: Callable[[Path, Path], None],
    copy_one: Callable[[Path, Path], None],
) -> Callable[[str], str]:
    """A function that copies a file or directory into `home`, if it is to be copied, and returns its path from then on.

    Each is copied once, into a directory of its own.
    """
    numbers = itertools.count()

    @functools.cache
    def copy(name: str) -> str:
        if not is_to_copy(name):
            return name
        origin, target = resolve_path(name), home / str(next(numbers))
        if origin.is_dir():
            copy_directory(origin, target)
            return str(target)
        copy_one(origin, target / origin.name)
        return str(target / origin.name)

    return copy


def _shared_path(path: Path, storage: Path) -> Path | None:
    """The absolute path, if it is in a storage directory that the other machine sees too; else None."""
    if not is_remote(storage) and path.resolve().is_relative_to(storage.resolve()):
        return path.resolve()
    return None


def _send_checkpoints(directory: Path, output: Path) -> None:
    for name in subdirectories(directory / CHECKPOINTS):
        if name.startswith(CHECKPOINT):
            upload(directory / CHECKPOINTS / name, output / CHECKPOINTS / name)


def copy_from_storage(origin: Path, target: Path) -> None:
    """Copy every file of a directory of the storage to a directory of this machine, the manifest last.

    Files of a checkpoint that are already there are not copied again: its name has the hash of its content.
    """
    for name in sorted(file_sizes(origin), key=lambda name: name == MANIFEST):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if not any(part.startswith(CHECKPOINT) for part in name.split("/")):
            (target / name).unlink(missing_ok=True)
        download(origin / name, target / name)


def read_job(path: str) -> Job:
    """The training or scoring job of a file, or at a URI; raises OSError, StorageError, or ValueError if it is none."""
    described = read_file(resolve_path(path))
    return (ScoringJob if b'"pairs":' in described else TrainingJob).model_validate_json(described)
