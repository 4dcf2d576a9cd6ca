"""Trained models as snapshots: found by key, or trained, verified and published.

`<storage>/reward_model/<snapshot>/` holds `model/`, `scores.parquet`, `metrics.jsonl` and `manifest.json`. The
snapshot is named by what went into the model, not by its weights: on a GPU no two trainings give the same ones.

A training in progress has the directory `.training/<snapshot>/`, and its description beside it, until it is published.
Interrupted training resumes from its checkpoint, on the pairs it began with; with other settings, a new one begins.
Where only held-out pairs have changed, the weights of a published model score them, as another snapshot.

The job works on local files. With a remote storage, it reads copies of the pairs and writes into a directory of this
machine, which is then uploaded, the manifest last.
"""

import contextlib
import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from rm_assets.data.chat.tokenizer import carried_template
from rm_assets.data.pairs.splits import SPLITS
from rm_assets.data.stages.padding import pad_token_id_of
from rm_assets.data.storage.files import file_sizes, is_abandoned, is_remote, read_file
from rm_assets.data.storage.fingerprint import file_sha256, fingerprint
from rm_assets.data.storage.latest import LatestPointer
from rm_assets.data.storage.locks import Pin, hold_lock, pin_directory
from rm_assets.data.storage.ownership import MANIFEST, claim_storage, finish_removals
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.publication import publish_directory
from rm_assets.data.storage.retention import remove_old_snapshots, snapshots_by_age
from rm_assets.data.storage.snapshots import REJECTS, Snapshot, SnapshotError, read_latest, read_snapshot
from rm_assets.data.storage.writing import download, write_json
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.launchers.resource import AssetRun, TrainingFailedError
from rm_assets.defs.project import Project
from rm_assets.defs.snapshots.unfinished import (
    descriptions,
    has_progress,
    is_finished,
    remove_old_trainings,
    remove_training,
    training_directory,
)
from rm_assets.settings import ROUNDING
from rm_assets.training.jobs.lineage import lineage_of
from rm_assets.training.jobs.result import (
    METRICS,
    SCRATCH,
    TrainingResultError,
    read_manifest,
    read_result,
    remove_scratch,
    result_files,
)
from rm_assets.training.jobs.training_job import TrainingJob

VERSION = 2
ASSET = "reward_model"
Hashes = dict[str, str]
"""Files by path, each with its sha256."""


@dataclass(frozen=True, kw_only=True)
class ModelSnapshot:
    """A published model: its directory, its job's manifest, and whether this run trained it."""

    directory: Path
    manifest: dict[str, Any]
    trained_now: bool
    pin: Pin | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> str:
        """A hash of everything that went into the model."""
        return str(self.manifest["key"])

    @property
    def precision(self) -> str:
        """How the held-out scores were computed; a manifest without it is older and means float32."""
        return str(self.manifest["metrics"].get("scores_precision", "held-out scores computed in float32"))


def train_or_load_model(run: AssetRun, pairs: Snapshot) -> ModelSnapshot:
    """The model of these pairs and settings, which is trained unless the storage has it.

    An interrupted training with the same settings on older pairs is finished first, if all of them are among today's:
    its work is not lost, however often pairs arrive. One with pairs that are gone is set aside. Raises
    TrainingFailedError or TrainingResultError if the job leaves no valid result.
    """
    key = model_key(run.project, pairs)
    home, keep = run.project.storage / ASSET, run.project.settings.keep_snapshots
    claim_storage(run.project.storage)
    with hold_lock(home / "writer.lock", ASSET, run.log.info):
        latest, found = LatestPointer(home), _verified(run, home, key)
        if found is None:
            found = _train_or_score(run, pairs, key, latest)
        else:
            run.log.info(
                f"no training: {found.directory.name} is the model of these pairs and settings{_rounding(run)}"
            )
        latest.set(found.directory.name)
        remove_training(home, key)
        finish_removals(home)
        remove_old_snapshots(home, found.directory, keep, result_files)
        remove_old_trainings(home, keep, run.log.warning)
    return found


def _train_or_score(run: AssetRun, pairs: Snapshot, key: str, latest: LatestPointer) -> ModelSnapshot:
    """Train a model, or score today's held-out pairs with a published one that has the same weights."""
    home = run.project.storage / ASSET
    if same := _same_weights(home, weights_key(run.project, pairs)):
        run.log.info(f"no training: {same.directory.name} was trained on the same pairs, and scores the held-out ones")
        return replace(_train(run, pairs, key, same), trained_now=False)
    toy = "the built-in tiny model with random weights, as model is unset: a toy"
    run.log.info(f"training from {toy if run.project.model.toy else repr(run.project.model.name)}")
    older = None if has_progress(home, key) else _interrupted_training(run, pairs)
    if older is not None:
        _finish_older_training(run, older, latest)
    return _train(run, pairs, key)


