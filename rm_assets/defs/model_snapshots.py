"""Trained models on disk: found by key, trained where none has it, published when their manifest proves true.

`<storage>/reward_model/<snapshot>/` holds `model/`, `scores.parquet`, `metrics.jsonl` and `manifest.json`. The
snapshot is named by what went into the model, not by its weights: on a GPU no two trainings give the same ones.

The job works on real files. Where the storage is a remote one, it reads copies of the pairs and writes into a directory
of this machine, which is then uploaded, the manifest last.
"""

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from rm_assets.data.fingerprint import fingerprint
from rm_assets.data.locks import held_lock, local_directory
from rm_assets.data.padding import SPLITS, pad_token_id_of
from rm_assets.data.publication import remove_directory
from rm_assets.data.snapshots import LATEST, MANIFEST, REJECTS, Snapshot, SnapshotError
from rm_assets.data.storage import (
    download,
    is_remote,
    read_file,
    remove_tree,
    subdirectories,
    upload,
    write_json,
)
from rm_assets.defs.launcher import TrainingLauncher
from rm_assets.defs.project import Project

VERSION = 1
ASSET = "reward_model"
_TRAINING = ".training"


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

    Raises TrainingFailedError or TrainingResultError where the job leaves no result that proves true.
    """
    key = model_key(project, pairs)
    home = project.storage / ASSET
    with held_lock(home / "writer.lock", ASSET, context.log.info):
        found = _verified(home / key[:16], key, context)
        if found is None:
            context.log.info(_announcement(project))
            found = _train(project, pairs, key, context, launcher)
        else:
            context.log.info(f"nothing that goes into the model changed: {found.directory.name} stands, no training")
        write_json(home / LATEST, {"snapshot": found.directory.name})
        _remove_old_models(home, found.directory, project.settings.keep_snapshots)
    return found


def model_key(project: Project, pairs: Snapshot) -> str:
    """A hash of everything that goes into a model: the pairs by split, model, tokenizer, settings and this version."""
    files = {
        split: [f.sha256 for s in pairs.manifest.shards for f in s.files if f.folder == split]
        for split in _splits(pairs)
    }
    training = project.settings.training.model_dump()
    return fingerprint(ASSET, VERSION, files, project.model.identity, project.tokenizer.identity, training)


def _splits(pairs: Snapshot) -> list[str]:
    """The three splits, and the folder of each evaluation set."""
    folders = {file.folder for shard in pairs.manifest.shards for file in shard.files} - {REJECTS, *SPLITS}
    return [*SPLITS, *sorted(folders)]


def required_model(storage: Path) -> ModelSnapshot:
    """The newest model; raises SnapshotError where there is none."""
    try:
        name = json.loads(read_file(storage / ASSET / LATEST))["snapshot"]
        manifest = json.loads(read_file(storage / ASSET / name / MANIFEST))
    except FileNotFoundError:
        raise SnapshotError(f"{ASSET} has no snapshot in {str(storage)!r}: materialize {ASSET} first") from None
    return ModelSnapshot(directory=storage / ASSET / name, manifest=manifest, trained_now=False)


def _verified(directory: Path, key: str, context: dg.AssetExecutionContext) -> ModelSnapshot | None:
    from rm_assets.training.result import TrainingResultError, read_result

    if not directory.exists():
        return None
    try:
        return ModelSnapshot(directory=directory, manifest=read_result(directory, key), trained_now=False)
    except TrainingResultError as error:
        context.log.warning(f"a damaged model is trained anew: {error}")
        remove_tree(directory)
        return None


def _announcement(project: Project) -> str:
    if project.model.toy:
        return "model is unset: training the built-in tiny model from random weights, which is a toy"
    return f"training from {project.model.name!r}"


def _train(
    project: Project, pairs: Snapshot, key: str, context: dg.AssetExecutionContext, launcher: TrainingLauncher
) -> ModelSnapshot:
    from rm_assets.training.result import read_result

    home = project.storage / ASSET
    training = (local_directory(home) if is_remote(home) else home) / _TRAINING
    working = training / key[:16]
    job_path = training / f"{key[:16]}.json"
    working.mkdir(parents=True, exist_ok=True)
    job_path.write_text(training_job(project, pairs, key, working))
    launcher.run(context, job_path, project.storage)
    manifest = read_result(working, key)
    if is_remote(home):
        upload(working, home / key[:16])
    else:
        working.rename(home / key[:16])
    shutil.rmtree(training)
    return ModelSnapshot(directory=home / key[:16], manifest=manifest, trained_now=True)


def training_job(project: Project, pairs: Snapshot, key: str, output_directory: Path) -> str:
    """The job's description as JSON text, all paths absolute."""
    from rm_assets.training.job import TrainingJob

    return TrainingJob(
        key=key,
        output_directory=str(output_directory.resolve()),
        data_snapshot=pairs.name,
        splits={split: _local_files(pairs, split, output_directory.parent) for split in _splits(pairs)},
        pad_token_id=pad_token_id_of(pairs),
        model=project.model.name,
        model_revision=project.model.revision,
        toy=project.model.toy,
        vocab_size=project.model.vocab_size,
        tokenizer=project.tokenizer.directory,
        chat_template=project.tokenizer.chat_template,
        settings=project.settings.training,
    ).model_dump_json(indent=1)


def _local_files(pairs: Snapshot, split: str, directory: Path) -> list[str]:
    """The files of a split as absolute paths of this machine, copied there if they are remote."""
    paths = pairs.paths(split)
    if not is_remote(pairs.directory):
        return [str(path.resolve()) for path in paths]
    copies = [directory / pairs.name / split / path.name for path in paths]
    for path, copy in zip(paths, copies, strict=True):
        download(path, copy)
    return [str(copy.resolve()) for copy in copies]


def _remove_old_models(home: Path, current: Path, keep_snapshots: int) -> None:
    written: dict[Path, float] = {}
    for name in subdirectories(home):
        with contextlib.suppress(FileNotFoundError):
            written[home / name] = (home / name / MANIFEST).stat().st_mtime
    others = sorted(written.keys() - {current}, key=written.__getitem__, reverse=True)
    for directory in others[keep_snapshots - 1 :]:
        remove_directory(directory)
