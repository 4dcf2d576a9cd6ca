"""padded_pairs: without duplicates and conflicts, split by prompt, both sides of a pair padded to equal length.

Which rows are dropped is decided first, over all files, from hashes alone. Of equal pairs the first in the order of
source and line is kept. If the same two replies occur with both labels, the true one is unknown: `conflicts` decides.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rm_assets.data.compute.engine import Task
from rm_assets.data.pairs.contamination import Grams, evaluation_grams, overlapping_rows
from rm_assets.data.pairs.digests import key_digests, keys_with, shared_digests
from rm_assets.data.pairs.duplicates import DroppedRows, dropped_rows, pair_digests, suspect_rows
from rm_assets.data.pairs.splits import SPLITS, splits_of
from rm_assets.data.sources.evaluation_sets import evaluation_folder
from rm_assets.data.stages.identities import settings_key
from rm_assets.data.stages.rejects import Refusal, num_rejects, reason_counts, refused_rows
from rm_assets.data.stages.run_stage import Log, run_stage, shard_task
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.parquet import read_batches, read_table
from rm_assets.data.storage.publication import Publication
from rm_assets.data.storage.shards import ShardWriter, Stats, counts_of_files
from rm_assets.data.storage.snapshots import REJECTS, Shard, Snapshot, SnapshotError
from rm_assets.data.tables import schemas
from rm_assets.data.tables.ragged import IdLists, filter_rows, lists_of, offsets_of, prefix_mask, rows_with_any
from rm_assets.data.tables.reasons import Reason
from rm_assets.data.tables.schemas import PAIR_COLUMNS, Stage
from rm_assets.settings import Settings

VERSION = 5
_FILES_TOGETHER = 16
"""Files whose keys are read before they are digested: one at a time would take longer if they are small."""

Lengths = NDArray[np.int64]


# --- padding -------------------------------------------------------------------------------------------------


def padded(values: NDArray[Any], lengths: Lengths, widths: Lengths, fill: int) -> NDArray[Any]:
    """Concatenated rows, each padded at its end: flat in, flat out.

    For values [1, 2, 3], lengths [2, 1], widths [3, 1] and fill 0 it is [1, 2, 0, 3].
    """
    result = np.full(int(widths.sum()), fill, dtype=values.dtype)
    result[prefix_mask(lengths, widths).view(np.bool_)] = values
    return result


def padded_table(table: pa.Table, pad_token_id: int) -> pa.Table:
    """Tokenized rows as padded rows; masks come from lengths, never from which ids are padding."""
    sides = {side: lists_of(table[f"{side}_ids"]) for side in ("chosen", "rejected")}
    widths = np.maximum(sides["chosen"].lengths, sides["rejected"].lengths)
    offsets = offsets_of(widths)
    columns: dict[str, Any] = {name: table[name] for name in (*PAIR_COLUMNS, "prefix_length", "margin")}
    for side, lists in sides.items():
        ids = IdLists(padded(lists.ids, lists.lengths, widths, pad_token_id), offsets)
        mask = IdLists(prefix_mask(lists.lengths, widths), offsets)
        columns[f"{side}_input_ids"] = ids.array(schemas.PADDED.field(f"{side}_input_ids").type)
        columns[f"{side}_attention_mask"] = mask.array(schemas.PADDED.field(f"{side}_attention_mask").type)
        columns[f"{side}_length"] = lists.lengths.astype(np.int32)
    return schemas.build_table(columns, schemas.PADDED)


# --- one shard -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PaddingTask:
    """A shard of tokenized pairs, its rows to drop, and how the others are split and padded.

    `folder` is the folder of an evaluation set, whose rows are neither dropped nor split. It is empty for annotations;
    their prompts, in `validated`, must not overlap the sets in `grams`.
    """

    path: Path | None
    validated: Path | None
    sources: tuple[str, ...]
    folder: str
    grams: dict[str, Grams]
    dropped: DroppedRows
    pad_token_id: int
    seed: str
    validation_fraction: float
    test_fraction: float


def pad_shard(task: PaddingTask, writer: ShardWriter) -> Stats:
    """Rows by folder, and rejects, of one shard of tokenized pairs."""
    num_in, first, reasons = Counter[str](), 0, Counter[Reason]()
    validated, tokenized = ([path] if path else [] for path in (task.validated, task.path))
    overlapping = overlapping_rows(validated, tokenized, task.grams)
    for rows in read_batches(task.path, schemas.TOKENIZED):
        dropped = task.dropped.between(first, first + rows.num_rows).reasons()
        refused = {row: (reason, _DETAILS[reason]) for row, reason in dropped.items()}
        refused |= _overlapping(rows, overlapping)
        folders = _folders(task, rows, refused)
        for folder in [task.folder] if task.folder else SPLITS:
            writer.write(folder, padded_table(filter_rows(rows, folders == folder), task.pad_token_id))
        writer.write(REJECTS, refused_rows(rows, Stage.PADDED, refused))
        first += rows.num_rows
        num_in.update(schemas.num_rows_by_source(rows))
        reasons.update(reason for reason, _ in refused.values())
    counts = counts_of_files(task.sources, num_in=num_in)
    return {**counts, "pad_token_id": task.pad_token_id, "reasons": reason_counts(reasons)}


def _overlapping(rows: pa.Table, found: dict[tuple[int, str], str]) -> dict[int, Refusal]:
    """The rows whose prompt overlaps an evaluation set, and which."""
    if not found:
        return {}
    keys = zip(rows["line"].to_pylist(), rows["pair_id"].to_pylist(), strict=True)
    names = {row: found.get(key) for row, key in enumerate(keys)}
    return {row: (Reason.OVERLAPS_EVALUATION, f"evaluation set {name!r}") for row, name in names.items() if name}


def _folders(task: PaddingTask, rows: pa.Table, refused: dict[int, Refusal]) -> NDArray[np.str_]:
    """The folder of each row; empty for rejects."""
    if task.folder:
        folders = np.full(rows.num_rows, task.folder)
    else:
        prompt_keys = rows["prompt_key"].to_pylist()
        folders = splits_of(prompt_keys, task.seed, task.validation_fraction, task.test_fraction)
    folders[list(refused)] = ""
    return folders


_DETAILS = {
    Reason.DUPLICATE: "an equal pair occurs earlier",
    Reason.CONFLICT: "the same two replies also occur with flipped labels",
}


def measure_padded(task: PaddingTask, paths: dict[str, Path]) -> Stats:
    """Figures of the written shard: rows by folder, sides of unequal length, masks that are not the lengths."""
    num_out, figures = Counter[str](), Counter(dict.fromkeys(_FIGURES, 0))
    for folder in paths.keys() - {REJECTS}:
        kind = folder if folder in SPLITS else "evaluation"
        for rows in read_batches(paths[folder], schemas.PADDED, _MEASURED):
            num_out.update(schemas.num_rows_by_source(rows))
            figures.update({f"num_{kind}": rows.num_rows})
            figures.update(_padding_figures(rows, task.pad_token_id))
    return {**counts_of_files(task.sources, num_out=num_out, num_rejects=num_rejects(paths)), **figures}


_MEASURED = [
    "source",
    *(f"{side}_{what}" for side in ("chosen", "rejected") for what in ("input_ids", "attention_mask", "length")),
]
_FIGURES = (
    *("num_train", "num_validation", "num_test", "num_evaluation"),
    *("num_unequal", "num_wrong_masks", "num_containing_padding", "num_tokens", "num_padding"),
)


def _padding_figures(rows: pa.Table, pad_token_id: int) -> dict[str, int]:
    sides = {side: lists_of(rows[f"{side}_input_ids"]) for side in ("chosen", "rejected")}
    figures = dict.fromkeys(("num_wrong_masks", "num_containing_padding", "num_tokens", "num_padding"), 0)
    for side, lists in sides.items():
        mask = lists_of(rows[f"{side}_attention_mask"])
        lengths, widths = rows[f"{side}_length"].to_numpy().astype(np.int64), lists.lengths
        expected = prefix_mask(lengths, widths)
        is_right = np.array_equal(mask.lengths, widths) and np.array_equal(mask.ids, expected)
        figures["num_wrong_masks"] += int(not is_right)
        is_padding_inside = (lists.ids == pad_token_id) & expected.view(np.bool_)
        figures["num_containing_padding"] += int(rows_with_any(is_padding_inside, lists.offsets).sum())
        figures["num_tokens"] += int(lengths.sum())
        figures["num_padding"] += int((widths - lengths).sum())
    num_unequal = int(np.sum(sides["chosen"].lengths != sides["rejected"].lengths))
    return figures | {"num_unequal": num_unequal}


# --- the stage -----------------------------------------------------------------------------------------------


def publish_padded(settings: Settings, validated: Snapshot, tokenized: Snapshot, log: Log) -> Snapshot:
    """Decide which rows are dropped, pad every shard whose key is not found, and publish."""
    pad_token_id = pad_token_id_of(tokenized)
    settings_hash = settings_key(Stage.PADDED, VERSION, settings, pad_token_id)
    dropped = _dropped_by_shard(tokenized, settings.conflicts)
    grams, grams_identity = evaluation_grams(validated, tokenized)
    messages = {shard.name: shard for shard in validated.manifest.shards}

    def task(shard: Shard) -> Task:
        folder = evaluation_folder(shard.source)
        arguments = PaddingTask(
            path=tokenized.data_path(shard),
            validated=validated.data_path(messages[shard.name]),
            sources=tuple(shard.by_source),
            folder=folder,
            grams={} if folder else grams,
            dropped=dropped.get(shard.name, DroppedRows.none()),
            pad_token_id=pad_token_id,
            seed=settings.split_seed,
            validation_fraction=settings.validation_fraction,
            test_fraction=settings.test_fraction,
        )
        decisions = [[row, reason] for row, reason in arguments.dropped.reasons().items()]
        key = fingerprint(settings_hash, shard.key, decisions, "" if folder else grams_identity)
        return shard_task(shard, key, arguments)

    return run_stage(
        Stage.PADDED,
        settings,
        tokenized,
        lambda _: [task(shard) for shard in tokenized.manifest.shards],
        pad_shard,
        measure_padded,
        log,
        facts=lambda publisher, shards: {"num_prompts_in_two_splits": _num_prompts_in_two_splits(publisher, shards)},
    )


def pad_token_id_of(snapshot: Snapshot) -> int:
    """The padding token of the tokenizer that made a snapshot."""
    found = {int(shard.stats["pad_token_id"]) for shard in snapshot.manifest.shards}
    if not found:
        raise SnapshotError(f"{snapshot.manifest.asset} has no rows: there are no annotations")
    assert len(found) == 1, "one tokenizer has one padding token"
    return found.pop()


def _dropped_by_shard(tokenized: Snapshot, conflicts: str) -> dict[str, DroppedRows]:
    """The rows to drop, by the name of their shard; evaluation sets take no part and lose none.

    Of all rows only digests are held in memory, 8 bytes each, and keys of those that may equal another row.
    """
    shards = [shard for shard in tokenized.manifest.shards if not evaluation_folder(shard.source)]

    def keys(shard: Shard) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        path = tokenized.data_path(shard)
        chosen, rejected = read_table([path] if path else [], schemas.TOKENIZED, ["chosen_key", "rejected_key"]).columns
        return chosen, rejected

    digests = [pair_digests(*keys(shard)) for shard in shards]
    suspects = suspect_rows(np.concatenate([np.empty(0, np.uint64), *digests]))
    ends = list(itertools.accumulate((shard.num_rows() for shard in shards), initial=0))
    chosen, rejected = list[pa.Array](), list[pa.Array]()
    for shard, (start, end) in zip(shards, itertools.pairwise(ends), strict=True):
        rows = suspects[slice(*np.searchsorted(suspects, [start, end]))] - start
        if len(rows):
            of_shard = [column.take(pa.array(rows)) for column in keys(shard)]
            chosen += of_shard[0].chunks
            rejected += of_shard[1].chunks
    among = dropped_rows(pa.chunked_array(chosen, pa.string()), pa.chunked_array(rejected, pa.string()), conflicts)
    dropped = DroppedRows(suspects[among.rows], among.is_conflict)
    between = itertools.starmap(dropped.between, itertools.pairwise(ends))
    return {shard.name: rows for shard, rows in zip(shards, between, strict=True)}


def _num_prompts_in_two_splits(publisher: Publication, shards: list[Shard]) -> int:
    """How many prompts are in more than one split of the written files; the invariant says none.

    Whole keys are only read where 64-bit digests of two splits are equal.
    """

    def keys(split: str) -> Iterator[pa.ChunkedArray]:
        paths = [path for shard in shards if (path := publisher.path(shard, split))]
        for first in range(0, len(paths), _FILES_TOGETHER):
            yield read_table(paths[first : first + _FILES_TOGETHER], schemas.PADDED, ["prompt_key"])["prompt_key"]

    def keys_among(split: str, shared: NDArray[np.uint64]) -> set[str]:
        return {key for column in keys(split) for key in keys_with(column, key_digests(column), shared)}

    digests = {split: np.concatenate([np.empty(0, np.uint64), *map(key_digests, keys(split))]) for split in SPLITS}
    found = set[str]()
    for one, other in itertools.combinations(SPLITS, 2):
        if len(shared := shared_digests(digests[one], digests[other])):
            found |= keys_among(one, shared) & keys_among(other, shared)
    return len(found)
