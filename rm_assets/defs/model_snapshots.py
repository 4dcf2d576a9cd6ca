"""Trained models on disk: found by key, trained where none has it, published when their manifest proves true.

`<storage>/reward_model/<snapshot>/` holds `model/`, `scores.parquet`, `metrics.jsonl` and `manifest.json`. The
snapshot is named by what went into the model, not by its weights: on a GPU no two trainings give the same ones.

A training in progress lies in `.training/<snapshot>/`, its description beside it, until it is done. One that was
stopped goes on from its checkpoint, on the pairs that it began with; other settings begin another one.

The job works on real files. Where the storage is a remote one, it reads copies of the pairs and writes into a directory
of this machine, which is then uploaded, the manifest last.
"""

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from rm_assets.data.chat import carried_template
from rm_assets.data.fingerprint import fingerprint
from rm_assets.data.locks import held_lock
from rm_assets.data.padding import pad_token_id_of
from rm_assets.data.publication import pinned_snapshots, remove_directory, unfinished_trainings
from rm_assets.data.records import Stage
from rm_assets.data.snapshots import LATEST, MANIFEST, REJECTS, Snapshot, SnapshotError, read_snapshot
from rm_assets.data.splits import SPLITS
from rm_assets.data.storage import (
    download,
    is_abandoned,
    is_remote,
    read_file,
    remove_tree,
    subdirectories,
    upload,
    write_json,
)
from rm_assets.defs.launcher import TrainingFailedError, TrainingLauncher
from rm_assets.defs.project import Project

VERSION = 2
ASSET = "reward_model"


@dataclass(frozen=True, kw_only=True)
class ModelSnapshot:
    """A published model: its directory, the manifest that its job wrote, and whether this run trained it."""

    directory: Path
    manifest: dict[str, Any]
    trained_now: bool

    @property
    def key(self) -> str:
        """What went into the model, as one hash."""
        return str(self.manifest["key"])


def trained_model(
    project: Project, pairs: Snapshot, context: dg.AssetExecutionContext, launcher: TrainingLauncher
) -> ModelSnapshot:
    """The model of these pairs and settings: the one on disk, or one trained now.

    A training of the same settings that was stopped, and whose pairs have changed since, is finished first: what it
    has done is not lost, however often pairs arrive. Raises TrainingFailedError or TrainingResultError where the job
    leaves no result that proves true.
    """
    key = model_key(project, pairs)
    home = project.storage / ASSET
    with held_lock(home / "writer.lock", ASSET, context.log.info):
        found = _verified(home / key[:16], key, context)
        if found is None:
            context.log.info(_announcement(project))
            older = None if _has_checkpoint(home, key) else _stopped_training(project, home)
            if older is not None:
                _finish_older(project, older, context, launcher)
            found = _train(project, pairs, key, context, launcher)
        else:
            context.log.info(f"nothing that goes into the model changed: {found.directory.name} stands, no training")
        write_json(home / LATEST, {"snapshot": found.directory.name})
        _remove_old_models(home, found.directory, project.settings.keep_snapshots)
        remove_old_trainings(home, project.settings.keep_snapshots, context.log.warning)
    return found


def model_key(project: Project, pairs: Snapshot) -> str:
    """A hash of everything that goes into a model: the pairs by split, model, tokenizer, settings and this version."""
    files = {
        split: [f.sha256 for s in pairs.manifest.shards for f in s.files if f.folder == split]
        for split in _splits(pairs)
    }
    training = project.settings.training.decisive()
    return fingerprint(ASSET, VERSION, files, project.model.identity, project.tokenizer.identity, training)


def _splits(pairs: Snapshot) -> list[str]:
    """The three splits, and the folder of each evaluation set."""
    folders = {file.folder for shard in pairs.manifest.shards for file in shard.files} - {REJECTS, *SPLITS}
    return [*SPLITS, *sorted(folders)]


def newest_model(storage: Path) -> ModelSnapshot | None:
    """The newest model, or None."""
    try:
        name = json.loads(read_file(storage / ASSET / LATEST))["snapshot"]
    except FileNotFoundError:
        return None
    return model_snapshot(storage, name)


def required_model(storage: Path) -> ModelSnapshot:
    """The newest model; raises SnapshotError where there is none."""
    if model := newest_model(storage):
        return model
    raise SnapshotError(f"{ASSET} has no snapshot in {str(storage)!r}: materialize {ASSET} first")


def model_snapshot(storage: Path, name: str) -> ModelSnapshot:
    """The model of this name; raises SnapshotError where there is none."""
    try:
        manifest = json.loads(read_file(storage / ASSET / name / MANIFEST))
    except FileNotFoundError:
        raise SnapshotError(f"{ASSET} {name!r} is not in {str(storage)!r}: name one that is, or train anew") from None
    return ModelSnapshot(directory=storage / ASSET / name, manifest=manifest, trained_now=False)


def _verified(directory: Path, key: str, context: dg.AssetExecutionContext) -> ModelSnapshot | None:
    from rm_assets.training.result import TrainingResultError, read_result

    if not directory.exists():
        return None
    try:
        return ModelSnapshot(directory=directory, manifest=read_result(directory, key), trained_now=False)
    except TrainingResultError as error:
        if is_remote(directory) and not (directory / MANIFEST).exists() and not is_abandoned(directory):
            told = "it has no manifest yet and may be on its way from another machine: run again later, or remove it"
            raise SnapshotError(f"{ASSET} {directory.name!r} is unfinished in the storage: {told}") from None
        context.log.warning(f"a damaged model is trained anew: {error}")
        remove_tree(directory)
        return None


def _announcement(project: Project) -> str:
    if project.model.toy:
        return "model is unset: training the built-in tiny model from random weights, which is a toy"
    return f"training from {project.model.name!r}"


