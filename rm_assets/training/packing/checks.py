"""Checks of a job's pairs before training. Nothing is repaired: the first problem is an error."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rm_assets.training.jobs.training_job import EVALUATION, SPLITS, TrainingError, TrainingJob
from rm_assets.training.packing.pair_store import open_store
from rm_assets.training.packing.pairs import SIDES, Pairs
from rm_assets.training.packing.planning import Rows

_IDS_AT_ONCE = 2**22  # bounds what is held in memory


def read_splits(job: TrainingJob, scratch: Path) -> dict[str, Pairs]:
    """The pairs of every split, from a store in `scratch`; raises TrainingError if train is empty."""
    further = sorted(set(job.splits) - set(SPLITS))
    unknown = [name for name in further if not name.startswith(EVALUATION)]
    if unknown:
        raise TrainingError(f"unknown split {unknown[0]!r}: known are {', '.join(SPLITS)} and {EVALUATION}<name>")
    files = {name: job.splits.get(name, []) for name in (*SPLITS, *further)}
    splits = open_store(scratch, job.data_snapshot, files, job.sha256)
    if not len(splits["train"]):
        raise TrainingError("no pairs to train on: the train split is empty; add annotations")
    return splits


def check_pairs(splits: Mapping[str, Pairs], vocab_size: int, pad_token_id: int, max_positions: int | None) -> None:
    """Raise TrainingError for the first pair that cannot be trained on, or that stock transformers scores otherwise.

    That is a pair whose margin is not finite, or with a side that has an id outside the vocabulary, is longer than the
    model's positions, or ends in the pad token: stock transformers reads the score at the last token that is not the
    pad token.
    """
    if not 0 <= pad_token_id < vocab_size:
        raise TrainingError(
            f"pad_token_id is {pad_token_id!r} but the model has {vocab_size} embeddings: "
            "use the tokenizer that belongs to the model (settings model and tokenizer)"
        )
    for split, pairs in splits.items():
        _check_margins(pairs, split)
        for side in SIDES:
            where = f"the {side} side of {{}}, split {split!r}"
            numbers = pairs.chosen if side == "chosen" else pairs.rejected
            _check_ids(pairs, numbers, vocab_size, where)
            _check_lengths(pairs, numbers, max_positions, where)
            _check_ends(pairs, numbers, pad_token_id, where)


def _check_margins(pairs: Pairs, split: str) -> None:
    wrong = np.flatnonzero(~np.isfinite(pairs.margin))
    if wrong.size:
        row = int(wrong[0])
        margin = float(pairs.margin[row])
        raise TrainingError(f"margin is {margin!r} in {_place(pairs, row)}, split {split!r}: give a finite number")


def _check_ids(pairs: Pairs, numbers: Rows, vocab_size: int, where: str) -> None:
    ids, offsets = pairs.sequences.ids, pairs.sequences.offsets
    for start in range(0, len(ids), _IDS_AT_ONCE):
        part = ids[start : start + _IDS_AT_ONCE]
        for place in start + np.flatnonzero((part < 0) | (part >= vocab_size)):
            number = int(np.searchsorted(offsets, place, side="right")) - 1
            rows = np.flatnonzero(numbers == number)
            if rows.size:
                raise TrainingError(
                    f"token id {int(ids[place])!r} in {where.format(_place(pairs, int(rows[0])))} is outside the "
                    f"model's vocabulary of {vocab_size}: use its own tokenizer (settings model and tokenizer)"
                )


def _check_lengths(pairs: Pairs, numbers: Rows, max_positions: int | None, where: str) -> None:
    lengths = pairs.sequences.lengths_of(numbers)
    wrong = np.flatnonzero(lengths > (max_positions or np.inf))
    if wrong.size:
        row = int(wrong[0])
        raise TrainingError(
            f"{where.format(_place(pairs, row))} has {int(lengths[row])} tokens but the model only "
            f"{max_positions} positions: lower max_length to that"
        )


def _check_ends(pairs: Pairs, numbers: Rows, pad_token_id: int, where: str) -> None:
    wrong = np.flatnonzero(pairs.sequences.ids[pairs.sequences.offsets[numbers + 1] - 1] == pad_token_id)
    if wrong.size:
        raise TrainingError(
            f"{where.format(_place(pairs, int(wrong[0])))} ends in the pad token {pad_token_id!r}, so "
            "stock transformers would read the score of an earlier token: choose another pad token"
        )


def _place(pairs: Pairs, row: int) -> str:
    key = pairs.keys.slice(row, 1).to_pylist()[0]
    return f"pair {key['pair_id']!r} ({key['source']}, line {key['line']})"
