"""padded_pairs: duplicates and conflicts out, split by prompt, both sides of a pair padded to equal length.

Which rows go is decided first, over all files, from hashes alone: of equal pairs the first in the order of source and
line stays; where the same two replies stand both ways round, nobody knows the label, and `conflicts` decides.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rm_assets.data import records
from rm_assets.data.engine import Task, compute_shards
from rm_assets.data.evaluation import Grams, evaluation_folder, evaluation_grams, overlapping_rows
from rm_assets.data.fingerprint import fingerprint
from rm_assets.data.flattening import PAIR_COLUMNS, pair_reject
from rm_assets.data.identities import stage_identity
from rm_assets.data.parquet import read_table
from rm_assets.data.publication import Publication, publication
from rm_assets.data.raw import reason_counts
from rm_assets.data.records import Reason, Stage
from rm_assets.data.snapshots import REJECTS, Shard, Snapshot, SnapshotError
from rm_assets.data.storage import place
from rm_assets.settings import Settings

VERSION = 2
SPLITS = ("train", "validation", "test")

Ids = np.ndarray[Any, np.dtype[np.int32]]
Codes = np.ndarray[Any, np.dtype[np.int64]]


# --- decisions over all rows ---------------------------------------------------------------------------------


def dropped_rows(chosen_keys: pa.ChunkedArray, rejected_keys: pa.ChunkedArray, conflicts: str) -> dict[int, Reason]:
    """Which rows go, and why, by index; rows are in the order of source and line.

    `conflicts` is the policy for pairs that stand both ways round: "drop" takes none of them, "majority" those of the
    way that more rows take (none if there are as many of each), "keep" both ways. For the pairs
    (a, b), (a, b), (c, d), (d, c), (d, c), (e, f) "drop" gives {1: duplicate, 2: conflict, 3: conflict, 4: conflict},
    "majority" {1: duplicate, 2: conflict, 4: duplicate} and "keep" {1: duplicate, 4: duplicate}.
    """
    chosen, rejected = _codes(chosen_keys, rejected_keys)
    base = int(max(chosen.max(initial=0), rejected.max(initial=0))) + 1
    known, first_rows, inverse, counts = np.unique(
        chosen * base + rejected, return_index=True, return_inverse=True, return_counts=True
    )
    swapped = rejected * base + chosen
    place = np.minimum(np.searchsorted(known, swapped), max(len(known) - 1, 0))
    num_swapped = np.where(known[place] == swapped, counts[place], 0) if len(known) else counts
    conflict = (num_swapped > 0) & (chosen != rejected)
    losing = conflict & {"drop": True, "majority": counts[inverse] <= num_swapped, "keep": False}[conflicts]
    first = np.isin(np.arange(len(chosen)), first_rows)
    reasons = {int(row): Reason.DUPLICATE for row in np.flatnonzero(~first & ~losing)}
    return reasons | {int(row): Reason.CONFLICT for row in np.flatnonzero(losing)}


def _codes(chosen_keys: pa.ChunkedArray, rejected_keys: pa.ChunkedArray) -> tuple[Codes, Codes]:
    """Both columns as small integers, equal where the keys are equal: int64 arrays [rows]."""
    both = pa.chunked_array([*chosen_keys.chunks, *rejected_keys.chunks], pa.string())
    encoded = both.combine_chunks().dictionary_encode()
    codes = np.concatenate([np.asarray(chunk.indices) for chunk in _chunks(encoded)] or [np.empty(0)])
    return tuple(np.split(codes.astype(np.int64), [len(chosen_keys)]))  # type: ignore[return-value]


def _chunks(array: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return array.chunks if isinstance(array, pa.ChunkedArray) else [array]


def split_of(prompt_key: str, seed: str, validation_fraction: float, test_fraction: float) -> str:
    """The split of a prompt: a keyed hash as a number in [0, 1); test first, then validation, the rest is train.

    It depends on nothing but the prompt, so no prompt changes its split as data arrive.
    """
    key = hashlib.blake2b(seed.encode(), digest_size=32).digest()
    digest = hashlib.blake2b(prompt_key.encode(), key=key, digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < test_fraction:
        return "test"
    return "validation" if place < test_fraction + validation_fraction else "train"


# --- padding -------------------------------------------------------------------------------------------------


def padded(values: Ids, lengths: Ids, widths: Ids, fill: int) -> Ids:
    """Concatenated rows, each padded at its end: flat in, flat out.

    For values [1, 2, 3], lengths [2, 1], widths [3, 1] and fill 0 it is [1, 2, 0, 3].
    """
    starts_in, starts_out = (np.cumsum(sizes) - sizes for sizes in (lengths, widths))
    result = np.full(int(widths.sum()), fill, dtype=values.dtype)
    result[np.repeat(starts_out - starts_in, lengths) + np.arange(len(values))] = values
    return result


def padded_table(table: pa.Table, pad_token_id: int) -> pa.Table:
    """Tokenized rows as padded ones; masks come from lengths, never from which ids are padding."""
    table = table.combine_chunks()
    flats = {side: _flat(table[f"{side}_ids"]) for side in ("chosen", "rejected")}
    widths = np.maximum(flats["chosen"][1], flats["rejected"][1])
    columns: dict[str, Any] = {name: table[name] for name in (*PAIR_COLUMNS, "prefix_length", "margin")}
    for side, (values, lengths) in flats.items():
        mask = padded(np.ones(len(values), dtype=np.int8), lengths, widths, 0)
        columns[f"{side}_input_ids"] = _lists(padded(values, lengths, widths, pad_token_id), widths, pa.int32())
        columns[f"{side}_attention_mask"] = _lists(mask, widths, pa.int8())
        columns[f"{side}_length"] = pa.array(lengths, pa.int32())
    return pa.Table.from_arrays([columns[name] for name in records.PADDED.names], schema=records.PADDED)


def _flat(column: pa.ChunkedArray) -> tuple[Ids, Ids]:
    """All ids of a list column in a row, and the length of each list."""
    lists = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return np.asarray(lists.flatten()), np.diff(np.asarray(lists.offsets)).astype(np.int32)


def _lists(values: Ids, widths: Ids, dtype: pa.DataType) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(widths)]).astype(np.int32)
    list_type = pa.list_(pa.field("element", dtype, nullable=False))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, dtype), type=list_type)


# --- one shard -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PaddingTask:
    """A shard of tokenized pairs, its rows that go, and how the others are split and padded.

    `folder` is that of an evaluation set, whose rows are neither dropped nor split; empty for annotations, whose
    prompts in `validated` must not overlap the sets in `grams`.
    """

    path: Path | None
    validated: Path | None
    folder: str
    grams: dict[str, Grams]
    dropped: tuple[tuple[int, Reason], ...]
    pad_token_id: int
    seed: str
    validation_fraction: float
    test_fraction: float


def pad_shard(task: PaddingTask) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Rows by folder, and rejects, of one shard of tokenized pairs."""
    table = read_table([task.path] if task.path else [], records.TOKENIZED)
    rows = table.select(["source", "line", "pair_id", "prompt_key"]).to_pylist()
    dropped = {row: (reason, _DETAILS[reason]) for row, reason in task.dropped} | _overlapping(task, rows)
    folders = np.array(["" if row in dropped else _folder(task, rows[row]["prompt_key"]) for row in range(len(rows))])
    tables = {
        folder: padded_table(table.filter(pa.array(folders == folder)), task.pad_token_id)
        for folder in ([task.folder] if task.folder else SPLITS)
    }
    rejects = [pair_reject(rows[row], Stage.PADDED, *why) for row, why in sorted(dropped.items())]
    tables[REJECTS] = pa.Table.from_pylist(rejects, schema=records.REJECTS)
    return tables, {
        "num_in": table.num_rows,
        "pad_token_id": task.pad_token_id,
        "reasons": reason_counts(reason for reason, _ in dropped.values()),
    }


