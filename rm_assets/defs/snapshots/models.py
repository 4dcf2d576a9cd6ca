"""Trained models on disk: found by key, trained where none has it, published when their manifest proves true.

`<storage>/reward_model/<snapshot>/` holds `model/`, `scores.parquet`, `metrics.jsonl` and `manifest.json`. The
snapshot is named by what went into the model, not by its weights: on a GPU no two trainings give the same ones.

A training in progress lies in `.training/<snapshot>/`, its description beside it, until it is done. One that was
stopped goes on from its checkpoint, on the pairs that it began with; other settings begin another one.

The job works on real files. Where the storage is a remote one, it reads copies of the pairs and writes into a directory
of this machine, which is then uploaded, the manifest last.
"""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec

from rm_assets.data.chat.tokenizer import carried_template
from rm_assets.data.pairs.splits import SPLITS
from rm_assets.data.stages.padding import pad_token_id_of
from rm_assets.data.storage.files import (
    download,
    fsync_directory,
    is_abandoned,
    is_remote,
    link_files,
    read_file,
    remove_files,
    subdirectories,
    upload,
    write_json,
)
from rm_assets.data.storage.fingerprint import file_sha256, fingerprint
from rm_assets.data.storage.locks import Pin, hold_lock, pin_directory
from rm_assets.data.storage.ownership import (
    begin_snapshot,
    claim_storage,
    expired_snapshots,
    finish_removals,
    finish_snapshot,
    is_snapshot_name,
    remove_snapshot,
)
from rm_assets.data.storage.retention import referenced_snapshots, unfinished_trainings
from rm_assets.data.storage.snapshots import (
    LATEST,
    MANIFEST,
    REJECTS,
    Snapshot,
    SnapshotError,
    read_latest,
    read_snapshot,
)
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.launchers.resource import TrainingFailedError, TrainingLauncher
from rm_assets.defs.project import Project

VERSION = 2
ASSET = "reward_model"
Hashes = dict[str, str]
"""Files by path, each with its sha256."""


@dataclass(frozen=True, kw_only=True)
class ModelSnapshot:
    """A published model: its directory, the manifest that its job wrote, and whether this run trained it."""

    directory: Path
    manifest: dict[str, Any]
    trained_now: bool
    pin: Pin | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> str:
        """What went into the model, as one hash."""
        return str(self.manifest["key"])

    @property
    def precision(self) -> str:
        """In what its held-out scores were computed; models whose manifest does not tell have theirs in float32."""
        return str(self.manifest["metrics"].get("scores_precision", "held-out scores computed in float32"))


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
    claim_storage(project.storage)
    with hold_lock(home / "writer.lock", ASSET, context.log.info):
        found = _verified(home, key, context)
        if found is None:
            context.log.info(_announcement(project))
            older = None if _has_progress(home, key) else _stopped_training(project, home)
            if older is not None:
                _finish_older(project, older, context, launcher)
            found = _train(project, pairs, key, context, launcher)
        else:
            context.log.info(f"nothing that goes into the model changed: {found.directory.name} stands, no training")
        write_json(home / LATEST, {"snapshot": found.directory.name})
        _remove_training(home, key[:16])
        finish_removals(home)
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
    """The newest model, or None; raises SnapshotError where its manifest is damaged."""
    return read_latest(storage, ASSET, _read_model)


def required_model(storage: Path) -> ModelSnapshot:
    """The newest model; raises SnapshotError where there is none."""
    if model := newest_model(storage):
        return model
    raise SnapshotError(f"{ASSET} has no snapshot in {str(storage)!r}: materialize {ASSET} first")


def model_snapshot(storage: Path, name: str) -> ModelSnapshot:
    """The model of this name; raises SnapshotError where there is none."""
    try:
        return _read_model(storage / ASSET / name)
    except FileNotFoundError:
        raise SnapshotError(f"{ASSET} {name!r} is not in {str(storage)!r}: name one that is, or train anew") from None


def _read_model(directory: Path) -> ModelSnapshot:
    """The model in a directory, pinned; raises FileNotFoundError, or SnapshotError where its manifest is damaged."""
    from rm_assets.training.jobs.result import TrainingResultError, read_manifest

    pin = pin_directory(directory)
    try:
        manifest = read_manifest(directory)
    except TrainingResultError as error:
        raise SnapshotError(str(error)) from None
    return ModelSnapshot(directory=directory, manifest=manifest, trained_now=False, pin=pin)


