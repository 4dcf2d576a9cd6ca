"""The files of a finished job: written, verified and removed here. No torch here.

`manifest.json` is written last: a directory without one holds no result. Only files that a job wrote are ever removed.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from rm_assets.data.storage.files import file_sizes, read_file, remove_directories, subdirectories
from rm_assets.data.storage.fingerprint import file_sha256
from rm_assets.data.storage.ownership import is_safe_relative_path, remove_listed_files
from rm_assets.data.storage.parquet import open_parquet
from rm_assets.data.storage.snapshots import SnapshotError
from rm_assets.data.storage.writing import copy_file, fsync_directory, write_file
from rm_assets.training.jobs.training_job import EVALUATION, TrainingError

MANIFEST = "manifest.json"
MODEL = "model"
ADAPTER = "adapter"
SCORES_FILE = "scores.parquet"
METRICS = "metrics.jsonl"
GOLDEN = "golden_scores.json"  # in MODEL
ERROR = "error.txt"
CHECKPOINTS = "checkpoints"
SCRATCH = "scratch"


def judged_pairs(rows: Any) -> Any:
    """The rows of a data frame with a `split` by which a model is judged: the test pairs, or if there are none those of
    all evaluation sets."""
    test = rows[rows["split"] == "test"]
    return test if len(test) else rows[rows["split"].str.startswith(EVALUATION)]


_RESULT = re.compile(r"manifest\.json|\.manifest\.json\.[0-9a-f]{32}|error\.txt|metrics\.jsonl|scores\.parquet")
_MODELS = re.compile(r"(model|adapter)/.+")
_TRACKED = re.compile(r"tensorboard/events\.out\.tfevents\..+|wandb/.+")
_CHECKPOINT = r"(process-[0-9]+\.safetensors|metrics\.jsonl|manifest\.json|\.tmp[A-Za-z0-9]{6})"  # last: safetensors
_IN_PROGRESS = re.compile(
    rf"checkpoints/(step-[0-9]{{8,}}-[0-9a-f]{{16}}|\.unfinished)/{_CHECKPOINT}"
    r"|scratch/pairs(-[0-9a-f]{32}(\.[^/]+\.tmp)?)?/.+|scratch/begun"
)


class TrainingResultError(SnapshotError):
    """A training result that is missing, belongs to another job, or has changed since it was written."""


class ForeignOutputError(TrainingError):
    """The output directory holds foreign files: nothing is written there, not even the reason."""


FEW_STEPS = 30
"""Optimizer steps, fewer of which hardly move a pretrained model at a usual learning rate."""


def few_steps_warning(num_steps: int) -> str:
    """A warning if a training has fewer optimizer steps than FEW_STEPS, else ""."""
    if num_steps >= FEW_STEPS:
        return ""
    counted = f"{num_steps} optimizer step{'s' * (num_steps != 1)}"
    return (
        f"{counted}: fewer than {FEW_STEPS} hardly change a pretrained model; lower "
        "batch_pairs, or raise epochs or learning_rate"
    )


def copy_trained(directory: Path, trained: Path) -> None:
    """Copy the weights and curves of a published model into a job's directory.

    Raises TrainingResultError for a file that changed since it was published.
    """
    for name, sha256 in read_manifest(trained)["files"].items():
        if _MODELS.fullmatch(name) or name == METRICS:
            copy_file(trained / name, directory / name)
            _check_file(directory, name, sha256)


def copied_figures(trained: Path) -> dict[str, Any]:
    """The figures of a published model's training, without those of its held-out pairs."""
    of_held_out = ("validation_", "test_", EVALUATION, "bfloat16_", "scores_")
    metrics = read_manifest(trained)["metrics"]
    return {name: value for name, value in metrics.items() if not name.startswith(of_held_out)}


def write_manifest(
    directory: Path,
    key: str,
    data_snapshot: str,
    metrics: Mapping[str, Any],
    versions: Mapping[str, str],
    weights_key: str,
) -> None:
    """Hash and sync every file of the result, then publish it by writing the manifest."""
    folders = [directory / name for name in (MODEL, ADAPTER)]
    paths = [
        *(path for folder in folders for path in sorted(folder.rglob("*"))),
        directory / SCORES_FILE,
        directory / METRICS,
    ]
    files = {path.relative_to(directory).as_posix(): synced_sha256(path) for path in paths if path.is_file()}
    manifest = {
        "key": key,
        "data_snapshot": data_snapshot,
        "files": files,
        "metrics": metrics,
        "versions": versions,
        "weights_key": weights_key,
    }
    for folder in (*folders, directory):
        if folder.is_dir():
            fsync_directory(folder)
    write_file(directory / MANIFEST, (json.dumps(manifest, indent=2, allow_nan=False) + "\n").encode())


def read_result(directory: Path, key: str) -> dict[str, Any]:
    """The manifest of a finished job, after verifying its key and the hash of every file.

    Raises TrainingResultError, which names the wrong file and how it is wrong.
    """
    path = directory / MANIFEST
    try:
        manifest = read_manifest(directory)
    except FileNotFoundError:
        raise TrainingResultError(f"no {MANIFEST} in {str(directory)!r}: the training did not finish") from None
    found, files = manifest["key"], manifest["files"]
    if found != key:
        raise TrainingResultError(f"{str(path)!r} has the key {found!r}, not {key!r}: it belongs to another job")
    for name, expected in files.items():
        _check_file(directory, name, expected)
    return manifest


