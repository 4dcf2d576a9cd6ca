"""Suspect labels as a snapshot: one training per fold, whose model judges the pairs of that fold alone."""

import re
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from rm_assets.data.pairs.splits import SPLITS
from rm_assets.data.storage.files import file_sizes, is_remote, remove_directories, remove_files, subdirectories
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.locks import local_cache_directory
from rm_assets.data.storage.ownership import FOLDS, remove_listed_files
from rm_assets.data.storage.parquet import open_parquet, read_table, write_table
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.shards import tables_writer, write_shard
from rm_assets.data.storage.snapshots import DATA, Snapshot, SnapshotError
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.launchers.resource import TrainingLauncher
from rm_assets.defs.project import Project
from rm_assets.defs.snapshots.models import Hashes, training_job
from rm_assets.defs.snapshots.rescoring import pair_key, preferences_of, scored_preferences

VERSION = 1
ASSET = "suspect_annotations"
_FOLD_FILE = re.compile(r"(train|test)-[0-9]+\.parquet")
_KEY = re.compile(r"[0-9a-f]{32}")
JSONL_FILE = "suspects.jsonl"


def suspects_snapshot(
    project: Project, padded: Snapshot, context: dg.AssetExecutionContext, launcher: TrainingLauncher
) -> Snapshot:
    """Train a model per fold, rank the pairs that it contradicts, and publish; raises SnapshotError for few prompts."""
    settings = project.settings
    files = [[f.folder, f.sha256] for s in padded.manifest.shards for f in s.files if f.folder in SPLITS]
    identities = [project.model.identity, project.tokenizer.identity, settings.training.decisive()]
    key = fingerprint(ASSET, VERSION, settings.suspect_folds, files, identities)
    with open_publication(project.storage, ASSET, settings.keep_snapshots, context.log.info, settings.verify) as turn:
        shard = turn.find(key)
        if shard is None:
            working = _workshop(turn.directory) / FOLDS / key[:32]
            table, num_pairs = _ranked(project, padded, working, context, launcher)
            figures = {"num_pairs": num_pairs, "num_folds": settings.suspect_folds}
            shard = write_shard(turn.directory, ASSET, "", key, tables_writer({DATA: table}, figures))
        snapshot = turn.publish([shard], {Stage.PADDED: padded.name}, {})
        _remove_folds(_workshop(turn.directory) / FOLDS)
        return snapshot


def _workshop(home: Path) -> Path:
    return local_cache_directory(home) if is_remote(home) else home


def _remove_folds(home: Path) -> None:
    """Remove what the trainings of folds wrote, of these pairs and of others."""
    for name in filter(_KEY.fullmatch, subdirectories(home)):
        for fold in filter(str.isdecimal, subdirectories(home / name)):
            _remove_fold(home / name / fold)
        remove_directories([home / name])
    remove_directories([home])


def _remove_fold(working: Path) -> None:
    from rm_assets.training.jobs.result import remove_result

    remove_listed_files(working, [name for name in file_sizes(working) if _FOLD_FILE.fullmatch(name)])
    remove_result(working)
    remove_files([working.with_suffix(".json")])


def _ranked(
    project: Project, padded: Snapshot, working: Path, context: dg.AssetExecutionContext, launcher: TrainingLauncher
) -> tuple[pa.Table, int]:
    """The suspects among all annotations, and how many pairs were judged."""
    import pandas as pd

    from rm_assets.training.report.suspects import rank_suspects

    folds = range(project.settings.suspect_folds)
    scored = [_fold_scores(project, padded, fold, working / str(fold), context, launcher) for fold in folds]
    pairs = pd.concat(scored, ignore_index=True)
    return pa.Table.from_pandas(rank_suspects(pairs), schema=schemas.SUSPECTS, preserve_index=False), len(pairs)


def _fold_scores(
    project: Project,
    padded: Snapshot,
    fold: int,
    working: Path,
    context: dg.AssetExecutionContext,
    launcher: TrainingLauncher,
) -> Any:
    """The scores of a fold's pairs by a model trained on the others, which a run that was cut short may have left."""
    from rm_assets.training.jobs.result import SCORES_FILE, TrainingResultError, read_result

    num_folds = project.settings.suspect_folds
    key = fingerprint(ASSET, working.parent.name, fold)
    try:
        result = read_result(working, key)
    except TrainingResultError:
        context.log.info(f"fold {fold + 1} of {num_folds}: training on the others")
        _train(project, padded, fold, key, working, context, launcher)
        result = read_result(working, key)
    with open_parquet(working / SCORES_FILE, sha256=result["files"][SCORES_FILE], asset=ASSET) as file:
        return file.read().to_pandas().assign(fold=fold)


def _train(
    project: Project,
    padded: Snapshot,
    fold: int,
    key: str,
    working: Path,
    context: dg.AssetExecutionContext,
    launcher: TrainingLauncher,
) -> None:
    from rm_assets.training.jobs.training_job import TrainingJob

    _remove_fold(working)
    working.mkdir(parents=True, exist_ok=True)
    splits = _written_fold(padded, fold, project.settings.suspect_folds, working)
    described = training_job(project, padded, key, working, splits)
    job_path = working.with_suffix(".json")
    job_path.write_text(TrainingJob.model_validate(described).model_dump_json(indent=1))
    launcher.run(context, job_path, project.settings)


def _written_fold(padded: Snapshot, fold: int, num_folds: int, directory: Path) -> dict[str, Hashes]:
    """Files with hashes of the pairs to train on and of those to judge, a shard at a time, as splits of a job."""
    from rm_assets.training.report.suspects import folds_of

    splits: dict[str, Hashes] = {"train": {}, "validation": {}, "test": {}}
    for number, path in enumerate(padded.paths(*SPLITS)):
        table = read_table([path], schemas.PADDED)
        judged = pa.array(folds_of(table["prompt_key"].to_pylist(), num_folds) == fold)
        for split, rows in (("train", table.filter(pc.invert(judged))), ("test", table.filter(judged))):
            if rows.num_rows:
                target = directory / f"{split}-{number}.parquet"
                splits[split][str(target.resolve())] = write_table(target, rows)
    if not splits["train"] or not splits["test"]:
        raise SnapshotError(f"fold {fold + 1} of {num_folds} is empty or all there is: lower suspect_folds")
    return splits


def suspects_jsonl(storage: Path, snapshot: Snapshot, padded: Snapshot) -> bytes:
    """The suspects with their messages, most suspect first, a line of JSON each.

    The replies stand under `labelled_chosen` and `labelled_rejected`, so that no file of suspects passes for
    annotations before someone has judged it again.
    """
    suspects = read_table(snapshot.paths(DATA), schemas.SUSPECTS).to_pylist()
    validated = scored_preferences(storage, padded.name)
    found = preferences_of(validated, {row["pair_id"] for row in suspects}).to_pylist()
    messages = {pair_key(row): row for row in found}
    return b"".join(_line(row, messages[pair_key(row)]) for row in suspects)


def _line(suspect: dict[str, Any], pair: dict[str, Any]) -> bytes:
    line = {name: suspect[name] for name in ("source", "line", "pair_id", "margin", "suspicion")}
    for name, side in (("prompt", "prompt"), ("labelled_chosen", "chosen"), ("labelled_rejected", "rejected")):
        line[name] = [{k: v for k, v in message.items() if v is not None} for message in pair[side]]
    return msgspec.json.encode(line) + b"\n"