def _has_checkpoint(home: Path, key: str) -> bool:
    from rm_assets.training.result import CHECKPOINTS

    return any((unfinished_trainings(home) / key[:16] / CHECKPOINTS).glob("step-*"))


def _stopped_training(project: Project, home: Path) -> Snapshot | None:
    """The pairs of the newest training with a checkpoint that differs from one of today in its pairs alone."""
    for path in _descriptions(home):
        try:
            description = json.loads(path.read_bytes())
            pairs = read_snapshot(project.storage / Stage.PADDED / description["data_snapshot"])
        except (ValueError, KeyError, OSError, SnapshotError):
            continue
        key = model_key(project, pairs)
        if key == description["key"] and _has_checkpoint(home, key):
            return pairs
    return None


def _descriptions(home: Path) -> list[Path]:
    """The trainings that are not finished, the newest first."""
    return sorted((unfinished_trainings(home)).glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _finish_older(
    project: Project, pairs: Snapshot, context: dg.AssetExecutionContext, launcher: TrainingLauncher
) -> None:
    """Finish a training on pairs that have changed since. Where it fails, it is given up: today's pairs count."""
    from rm_assets.training.result import TrainingResultError

    key, home = model_key(project, pairs), project.storage / ASSET
    context.log.warning(f"a training on padded_pairs {pairs.name} was stopped: it is finished before today's pairs")
    try:
        found = _train(project, pairs, key, context, launcher)
        write_json(home / LATEST, {"snapshot": found.directory.name})
    except (TrainingFailedError, TrainingResultError) as error:
        context.log.warning(f"the training on padded_pairs {pairs.name} is given up: {error}")
        _remove_training(home, key[:16])


def _train(
    project: Project, pairs: Snapshot, key: str, context: dg.AssetExecutionContext, launcher: TrainingLauncher
) -> ModelSnapshot:
    from rm_assets.training.result import read_result, remove_scratch

    home = project.storage / ASSET
    training = unfinished_trainings(home)
    working, job_path = training / key[:16], training / f"{key[:16]}.json"
    working.mkdir(parents=True, exist_ok=True)
    if not _is_finished(working, key):
        write_json(job_path, training_job(project, pairs, key, working))
        launcher.run(context, job_path, project.settings)
    manifest = read_result(working, key)
    remove_scratch(working)
    if is_remote(home):
        upload(working, home / key[:16])
        shutil.rmtree(working)
    else:
        working.rename(home / key[:16])
    job_path.unlink(missing_ok=True)
    return ModelSnapshot(directory=home / key[:16], manifest=manifest, trained_now=True)


def _is_finished(working: Path, key: str) -> bool:
    """Whether an earlier run was stopped between the job's end and the publication of its result."""
    from rm_assets.training.result import TrainingResultError, read_result

    with contextlib.suppress(TrainingResultError):
        return bool(read_result(working, key))
    return False


def training_job(
    project: Project, pairs: Snapshot, key: str, output_directory: Path, splits: dict[str, list[str]] | None = None
) -> dict[str, Any]:
    """The job's description as JSON, all paths absolute; `splits` are other files than the pairs' own."""
    from rm_assets.training.job import TrainingJob

    return TrainingJob(
        key=key,
        output_directory=str(output_directory.resolve()),
        data_snapshot=pairs.name,
        splits=splits or {split: _files(project, pairs, split, output_directory.parent) for split in _splits(pairs)},
        pad_token_id=pad_token_id_of(pairs),
        model=project.model.name,
        model_revision=project.model.revision,
        toy=project.model.toy,
        vocab_size=project.model.vocab_size,
        tokenizer=project.tokenizer.directory,
        chat_template=carried_template(project.tokenizer),
        settings=project.settings.training,
    ).model_dump(mode="json")


def _files(project: Project, pairs: Snapshot, split: str, directory: Path) -> list[str]:
    """The files of a split as absolute paths of this machine, copied there if they are remote and the job is here."""
    paths = pairs.paths(split)
    if not is_remote(pairs.directory):
        return [str(path.resolve()) for path in paths]
    if project.settings.launch.launcher != "local":
        return [str(path) for path in paths]
    copies = [directory / pairs.name / split / path.name for path in paths]
    for path, copy in zip(paths, copies, strict=True):
        download(path, copy)
    return [str(copy.resolve()) for copy in copies]


def _remove_old_models(home: Path, current: Path, keep_snapshots: int) -> None:
    pinned = pinned_snapshots(home.parent)  # by reports, and by the promoted model
    written: dict[Path, float] = {}
    for name in subdirectories(home):
        with contextlib.suppress(FileNotFoundError):
            written[home / name] = (home / name / MANIFEST).stat().st_mtime
    kept = {current} | {directory for directory in written if (ASSET, directory.name) in pinned}
    for directory in sorted(written.keys() - kept, key=written.__getitem__, reverse=True)[keep_snapshots - 1 :]:
        remove_directory(directory)


def remove_old_trainings(home: Path, keep: int, say: Callable[[str], object]) -> None:
    """Remove unfinished trainings of other settings or pairs: those without a checkpoint, all but the newest `keep`."""
    kept = [path.stem for path in _descriptions(home) if _has_checkpoint(home, path.stem)][:keep]
    for name in sorted({path.stem for path in (unfinished_trainings(home)).glob("*")} - set(kept)):
        if _has_checkpoint(home, name):
            say(f"the unfinished training {name} is removed: {keep} newer ones stand")
        _remove_training(home, name)


def _remove_training(home: Path, name: str) -> None:
    """Its directory first: while the description stands, its pairs are kept."""
    shutil.rmtree(unfinished_trainings(home) / name, ignore_errors=True)
    (unfinished_trainings(home) / f"{name}.json").unlink(missing_ok=True)
