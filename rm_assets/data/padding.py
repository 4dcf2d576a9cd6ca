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
from rm_assets.data.fingerprint import fingerprint
from rm_assets.data.flattening import PAIR_COLUMNS, pair_reject
from rm_assets.data.raw import reason_counts
from rm_assets.data.records import Reason, Stage
from rm_assets.data.snapshots import DATA, REJECTS, Publication, Shard, Snapshot, publication, read_table
from rm_assets.settings import Settings

VERSION = 1
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
    """A shard of tokenized pairs, its rows that go, and how the others are split and padded."""

    path: Path | None
    dropped: tuple[tuple[int, Reason], ...]
    pad_token_id: int
    seed: str
    validation_fraction: float
    test_fraction: float


def pad_shard(task: PaddingTask) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Rows by split, and rejects, of one shard of tokenized pairs."""
    pad_token_id = task.pad_token_id
    table = read_table([task.path] if task.path else [], records.TOKENIZED)
    dropped = dict(task.dropped)
    rows = table.select(["source", "line"]).to_pylist()
    rejects = [pair_reject(rows[index], Stage.PADDED, reason, _DETAILS[reason]) for index, reason in task.dropped]
    splits = np.array(
        [
            "" if index in dropped else split_of(key, task.seed, task.validation_fraction, task.test_fraction)
            for index, key in enumerate(table["prompt_key"].to_pylist())
        ]
    )
    tables = {split: padded_table(table.filter(pa.array(splits == split)), pad_token_id) for split in SPLITS}
    tables[REJECTS] = pa.Table.from_pylist(rejects, schema=records.REJECTS)
    return tables, {
        "num_in": table.num_rows,
        "pad_token_id": pad_token_id,
        "num_ending_in_padding": _num_ending_in(table, pad_token_id),
        "reasons": reason_counts(task.dropped[i][1] for i in range(len(task.dropped))),
    }


_DETAILS = {
    Reason.DUPLICATE: "an equal pair stands earlier",
    Reason.CONFLICT: "the same two replies stand with the labels the other way round, too",
}


def _num_ending_in(table: pa.Table, token_id: int) -> int:
    last = [_flat(table[f"{side}_ids"]) for side in ("chosen", "rejected")]
    return int(sum(np.sum(values[np.cumsum(lengths) - 1] == token_id) for values, lengths in last if len(values)))


def padding_laws(paths: dict[str, Path]) -> dict[str, Any]:
    """Figures of the written shard: rows by split, sides of unequal length, masks that are not the lengths."""
    splits = {s: read_table([paths[s]] if s in paths else [], records.PADDED).combine_chunks() for s in SPLITS}
    rejects = read_table([paths[REJECTS]] if REJECTS in paths else [], records.REJECTS)
    broken = [_padding_figures(table) for table in splits.values()]
    return {
        "num_out": sum(table.num_rows for table in splits.values()),
        "num_rejects": rejects.num_rows,
        **{f"num_{split}": table.num_rows for split, table in splits.items()},
        **{name: sum(figures[name] for figures in broken) for name in broken[0]},
    }


def _padding_figures(table: pa.Table) -> dict[str, int]:
    widths, num_wrong_masks, num_real = [], 0, 0
    for side in ("chosen", "rejected"):
        _, width = _flat(table[f"{side}_input_ids"])
        mask, mask_width = _flat(table[f"{side}_attention_mask"])
        length = table[f"{side}_length"].to_numpy()
        expected = padded(np.ones(int(length.sum()), dtype=np.int8), length, width, 0)
        num_wrong_masks += int(not np.array_equal(mask, expected)) + int(not np.array_equal(mask_width, width))
        widths.append(width)
        num_real += int(length.sum())
    return {
        "num_unequal": int(np.sum(widths[0] != widths[1])),
        "num_wrong_masks": num_wrong_masks,
        "num_tokens": num_real,
        "num_padding": int(sum(width.sum() for width in widths)) - num_real,
    }


# --- the stage -----------------------------------------------------------------------------------------------


def padded_snapshot(settings: Settings, tokenized: Snapshot, say: Callable[[str], object]) -> Snapshot:
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

    def task(shard: Shard) -> Task:
        arguments = PaddingTask(
            path=tokenized.data_path(shard),
            dropped=dropped[shard.name],
            pad_token_id=pad_token_id,
            seed=settings.split_seed,
            validation_fraction=settings.validation_fraction,
            test_fraction=settings.test_fraction,
        )
        key = fingerprint(identity, shard.key, [[row, reason] for row, reason in dropped[shard.name]])
        return Task(name=shard.name, source=shard.source, key=key, num_bytes=shard.num_bytes, arguments=arguments)

    with publication(Path(settings.storage), Stage.PADDED, settings.keep_snapshots, say) as turn:
        tasks = [task(shard) for shard in tokenized.manifest.shards]
        shards = compute_shards(turn, tasks, pad_shard, padding_laws, settings.num_workers, say)

        def facts() -> dict[str, int]:
            return {"num_prompts_in_two_splits": _num_prompts_in_two_splits(turn, shards)}

        return turn.publish(shards, {Stage.TOKENIZED: tokenized.name}, facts)


def pad_token_id_of(snapshot: Snapshot) -> int:
    """The padding token of the tokenizer that a snapshot was made with."""
    found = {int(shard.stats["pad_token_id"]) for shard in snapshot.manifest.shards}
    assert len(found) == 1, "one tokenizer has one padding token"
    return found.pop()


def _dropped_by_shard(tokenized: Snapshot, conflicts: str) -> dict[str, tuple[tuple[int, Reason], ...]]:
    keys = read_table(tokenized.paths(DATA), records.TOKENIZED, ["chosen_key", "rejected_key"])
    dropped = sorted(dropped_rows(keys["chosen_key"], keys["rejected_key"], conflicts).items())
    rows = np.array([row for row, _ in dropped], dtype=np.int64)
    result, start = {}, 0
    for shard in tokenized.manifest.shards:
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