def _overlapping(task: PaddingTask, rows: list[dict[str, Any]]) -> dict[int, tuple[Reason, str]]:
    """The rows whose prompt overlaps an evaluation set, and which."""
    found = overlapping_rows([task.validated] if task.validated else [], task.grams)
    names = {row: found.get((key["line"], key["pair_id"])) for row, key in enumerate(rows)}
    return {row: (Reason.OVERLAPS_EVALUATION, f"evaluation set {name!r}") for row, name in names.items() if name}


def _folder(task: PaddingTask, prompt_key: str) -> str:
    return task.folder or split_of(prompt_key, task.seed, task.validation_fraction, task.test_fraction)


_DETAILS = {
    Reason.DUPLICATE: "an equal pair stands earlier",
    Reason.CONFLICT: "the same two replies stand with the labels the other way round, too",
}


def padding_laws(task: PaddingTask, paths: dict[str, Path]) -> dict[str, Any]:
    """Figures of the written shard: rows by folder, sides of unequal length, masks that are not the lengths."""
    tables = {folder: read_table([path], records.PADDED) for folder, path in paths.items() if folder != REJECTS}
    rejects = read_table([paths[REJECTS]] if REJECTS in paths else [], records.REJECTS)
    every = [table.combine_chunks() for table in (*tables.values(), records.PADDED.empty_table())]
    figures = [_padding_figures(table, task.pad_token_id) for table in every]
    num_rows = {folder: table.num_rows for folder, table in tables.items()}
    return {
        "num_out": sum(num_rows.values()),
        "num_rejects": rejects.num_rows,
        **{f"num_{split}": num_rows.get(split, 0) for split in SPLITS},
        "num_evaluation": sum(count for folder, count in num_rows.items() if folder not in SPLITS),
        **{name: sum(figure[name] for figure in figures) for name in figures[0]},
    }