def training_steps(model: ModelSnapshot) -> list[dict[str, Any]]:
    """The lines of a model's metrics.jsonl; raises SnapshotError where they are damaged."""
    from rm_assets.training.jobs.result import METRICS

    path = model.directory / METRICS
    try:
        content = read_file(path)
        found, stated = hashlib.sha256(content).hexdigest(), model.manifest["files"].get(METRICS)
        if stated not in (None, found):
            raise ValueError(f"its sha256 is {found}, not {stated}")
        lines = filter(None, content.splitlines())
        return msgspec.json.decode(b"[" + b",".join(lines) + b"]", type=list[dict[str, Any]])
    except (FileNotFoundError, ValueError) as error:  # msgspec's errors are ValueErrors
        told = f"{str(path)!r} cannot be read ({error})"
        raise SnapshotError(f"{told}: materialize {ASSET}, which trains a damaged model anew") from None


def _verified(home: Path, key: str, context: dg.AssetExecutionContext) -> ModelSnapshot | None:
    from rm_assets.training.jobs.result import TrainingResultError, read_result

    directory = home / key[:16]
    if not directory.exists():
        return None
    pin = pin_directory(directory)
    try:
        return ModelSnapshot(directory=directory, manifest=read_result(directory, key), trained_now=False, pin=pin)
    except TrainingResultError as error:
        if is_remote(directory) and not (directory / MANIFEST).exists():
            if _is_finished(unfinished_trainings(home) / key[:16], key):
                context.log.info(f"the upload of {directory.name} was not finished: it goes on")
                return None
            if not is_abandoned(directory):
                told = (
                    "it has no manifest yet and may be on its way from another machine: run again later, or remove it"
                )
                raise SnapshotError(f"{ASSET} {directory.name!r} is unfinished in the storage: {told}") from None
        context.log.warning(f"a damaged model is trained anew, and its files stay until then: {error}")
    return None


def _announcement(project: Project) -> str:
    if project.model.toy:
        return "model is unset: training the built-in tiny model from random weights, which is a toy"
    return f"training from {project.model.name!r}"


def _has_checkpoint(home: Path, key: str) -> bool:
    from rm_assets.training.jobs.result import CHECKPOINTS

    return any((unfinished_trainings(home) / key[:16] / CHECKPOINTS).glob("step-*"))


def _has_progress(home: Path, key: str) -> bool:
    """Whether there is something to go on from: a checkpoint, or a result that is not published yet."""
    return _has_checkpoint(home, key) or _is_finished(unfinished_trainings(home) / key[:16], key)


def _stopped_training(project: Project, home: Path) -> Snapshot | None:
    """The pairs of the newest training with progress that differs from one of today in its pairs alone."""
    for description in _descriptions(home):
        try:
            pairs = read_snapshot(project.storage / Stage.PADDED / description.data_snapshot)
        except (OSError, SnapshotError):
            continue
        key = model_key(project, pairs)
        if key == description.key and _has_progress(home, key):
            return pairs
    return None


class _Description(msgspec.Struct, frozen=True):
    """What a training's description says of it, from before its directory is made until that is published."""

    key: str
    data_snapshot: str