def _same_weights(home: Path, key: str) -> ModelSnapshot | None:
    """A published model with these weights, all files verified: only its held-out pairs may be others."""
    for directory in snapshots_by_age(home, None):
        with contextlib.suppress(SnapshotError, FileNotFoundError):
            model = _read_model(directory)
            if model.manifest["weights_key"] == key and read_result(directory, model.key):
                return model
    return None


def _rounding(run: AssetRun) -> str:
    """Which of the given settings have no say in whether a model is trained."""
    given = run.project.settings.training.model_fields_set & {*ROUNDING}
    return f" ({', '.join(sorted(given))} would change only rounding)" if given else ""


def model_key(project: Project, pairs: Snapshot) -> str:
    """A hash of everything that goes into a model: pairs by split, base model, tokenizer, settings and VERSION."""
    files = {
        split: [f.sha256 for s in pairs.manifest.shards for f in s.files if f.folder == split]
        for split in _splits(pairs)
    }
    return _key(project, files)


def weights_key(project: Project, pairs: Snapshot) -> str:
    """A hash of everything that a model's weights depend on: of all pairs, those that it is trained on."""
    return _key(project, {"train": [f.sha256 for s in pairs.manifest.shards for f in s.files if f.folder == "train"]})


def _key(project: Project, files: dict[str, list[str]]) -> str:
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
        raise SnapshotError(
            f"{ASSET} {name!r} is not in {str(storage)!r}: restore it, or set promoted_model (or RM_PROMOTED_MODEL) to "
            "one that is"
        ) from None


def _read_model(directory: Path) -> ModelSnapshot:
    """The model in a directory, pinned; raises FileNotFoundError, or SnapshotError where its manifest is damaged."""
    pin = pin_directory(directory)
    return ModelSnapshot(directory=directory, manifest=read_manifest(directory), trained_now=False, pin=pin)


def training_steps(model: ModelSnapshot) -> list[dict[str, Any]]:
    """The lines of a model's metrics.jsonl; raises SnapshotError where they are damaged."""
    path = model.directory / METRICS
    try:
        content = read_file(path)
        found, stated = hashlib.sha256(content).hexdigest(), model.manifest["files"].get(METRICS)
        if stated not in (None, found):
            raise ValueError(f"its sha256 is {found}, not {stated}")
        lines = filter(None, content.splitlines())
        return msgspec.json.decode(b"[" + b",".join(lines) + b"]", type=list[dict[str, Any]])
    except (FileNotFoundError, ValueError) as error:  # msgspec's errors are ValueErrors
        problem = f"{str(path)!r} cannot be read ({error})"
        raise SnapshotError(f"{problem}: materialize {ASSET}, which retrains a damaged model") from None


def _verified(run: AssetRun, home: Path, key: str) -> ModelSnapshot | None:
    """The published model with this key, every file verified; None where it is missing or damaged."""
    directory = home / key[:16]
    if not directory.exists():
        return None
    pin = pin_directory(directory)
    try:
        return ModelSnapshot(directory=directory, manifest=read_result(directory, key), trained_now=False, pin=pin)
    except TrainingResultError as error:
        if is_remote(directory) and not (directory / MANIFEST).exists():
            if is_finished(home, key):
                run.log.info(f"resuming the interrupted upload of {directory.name}")
                return None
            if not is_abandoned(directory):
                problem = "it has no manifest yet; another machine may still be uploading it"
                raise SnapshotError(
                    f"{ASSET} {directory.name!r} is unfinished in the storage: {problem}: run again later, or remove it"
                ) from None
        run.log.warning(f"retraining a damaged model, whose files stay until then: {error}")
    return None


def _interrupted_training(run: AssetRun, today: Snapshot) -> Snapshot | None:
    """The pairs of the newest training with progress and today's settings, all of whose pairs are among today's."""
    home = run.project.storage / ASSET
    for description in descriptions(home):
        try:
            pairs = read_snapshot(run.project.storage / Stage.PADDED / description.data_snapshot)
        except (OSError, SnapshotError):
            continue
        key = model_key(run.project, pairs)
        if key == description.key and has_progress(home, key):
            if not (num_gone := _num_gone(pairs, today)):
                return pairs
            job = training_directory(home, key).with_suffix(".json")
            run.log.warning(
                f"setting aside the interrupted training on padded_pairs {pairs.name}: {num_gone:,} of its pairs are "
                "no longer among today's, or have another margin. To finish it anyway, restore these annotations, "
                f"or finish it by hand: python -m rm_assets.training {job}"
            )
    return None