class _Manifest(msgspec.Struct):
    key: str
    data_snapshot: str
    files: dict[str, str]
    metrics: dict[str, Any]
    versions: dict[str, Any]
    weights_key: str = ""


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a finished job; raises FileNotFoundError, or TrainingResultError where it is damaged."""
    path = directory / MANIFEST
    try:
        return dict(msgspec.to_builtins(msgspec.json.decode(read_file(path), type=_Manifest)))
    except (msgspec.MsgspecError, IsADirectoryError) as error:
        raise TrainingResultError(f"{str(path)!r} is damaged ({error}): remove the directory and train again") from None


def read_scores(directory: Path, asset: str = "reward_model") -> Any:
    """A data frame of a result's scores of held-out pairs, with the schema schemas.SCORES, its hash verified.

    An error advises to materialize this asset again.
    """
    sha256 = read_manifest(directory)["files"].get(SCORES_FILE, "")
    with open_parquet(directory / SCORES_FILE, sha256=sha256, asset=asset) as file:
        return file.read().to_pandas()


def _check_file(directory: Path, name: str, expected: str) -> None:
    path = directory / name
    if not is_safe_relative_path(name) or not path.resolve().is_relative_to(directory.resolve()):
        raise TrainingResultError(f"{MANIFEST} names {name!r}, which is outside {str(directory)!r}")
    try:
        actual = file_sha256(path)
    except (FileNotFoundError, IsADirectoryError):  # other errors say nothing about the file
        raise TrainingResultError(f"{str(path)!r} is missing: remove the directory and train again") from None
    if actual != expected:
        raise TrainingResultError(
            f"{str(path)!r} has the sha256 {actual!r}, not {expected!r}: remove the directory and train again"
        )


def result_files(directory: Path) -> list[str]:
    """The files of a result: its manifest, those that it names, and those of a tracker.

    Without a manifest, all files in the directories of the models belong to the job that is writing them.
    """
    present = file_sizes(directory)
    try:
        named = set(read_manifest(directory)["files"])
    except (OSError, TrainingResultError):
        named = {name for name in present if _MODELS.fullmatch(name)}
    return [name for name in present if name in named or _RESULT.fullmatch(name) or _TRACKED.fullmatch(name)]


def clear_output(directory: Path) -> None:
    """Make the directory and remove the result of an earlier attempt, its manifest first; its checkpoints stay.

    Raises ForeignOutputError, with nothing removed, if the directory holds files that no training wrote.
    """
    directory.mkdir(parents=True, exist_ok=True)
    named = (MANIFEST, ERROR, METRICS, SCORES_FILE, MODEL, ADAPTER)
    found = [name for name in named if (directory / name).exists()]
    if found and not _was_written_by_a_training(directory):
        raise ForeignOutputError(
            f"output_directory is {str(directory)!r}, where {found[0]!r} was not written by a training and would be "
            "replaced: name an empty directory"
        )
    (directory / SCRATCH).mkdir(exist_ok=True)
    (directory / SCRATCH / "begun").touch()
    names = [name for name in result_files(directory) if not _TRACKED.fullmatch(name)]
    remove_listed_files(directory, sorted(names, key=lambda name: name != MANIFEST))
    remove_directories(directory / name for name in (MODEL, ADAPTER))


def _was_written_by_a_training(directory: Path) -> bool:
    """Whether a job wrote here before: it left a manifest, files in progress, or its job file beside the directory."""
    if any(_IN_PROGRESS.fullmatch(name) for name in file_sizes(directory)):
        return True
    try:
        return bool(read_manifest(directory))
    except (OSError, TrainingResultError):
        beside = directory.with_name(f"{directory.name}.json")
        try:
            return bool(json.loads(beside.read_bytes())["output_directory"] == str(directory))
        except (OSError, ValueError, KeyError, TypeError):
            return False


def remove_scratch(directory: Path) -> None:
    """Remove what only a training in progress needs: its checkpoints and its store of pairs."""
    remove_listed_files(directory, [name for name in file_sizes(directory) if _IN_PROGRESS.fullmatch(name)])
    # a kill during the removal of a checkpoint leaves its directory empty
    of_checkpoints = [f"{CHECKPOINTS}/{name}" for name in subdirectories(directory / CHECKPOINTS)]
    ours = [name for name in of_checkpoints if _IN_PROGRESS.fullmatch(f"{name}/{MANIFEST}")]
    remove_directories(directory / name for name in (*ours, CHECKPOINTS, SCRATCH))


def remove_result(directory: Path) -> None:
    """Remove all files that a job wrote into its directory, and the directory if it is then empty."""
    remove_scratch(directory)
    remove_listed_files(directory, result_files(directory))
    remove_directories([directory / MODEL, directory / ADAPTER, directory])


def remove_checkpoint(directory: Path) -> None:
    """Remove the files of a checkpoint, finished or not, and its directory if it is then empty."""
    parent = directory.parent
    names = [f"{CHECKPOINTS}/{directory.name}/{name}" for name in file_sizes(directory)]
    remove_listed_files(parent.parent, [name for name in names if _IN_PROGRESS.fullmatch(name)])
    remove_directories([directory])


def synced_sha256(path: Path) -> str:
    """Sync a file to the disk, and hash it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return file_sha256(path)
