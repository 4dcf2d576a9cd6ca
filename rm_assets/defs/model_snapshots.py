"""Trained models on disk: found by key, trained where none has it, published when their manifest proves true.

`<storage>/reward_model/<snapshot>/` holds `model/`, `scores.parquet`, `metrics.jsonl` and `manifest.json`. The
snapshot is named by what went into the model, not by its weights: on a GPU no two trainings give the same ones.
"""

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from rm_assets.data.fingerprint import fingerprint
from rm_assets.data.padding import SPLITS, pad_token_id_of
from rm_assets.data.publication import held_lock, pinned_snapshots, remove_directory, write_json
from rm_assets.data.snapshots import LATEST, MANIFEST, REJECTS, Snapshot, SnapshotError
from rm_assets.defs.launcher import TrainingLauncher
from rm_assets.defs.project import Project

VERSION = 2
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
        name = json.loads((storage / ASSET / LATEST).read_bytes())["snapshot"]
    except FileNotFoundError:
        raise SnapshotError(f"{ASSET} has no snapshot in {str(storage)!r}: materialize {ASSET} first") from None
    return model_snapshot(storage, name)


def model_snapshot(storage: Path, name: str) -> ModelSnapshot:
    """The model of this name; raises SnapshotError where there is none."""
    try:
        manifest = json.loads((storage / ASSET / name / MANIFEST).read_bytes())
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
        context.log.warning(f"a damaged model is trained anew: {error}")
        shutil.rmtree(directory)
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
    working = home / _TRAINING / key[:16]
    job_path = home / _TRAINING / f"{key[:16]}.json"
    working.mkdir(parents=True, exist_ok=True)
    job_path.write_text(training_job(project, pairs, key, working))
    launcher.run(context, job_path, project.storage)
    manifest = read_result(working, key)
    working.rename(home / key[:16])
    shutil.rmtree(home / _TRAINING)
    return ModelSnapshot(directory=home / key[:16], manifest=manifest, trained_now=True)


def training_job(project: Project, pairs: Snapshot, key: str, output_directory: Path) -> str:
    """The job's description as JSON text, all paths absolute."""
    from rm_assets.training.job import TrainingJob

    return TrainingJob(
        key=key,
        output_directory=str(output_directory.resolve()),
        data_snapshot=pairs.name,
        splits={split: [str(path.resolve()) for path in pairs.paths(split)] for split in _splits(pairs)},
        pad_token_id=pad_token_id_of(pairs),
        model=project.model.name,
        model_revision=project.model.revision,
        toy=project.model.toy,
        vocab_size=project.model.vocab_size,
        tokenizer=project.tokenizer.directory,
        chat_template=project.tokenizer.chat_template,
        settings=project.settings.training,
    ).model_dump_json(indent=1)


def _remove_old_models(home: Path, current: Path, keep_snapshots: int) -> None:
    pinned = pinned_snapshots(home.parent)  # by reports, and by the promoted model
    others = [
        manifest
        for manifest in home.glob(f"*/{MANIFEST}")
        if manifest.parent != current and (ASSET, manifest.parent.name) not in pinned
    ]
    newest_first = sorted(others, key=lambda manifest: manifest.stat().st_mtime_ns, reverse=True)
    for manifest in newest_first[keep_snapshots - 1 :]:
        with contextlib.suppress(FileNotFoundError):
            remove_directory(manifest.parent)