def _descriptions(home: Path) -> list[_Description]:
    """The trainings that are not finished, the newest first. What is named otherwise than by its key is not ours."""
    paths = sorted(unfinished_trainings(home).glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    found = []
    for path in paths:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            description = msgspec.json.decode(path.read_bytes(), type=_Description)
            if is_snapshot_name(path.stem) and description.key[:16] == path.stem:
                found.append(description)
    return found


def _finish_older(
    project: Project, pairs: Snapshot, context: dg.AssetExecutionContext, launcher: TrainingLauncher
) -> None:
    """Finish a training on pairs that have changed since. Where it fails, it is given up: today's pairs count."""
    from rm_assets.training.jobs.result import TrainingResultError

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
    from rm_assets.training.jobs.result import read_result, remove_scratch

    home = project.storage / ASSET
    training = unfinished_trainings(home)
    working, job_path = training / key[:16], training / f"{key[:16]}.json"
    if not _is_finished(working, key):
        write_json(job_path, {"key": key, "data_snapshot": pairs.name})  # before there is anything to be known by it
        working.mkdir(parents=True, exist_ok=True)
        write_json(job_path, training_job(project, pairs, key, working))
        launcher.run(context, job_path, project.settings)
    manifest = read_result(working, key)
    remove_scratch(working)
    _publish(working, home / key[:16])
    _remove_training(home, key[:16])
    return ModelSnapshot(
        directory=home / key[:16], manifest=manifest, trained_now=True, pin=pin_directory(home / key[:16])
    )


def _publish(working: Path, directory: Path) -> None:
    """Move a result to its place: at once, or where that is remote or holds files, file by file, the manifest last.

    A damaged model is replaced so: whoever reads it meanwhile finds its files to be other ones than its manifest names.
    """
    from rm_assets.training.jobs.result import result_files

    if not is_remote(directory) and not directory.exists():
        working.rename(directory)
        return
    names = result_files(working)
    begin_snapshot(directory, names)
    if is_remote(directory):
        upload(working, directory, names)
    else:
        link_files({directory / name: working / name for name in names if name != MANIFEST})
        fsync_directory(directory, recursive=True)
        link_files({directory / MANIFEST: working / MANIFEST})
    finish_snapshot(directory, names)


def _is_finished(working: Path, key: str) -> bool:
    """Whether an earlier run was stopped between the job's end and the publication of its result."""
    from rm_assets.training.jobs.result import TrainingResultError, read_result

    with contextlib.suppress(TrainingResultError):
        return bool(read_result(working, key))
    return False


def training_job(
    project: Project, pairs: Snapshot, key: str, output_directory: Path, splits: dict[str, Hashes] | None = None
) -> dict[str, Any]:
    """The job's description as JSON, all paths absolute; `splits` are other files than the pairs' own."""
    from rm_assets.training.jobs.training_job import TrainingJob

    splits = splits or {split: _files(project, pairs, split, output_directory) for split in _splits(pairs)}
    return TrainingJob(
        key=key,
        output_directory=str(output_directory.resolve()),
        data_snapshot=pairs.name,
        splits={split: list(files) for split, files in splits.items()},
        sha256={path: sha256 for files in splits.values() for path, sha256 in files.items()},
        pad_token_id=pad_token_id_of(pairs),
        model=project.model.name,
        model_revision=project.model.revision,
        toy=project.model.toy,
        vocab_size=project.model.vocab_size,
        tokenizer=project.tokenizer.directory,
        chat_template=carried_template(project.tokenizer),
        settings=project.settings.training,
    ).model_dump(mode="json")


def _files(project: Project, pairs: Snapshot, split: str, directory: Path) -> Hashes:
    """The files of a split as absolute paths of this machine, copied there if they are remote and the job is here."""
    from rm_assets.training.jobs.result import SCRATCH

    files = [file for shard in pairs.manifest.shards for file in shard.files if file.folder == split]
    found: Hashes = {}
    for file in files:
        path = pairs.directory / file.path
        if not is_remote(path):
            path = path.resolve()
        elif project.settings.launch.launcher == "local":
            path = _copied(path, (directory / SCRATCH / "pairs" / split / path.name).resolve(), file.sha256)
        found[str(path)] = file.sha256
    return found


def _copied(path: Path, copy: Path, sha256: str) -> Path:
    """A copy of a remote file on this machine; one of an earlier run that is not whole is made again."""
    if copy.exists() and file_sha256(copy) != sha256:
        copy.unlink()
    download(path, copy)
    return copy


def _remove_old_models(home: Path, current: Path, keep_snapshots: int) -> None:
    from rm_assets.training.jobs.result import result_files

    try:
        needed = referenced_snapshots(home.parent)  # by reports, and by the promoted model
    except SnapshotError:  # of a manifest that may name any; who reads it will hear of it
        return
    written: dict[Path, float] = {}
    for name in filter(is_snapshot_name, subdirectories(home)):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if home / name == current or (ASSET, name) not in needed:
                written[home / name] = (home / name / MANIFEST).stat().st_mtime
    newest_first = sorted(written, key=lambda model: (model == current, written[model]), reverse=True)
    for directory in expired_snapshots({model: written[model] for model in newest_first}, keep_snapshots):
        remove_snapshot(directory, result_files(directory))


def remove_old_trainings(home: Path, keep: int, say: Callable[[str], object]) -> None:
    """Remove unfinished trainings of other settings or pairs: those without progress, all but the newest `keep`."""
    keys = [description.key for description in _descriptions(home)]
    going_on = [key[:16] for key in keys if _has_progress(home, key)]
    for name in sorted({key[:16] for key in keys} - {*going_on[:keep]}):
        if name in going_on:
            say(f"the unfinished training {name} is removed: {keep} newer ones stand")
        _remove_training(home, name)


def _remove_training(home: Path, name: str) -> None:
    """Its files first: while the description stands, its pairs are kept."""
    from rm_assets.training.jobs.result import remove_result

    if name in {description.key[:16] for description in _descriptions(home)}:
        remove_result(unfinished_trainings(home) / name)
        remove_files([unfinished_trainings(home) / f"{name}.json"])
