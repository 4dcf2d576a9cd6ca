"""The work of a scoring job: both sides of each pair through a saved model."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import transformers

from rm_assets.data.storage.fingerprint import file_sha256
from rm_assets.data.storage.parquet import open_parquet, write_table
from rm_assets.data.storage.writing import write_json
from rm_assets.training.jobs.heartbeat import spaced
from rm_assets.training.jobs.result import MANIFEST
from rm_assets.training.jobs.scoring_job import SCORED, SCORED_FILE, ScoringJob
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.saved_model.conversations import rendered_ids
from rm_assets.training.saved_model.stock_scoring import (
    ConversationError,
    SavedModel,
    conversation_text,
    load_saved_model,
    sequence_logits,
)

_KEY = ["source", "line", "pair_id", "prompt_key", "variant"]
_ROWS_PER_READ = 1024


def score_pairs(job: ScoringJob, log: Callable[[str], object]) -> None:
    """Score every pair of the job and write the table; raises TrainingError without a usable model."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    check_model(Path(job.model), job.model_sha256)
    saved = load_saved_model(Path(job.model))
    with open_parquet(Path(job.pairs), sha256=job.pairs_sha256) as file:
        num_pairs, show, tables = file.metadata.num_rows, spaced(log), [SCORED.empty_table()]
        log(f"scoring {num_pairs:,} pairs")
        for batch in file.iter_batches(_ROWS_PER_READ):
            progress = functools.partial(_show_progress, show, sum(map(len, tables)), num_pairs)
            tables.append(score_rows(saved, batch.to_pylist(), job.max_length, job.batch_size, progress))
    output = Path(job.output_directory)
    sha256 = write_table(output / f"{SCORED_FILE}.tmp", pa.concat_tables(tables))
    (output / f"{SCORED_FILE}.tmp").replace(output / SCORED_FILE)
    write_json(output / MANIFEST, {"files": {SCORED_FILE: sha256}})


def _show_progress(show: Callable[[str], object], num_before: int, num_pairs: int, num_sequences: int) -> None:
    show(f"{num_before + num_sequences // 2:,} of {num_pairs:,} pairs scored")


def check_model(directory: Path, sha256: Mapping[str, str]) -> None:
    """Raise TrainingError if one of these files of a model is missing or has changed."""
    for name, expected in sha256.items():
        path, remedy = directory / name, "restore it, or train or promote another model"
        if not path.is_file():
            raise TrainingError(f"{str(path)!r} is missing: {remedy}")
        if (found := file_sha256(path)) != expected:
            raise TrainingError(f"{str(path)!r} is damaged (its sha256 is {found}, not {expected}): {remedy}")


def score_rows(
    saved: SavedModel,
    rows: Iterable[Mapping[str, Any]],
    max_length: int,
    batch_size: int,
    progress: Callable[[int], object] = lambda num_done: None,
) -> pa.Table:
    """Score rows with the schema `scoring_job.PAIRS`; returns a table with the schema SCORED.

    `progress` is called with the number of sequences scored so far, two a row.
    """
    results: list[dict[str, Any]] = []
    sequences: list[list[int]] = []
    for row in rows:
        result = {name: row[name] for name in _KEY} | {"problem": ""}
        try:
            sequences += _side_ids(saved, row, max_length)
        except ConversationError as error:
            result["problem"] = str(error)
        results.append(result)
    scores = iter(sequence_logits(saved, sequences, batch_size, progress=progress))
    for result in results:
        both = [next(scores), next(scores)] if not result["problem"] else [None, None]
        if not all(score is None or math.isfinite(score) for score in both):
            result["problem"] = f"the model gives scores that are not finite: {both[0]}, {both[1]}"
            both = [None, None]
        result |= {"chosen_score": both[0], "rejected_score": both[1]}
    return pa.Table.from_pylist(results, schema=SCORED)


def _side_ids(saved: SavedModel, row: Mapping[str, Any], max_length: int) -> list[list[int]]:
    sides = []
    for side in ("chosen", "rejected"):
        text = conversation_text(saved.tokenizer, [*row["prompt"], *row[side]], row["tools"] or "")
        sides.append(rendered_ids(saved, text))
        if len(sides[-1]) > max_length:
            raise ConversationError(f"the {side} side has {len(sides[-1])} tokens, more than {max_length}")
    return sides
