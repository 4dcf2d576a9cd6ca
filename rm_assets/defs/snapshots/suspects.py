"""Suspect labels as a snapshot: for each fold, a model trained on the other folds scores its pairs."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from rm_assets.data.pairs.splits import SPLITS
from rm_assets.data.storage.files import file_sizes, remove_directories, remove_files, subdirectories
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.locks import local_working_directory
from rm_assets.data.storage.ownership import FOLDS, remove_listed_files
from rm_assets.data.storage.parquet import read_table, write_table
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.shards import Stats
from rm_assets.data.storage.snapshots import DATA, Snapshot, SnapshotError
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.launchers.resource import AssetRun
from rm_assets.defs.snapshots.models import Hashes, training_job
from rm_assets.defs.snapshots.reports import write_derived_files
from rm_assets.defs.snapshots.rescoring import pair_key, preferences_of
from rm_assets.training.jobs.result import TrainingResultError, read_result, read_scores, remove_result

VERSION = 1
ASSET = "suspect_annotations"
_FOLD_FILE = re.compile(r"(train|test)-[0-9]+\.parquet")
_KEY = re.compile(r"[0-9a-f]{32}")
JSONL_FILE = "suspects.jsonl"


def find_suspects(run: AssetRun, padded: Snapshot) -> Snapshot:
    """Train a model per fold, rank the pairs that it contradicts, and publish; raises SnapshotError for few prompts."""
    project, settings = run.project, run.project.settings
    files = [[f.folder, f.sha256] for s in padded.manifest.shards for f in s.files if f.folder in SPLITS]
    identities = [project.model.identity, project.tokenizer.identity, settings.training.decisive()]
    key = fingerprint(ASSET, VERSION, settings.suspect_folds, files, identities)
    with open_publication(
        project.storage, ASSET, settings.keep_snapshots, run.log.info, settings.verify
    ) as publication:
        folds = local_working_directory(publication.directory) / FOLDS

        def make() -> tuple[dict[str, pa.Table], Stats]:
            table, num_pairs = _rank_pairs(run, padded, folds / key[:32])
            return {DATA: table}, {"num_pairs": num_pairs, "num_folds": settings.suspect_folds}

        snapshot = publication.publish_tables(key, make, {Stage.PADDED: padded.name})
        _remove_folds(folds)
        return snapshot


def _remove_folds(home: Path) -> None:
    """Remove what the trainings of folds wrote, for these pairs and for others."""
    for name in filter(_KEY.fullmatch, subdirectories(home)):
        for fold in filter(str.isdecimal, subdirectories(home / name)):
            _remove_fold(home / name / fold)
        remove_directories([home / name])
    remove_directories([home])


def _remove_fold(working: Path) -> None:
    remove_listed_files(working, [name for name in file_sizes(working) if _FOLD_FILE.fullmatch(name)])
    remove_result(working)
    remove_files([working.with_suffix(".json")])


def _rank_pairs(run: AssetRun, padded: Snapshot, working: Path) -> tuple[pa.Table, int]:
    """The suspects among all annotations, and how many pairs were scored."""
    import pandas as pd

    from rm_assets.training.report.suspects import rank_suspects

    folds = range(run.project.settings.suspect_folds)
    pairs = pd.concat([_score_fold(run, padded, fold, working / str(fold)) for fold in folds], ignore_index=True)
    return pa.Table.from_pandas(rank_suspects(pairs), schema=schemas.SUSPECTS, preserve_index=False), len(pairs)


def _score_fold(run: AssetRun, padded: Snapshot, fold: int, working: Path) -> Any:
    """The scores of a fold's pairs by a model trained on the others; an earlier run's result is reused."""
    key = fingerprint(ASSET, working.parent.name, fold)
    try:
        read_result(working, key)
    except TrainingResultError:
        run.log.info(f"fold {fold + 1} of {run.project.settings.suspect_folds}: training on the others")
        _train_without_fold(run, padded, fold, key, working)
        read_result(working, key)
    return read_scores(working, ASSET).assign(fold=fold)


def _train_without_fold(run: AssetRun, padded: Snapshot, fold: int, key: str, working: Path) -> None:
    _remove_fold(working)
    working.mkdir(parents=True, exist_ok=True)
    splits = _write_fold(padded, fold, run.project.settings.suspect_folds, working)
    job_path = working.with_suffix(".json")
    job_path.write_text(training_job(run.project, padded, key, working, splits).model_dump_json(indent=1))
    run.launch(job_path)


def _write_fold(padded: Snapshot, fold: int, num_folds: int, directory: Path) -> dict[str, Hashes]:
    """Write the pairs to train on and those to score, a shard at a time; the files with hashes, as a job's splits."""
    from rm_assets.training.report.suspects import folds_of

    splits: dict[str, Hashes] = {"train": {}, "validation": {}, "test": {}}
    for number, path in enumerate(padded.paths(*SPLITS)):
        table = read_table([path], schemas.PADDED)
        scored = pa.array(folds_of(table["prompt_key"].to_pylist(), num_folds) == fold)
        for split, rows in (("train", table.filter(pc.invert(scored))), ("test", table.filter(scored))):
            if rows.num_rows:
                target = directory / f"{split}-{number}.parquet"
                splits[split][str(target.resolve())] = write_table(target, rows)
    if not splits["train"] or not splits["test"]:
        raise SnapshotError(f"fold {fold + 1} of {num_folds} has no pairs or all of them: lower suspect_folds")
    return splits


def write_jsonl(run: AssetRun, snapshot: Snapshot, padded: Snapshot) -> None:
    """Write the suspects with their messages into the snapshot's directory as JSON lines, most suspect first.

    The replies are named `labelled_chosen` and `labelled_rejected`: a file of suspects must not pass for annotations
    before someone has reviewed it.
    """
    suspects = read_table(snapshot.paths(DATA), schemas.SUSPECTS).to_pylist()
    validated = run.project.ancestor(padded, Stage.VALIDATED)
    found = preferences_of(validated, {row["pair_id"] for row in suspects}).to_pylist()
    messages = {pair_key(row): row for row in found}
    lines = b"".join(_line(row, messages[pair_key(row)]) for row in suspects)
    write_derived_files(snapshot, {JSONL_FILE: lines}, run.log.info)


def _line(suspect: dict[str, Any], pair: dict[str, Any]) -> bytes:
    line = {name: suspect[name] for name in ("source", "line", "pair_id", "margin", "suspicion")}
    for name, side in (("prompt", "prompt"), ("labelled_chosen", "chosen"), ("labelled_rejected", "rejected")):
        line[name] = [{k: v for k, v in message.items() if v is not None} for message in pair[side]]
    return msgspec.json.encode(line) + b"\n"