def _num_gone(pairs: Snapshot, today: Snapshot) -> int:
    """How many training pairs are not among today's with the same margin; a pair with flipped labels is another one."""
    columns = ["pair_id", "margin"]
    before, now = (read_table(snapshot.paths("train"), schemas.PADDED, columns) for snapshot in (pairs, today))
    return int(before.join(now, keys=columns, join_type="left anti").num_rows)


def _finish_older_training(run: AssetRun, pairs: Snapshot, latest: LatestPointer) -> None:
    """Finish a training on older pairs. If it fails, it is given up: today's pairs count."""
    key, home = model_key(run.project, pairs), run.project.storage / ASSET
    run.log.warning(f"a training on padded_pairs {pairs.name} was interrupted: finishing it before today's pairs")
    try:
        latest.set(_train(run, pairs, key).directory.name)
    except (TrainingFailedError, TrainingResultError) as error:
        run.log.warning(f"giving up the training on padded_pairs {pairs.name}: {error}")
        remove_training(home, key)


def _train(run: AssetRun, pairs: Snapshot, key: str, trained: ModelSnapshot | None = None) -> ModelSnapshot:
    """Train, or resume, and publish the result; one that an earlier run left unpublished is published at once.

    A model that is `trained` gives its weights.
    """
    home = run.project.storage / ASSET
    working = training_directory(home, key)
    job_path = working.with_suffix(".json")
    if not is_finished(home, key):
        write_json(job_path, {"key": key, "data_snapshot": pairs.name})  # first, so that the directory is known as ours
        working.mkdir(parents=True, exist_ok=True)
        job = training_job(run.project, pairs, key, working)
        weights = {"weights_key": weights_key(run.project, pairs)}
        if trained is not None:
            copy = (working / SCRATCH / "pairs" / "trained").resolve()
            weights["trained"] = str(readable_directory(run.project, trained.directory, copy))
        write_json(job_path, job.model_copy(update=weights).model_dump(mode="json"))
        run.launch(job_path)
    manifest = read_result(working, key)
    remove_scratch(working)
    publish_directory(working, home / key[:16], result_files(working))
    remove_training(home, key)
    return ModelSnapshot(
        directory=home / key[:16], manifest=manifest, trained_now=True, pin=pin_directory(home / key[:16])
    )


def training_job(
    project: Project, pairs: Snapshot, key: str, output_directory: Path, splits: dict[str, Hashes] | None = None
) -> TrainingJob:
    """The job's description, all paths absolute; `splits` replaces the pairs' own files."""
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
        lineage=lineage_of(project.model.name),
        toy=project.model.toy,
        vocab_size=project.model.vocab_size,
        tokenizer=project.tokenizer.directory,
        chat_template=carried_template(project.tokenizer),
        settings=project.settings.training,
    )


def _files(project: Project, pairs: Snapshot, split: str, directory: Path) -> Hashes:
    """The files of a split with their hashes, by absolute path; remote files are copied if the job runs here."""
    files = [file for shard in pairs.manifest.shards for file in shard.files if file.folder == split]
    found: Hashes = {}
    for file in files:
        path = pairs.directory / file.path
        if not is_remote(path):
            path = path.resolve()
        elif project.settings.launch.launcher == "local":
            path = _download_copy(path, (directory / SCRATCH / "pairs" / split / path.name).resolve(), file.sha256)
        found[str(path)] = file.sha256
    return found


def readable_directory(project: Project, directory: Path, copy: Path) -> Path:
    """A directory as the job reads it: `copy`, with all of its files, if it is remote and the job runs here."""
    if not is_remote(directory):
        return directory.resolve()
    if project.settings.launch.launcher != "local":
        return directory
    for name in file_sizes(directory):
        download(directory / name, copy / name)
    return copy


def _download_copy(path: Path, copy: Path, sha256: str) -> Path:
    """Copy a remote file to this machine; a damaged copy of an earlier run is replaced."""
    if copy.exists() and file_sha256(copy) != sha256:
        copy.unlink()
    download(path, copy)
    return copy