def _padding_figures(table: pa.Table, pad_token_id: int) -> dict[str, int]:
    widths, num_wrong_masks, num_real, num_ending = [], 0, 0, 0
    for side in ("chosen", "rejected"):
        ids, width = _flat(table[f"{side}_input_ids"])
        mask, mask_width = _flat(table[f"{side}_attention_mask"])
        length = table[f"{side}_length"].to_numpy()
        expected = padded(np.ones(int(length.sum()), dtype=np.int8), length, width, 0)
        num_wrong_masks += int(not np.array_equal(mask, expected)) + int(not np.array_equal(mask_width, width))
        num_ending += int(np.sum(ids[np.cumsum(width) - width + length - 1] == pad_token_id))
        widths.append(width)
        num_real += int(length.sum())
    return {
        "num_unequal": int(np.sum(widths[0] != widths[1])),
        "num_wrong_masks": num_wrong_masks,
        "num_ending_in_padding": num_ending,
        "num_tokens": num_real,
        "num_padding": int(sum(width.sum() for width in widths)) - num_real,
    }


# --- the stage -----------------------------------------------------------------------------------------------


def padded_snapshot(
    settings: Settings, validated: Snapshot, tokenized: Snapshot, say: Callable[[str], object]
) -> Snapshot:
    """Decide which rows go, pad every shard whose key is not found, and publish."""
    pad_token_id = pad_token_id_of(tokenized)
    identity = fingerprint(
        Stage.PADDED,
        VERSION,
        pad_token_id,
        settings.split_seed,
        settings.validation_fraction,
        settings.test_fraction,
    )
    dropped = _dropped_by_shard(tokenized, settings.conflicts)
    grams, grams_identity = evaluation_grams(validated)
    messages = {shard.name: shard for shard in validated.manifest.shards}

    def task(shard: Shard) -> Task:
        folder = evaluation_folder(shard.source)
        arguments = PaddingTask(
            path=tokenized.data_path(shard),
            validated=validated.data_path(messages[shard.name]),
            folder=folder,
            grams={} if folder else grams,
            dropped=dropped.get(shard.name, ()),
            pad_token_id=pad_token_id,
            seed=settings.split_seed,
            validation_fraction=settings.validation_fraction,
            test_fraction=settings.test_fraction,
        )
        decisions = [[row, reason] for row, reason in arguments.dropped]
        key = fingerprint(identity, shard.key, decisions, "" if folder else grams_identity)
        return Task(name=shard.name, source=shard.source, key=key, num_bytes=shard.num_bytes, arguments=arguments)

    with publication(place(settings.storage), Stage.PADDED, settings.keep_snapshots, say) as turn:
        tasks = [task(shard) for shard in tokenized.manifest.shards]
        shards = compute_shards(turn, tasks, pad_shard, padding_laws, settings, say)

        def facts() -> dict[str, int]:
            return {"num_prompts_in_two_splits": _num_prompts_in_two_splits(turn, shards)}

        made_with = stage_identity(Stage.PADDED, settings, tokenized.manifest.identity)
        return turn.publish(shards, {Stage.TOKENIZED: tokenized.name}, facts, made_with)


def pad_token_id_of(snapshot: Snapshot) -> int:
    """The padding token of the tokenizer that a snapshot was made with."""
    found = {int(shard.stats["pad_token_id"]) for shard in snapshot.manifest.shards}
    if not found:
        raise SnapshotError(f"{snapshot.manifest.asset} has no rows: there are no annotations")
    assert len(found) == 1, "one tokenizer has one padding token"
    return found.pop()


def _dropped_by_shard(tokenized: Snapshot, conflicts: str) -> dict[str, tuple[tuple[int, Reason], ...]]:
    """The rows that go, by shard and place in it; evaluation sets take no part and lose none."""
    shards = [shard for shard in tokenized.manifest.shards if not evaluation_folder(shard.source)]
    paths = [path for shard in shards if (path := tokenized.data_path(shard))]
    keys = read_table(paths, records.TOKENIZED, ["chosen_key", "rejected_key"])
    dropped = sorted(dropped_rows(keys["chosen_key"], keys["rejected_key"], conflicts).items())
    rows = np.array([row for row, _ in dropped], dtype=np.int64)
    result, start = {}, 0
    for shard in shards:
        first, last = np.searchsorted(rows, [start, start + shard.num_rows()])
        result[shard.name] = tuple((row - start, reason) for row, reason in dropped[first:last])
        start += shard.num_rows()
    return result


def _num_prompts_in_two_splits(turn: Publication, shards: list[Shard]) -> int:
    """How many prompts stand in more than one split of the written files; zero by law."""
    prompts = []
    for split in SPLITS:
        paths = [path for shard in shards if (path := turn.path(shard, split))]
        prompts.append(set(read_table(paths, records.PADDED, ["prompt_key"])["prompt_key"].to_pylist()))
    return sum(len(one & other) for i, one in enumerate(prompts) for other in prompts[i + 1 :])
