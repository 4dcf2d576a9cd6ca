"""tokenized_pairs: both sides of each pair as token ids, equal to `apply_chat_template(..., tokenize=True)`.

Over-long pairs are rejects, or, with `over_long: drop_turns`, lose the same oldest turns on both sides; a reply is
never cut. Every written shard has a sample of its rows encoded anew from the messages by transformers itself.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rm_assets.data import records
from rm_assets.data.chat import ChatTokenizer, MessageDict, encode, load_chat_tokenizer, reference_ids
from rm_assets.data.engine import Task, compute_shards
from rm_assets.data.fingerprint import fingerprint
from rm_assets.data.flattening import PAIR_COLUMNS, flatten_pair, pair_messages, pair_reject
from rm_assets.data.formats import PreferenceError
from rm_assets.data.identities import stage_identity
from rm_assets.data.model_files import TokenizerFiles
from rm_assets.data.parquet import read_table
from rm_assets.data.publication import publication
from rm_assets.data.raw import reason_counts
from rm_assets.data.records import Reason, Stage
from rm_assets.data.snapshots import DATA, REJECTS, Shard, Snapshot
from rm_assets.data.storage import place
from rm_assets.settings import Settings

VERSION = 1
NUM_SAMPLED = 64
"""Rows of each shard that the reference encodes anew, those with the smallest pair_id: a choice by hash."""

Ids = np.ndarray[Any, np.dtype[np.int32]]
Messages = Callable[[], dict[str, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class TokenizedPair:
    """Both sides of a pair: int32 arrays [chosen tokens] and [rejected tokens]."""

    chosen: Ids
    rejected: Ids
    num_dropped_turns: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longer side."""
        return max(len(self.chosen), len(self.rejected))

    @property
    def prefix_length(self) -> int:
        """Tokens of the longest common beginning, at most one less than the shorter side.

        For [1, 2, 3, 4] and [1, 2, 9] it is 2; for [1, 2] and [1, 2, 3] it is 1: each side keeps a token of its own.
        """
        limit = min(len(self.chosen), len(self.rejected)) - 1
        differing = np.flatnonzero(self.chosen[:limit] != self.rejected[:limit])
        return int(differing[0]) if len(differing) else max(limit, 0)


# --- one pair ------------------------------------------------------------------------------------------------


def require_usable(pair: TokenizedPair, max_length: int) -> None:
    """Raise PreferenceError for equal sides, and for a side of more than `max_length` tokens."""
    if np.array_equal(pair.chosen, pair.rejected):
        raise PreferenceError(Reason.IDENTICAL_AFTER_TOKENIZATION, "both sides have the same ids")
    if pair.longest > max_length:
        raise PreferenceError(
            Reason.TOO_LONG, f"{len(pair.chosen)} and {len(pair.rejected)} tokens, more than {max_length}"
        )


def without_oldest_turns(prompt: list[MessageDict], num_turns: int) -> list[MessageDict] | None:
    """A prompt without its oldest turns; a turn starts at a user's message. None if no turn would be left.

    For [system, u1, a1, u2] and 1 it is [system, u2].
    """
    starts = [index for index, message in enumerate(prompt) if message["role"] == "user"]
    if num_turns >= len(starts):
        return None
    return prompt[: starts[0]] + prompt[starts[num_turns] :]


def shortened_pair(
    chat: ChatTokenizer, sides: dict[str, list[MessageDict]], tools: str, max_length: int
) -> TokenizedPair | None:
    """The pair with as few of its oldest turns dropped as make it fit; None if no number of them does."""
    num_turns = 1
    while (prompt := without_oldest_turns(sides["prompt"], num_turns)) is not None:
        flat = flatten_pair(chat, prompt, sides["chosen"], sides["rejected"], tools)
        chosen, rejected = encode(chat, [flat.prompt + flat.chosen, flat.prompt + flat.rejected])
        pair = TokenizedPair(chosen=chosen, rejected=rejected, num_dropped_turns=num_turns)
        if pair.longest <= max_length:
            return pair
        num_turns += 1
    return None


# --- one shard -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TokenizationTask:
    """A shard of rendered pairs, the validated shard it came from, and what encodes them."""

    path: Path | None
    validated: Path | None
    tokenizer: TokenizerFiles
    max_length: int
    drop_turns: bool


def tokenize_shard(task: TokenizationTask) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Rows and rejects of one shard of rendered pairs."""
    chat = load_chat_tokenizer(task.tokenizer)
    flattened = read_table([task.path] if task.path else [], records.FLATTENED).to_pylist()
    messages = functools.cache(lambda: _validated_rows(task))  # read at most once, and only for an over-long pair
    kept: list[tuple[dict[str, Any], TokenizedPair]] = []
    rejects: list[dict[str, Any]] = []
    for row, pair in zip(flattened, _encoded_pairs(chat, flattened), strict=True):
        try:
            pair = _fitted(chat, task, messages, row, pair)
            require_usable(pair, task.max_length)
            kept.append((row, pair))
        except PreferenceError as error:
            rejects.append(pair_reject(row, Stage.TOKENIZED, error.reason, error.detail))
    tables = {DATA: _table(kept), REJECTS: pa.Table.from_pylist(rejects, schema=records.REJECTS)}
    # The padding token belongs to the tokenizer; stated here, no later stage has to load one.
    stats = {
        "pad_token_id": chat.pad_token_id,
        "num_in": len(flattened),
        "reasons": reason_counts(reject["reason"] for reject in rejects),
    }
    return tables, stats


def _encoded_pairs(chat: ChatTokenizer, rows: list[dict[str, Any]]) -> Iterator[TokenizedPair]:
    chosen = encode(chat, [row["prompt"] + row["chosen"] for row in rows])
    rejected = encode(chat, [row["prompt"] + row["rejected"] for row in rows])
    for one, other in zip(chosen, rejected, strict=True):
        yield TokenizedPair(chosen=one, rejected=other)


def _fitted(
    chat: ChatTokenizer, task: TokenizationTask, messages: Messages, row: dict[str, Any], pair: TokenizedPair
) -> TokenizedPair:
    if pair.longest <= task.max_length or not task.drop_turns:
        return pair
    validated = messages()[row["pair_id"]]
    return shortened_pair(chat, pair_messages(validated), validated["tools"], task.max_length) or pair


def _validated_rows(task: TokenizationTask) -> dict[str, dict[str, Any]]:
    """The validated rows of the shard by pair_id: equal ids have equal messages, so any of them will do."""
    table = read_table([task.validated] if task.validated else [], records.VALIDATED)
    return {row["pair_id"]: row for row in table.to_pylist()}


def _exactness(task: TokenizationTask, table: pa.Table) -> dict[str, int]:
    """How many sampled rows there are, and how many have other ids than transformers gives for their messages."""
    order = np.argsort(np.array(table["pair_id"].to_pylist()), kind="stable")[:NUM_SAMPLED]
    if not len(order):
        return {"num_sampled": 0, "num_inexact": 0}
    chat, validated = load_chat_tokenizer(task.tokenizer), _validated_rows(task)
    sampled = table.take(pa.array(order)).to_pylist()
    num_inexact = sum(not _is_exact(chat, validated[row["pair_id"]], row) for row in sampled)
    return {"num_sampled": len(sampled), "num_inexact": num_inexact}


def _is_exact(chat: ChatTokenizer, validated: dict[str, Any], row: dict[str, Any]) -> bool:
    sides = pair_messages(validated)
    prompt = without_oldest_turns(sides["prompt"], row["num_dropped_turns"]) or sides["prompt"]
    return all(
        reference_ids(chat, prompt + sides[side], validated["tools"]) == row[f"{side}_ids"]
        for side in ("chosen", "rejected")
    )


def _table(kept: list[tuple[dict[str, Any], TokenizedPair]]) -> pa.Table:
    columns: dict[str, Any] = {name: [row[name] for row, _ in kept] for name in (*PAIR_COLUMNS, "margin")}
    columns["chosen_ids"] = id_lists([pair.chosen for _, pair in kept])
    columns["rejected_ids"] = id_lists([pair.rejected for _, pair in kept])
    columns["prefix_length"] = [pair.prefix_length for _, pair in kept]
    columns["num_dropped_turns"] = [pair.num_dropped_turns for _, pair in kept]
    arrays = [
        column if isinstance(column := columns[field.name], pa.Array) else pa.array(column, field.type)
        for field in records.TOKENIZED
    ]
    return pa.Table.from_arrays(arrays, schema=records.TOKENIZED)


def id_lists(rows: list[Ids]) -> pa.ListArray:
    """Rows of ids as one Arrow list<int32> array, without an object per token."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.concatenate(rows) if rows else np.empty(0, dtype=np.int32)
    list_type = records.TOKENIZED.field("chosen_ids").type
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.int32()), type=list_type)


def tokenization_laws(task: TokenizationTask, paths: dict[str, Path]) -> dict[str, Any]:
    """Figures of the written shard: pairs out, rejects, tokens, and pairs whose two sides are equal."""
    table = read_table([paths[DATA]] if DATA in paths else [], records.TOKENIZED)
    rejects = read_table([paths[REJECTS]] if REJECTS in paths else [], records.REJECTS)
    lengths = {side: np.diff(_offsets(table[f"{side}_ids"])) for side in ("chosen", "rejected")}
    return {
        "num_out": table.num_rows,
        "num_rejects": rejects.num_rows,
        "num_identical": sum(
            one.equals(other) for one, other in zip(table["chosen_ids"], table["rejected_ids"], strict=True)
        ),
        **_exactness(task, table),
        "num_tokens": int(sum(length.sum() for length in lengths.values())),
        "num_shared_tokens": int(np.sum(table["prefix_length"].to_numpy())),
        "max_length": int(max((length.max() for length in lengths.values() if len(length)), default=0)),
    }


def _offsets(column: pa.ChunkedArray) -> Ids:
    array = column.combine_chunks()
    combined = array if isinstance(array, pa.ListArray) else pa.concat_arrays(array.chunks)
    return np.asarray(combined.offsets, dtype=np.int32)


# --- the stage -----------------------------------------------------------------------------------------------


def tokenized_snapshot(
    settings: Settings,
    tokenizer: TokenizerFiles,
    validated: Snapshot,
    flattened: Snapshot,
    say: Callable[[str], object],
) -> Snapshot:
    """Tokenize every rendered shard whose key is not found, and publish."""
    identity = fingerprint(Stage.TOKENIZED, VERSION, tokenizer.identity, settings.max_length, settings.over_long)
    messages = {shard.name: shard for shard in validated.manifest.shards}

    def task(shard: Shard) -> Task:
        arguments = TokenizationTask(
            path=flattened.data_path(shard),
            validated=validated.data_path(messages[shard.name]),
            tokenizer=tokenizer,
            max_length=settings.max_length,
            drop_turns=settings.over_long == "drop_turns",
        )
        key = fingerprint(identity, shard.key)
        return Task(name=shard.name, source=shard.source, key=key, num_bytes=shard.num_bytes, arguments=arguments)

    with publication(place(settings.storage), Stage.TOKENIZED, settings.keep_snapshots, say) as turn:
        tasks = [task(shard) for shard in flattened.manifest.shards]
        shards = compute_shards(turn, tasks, tokenize_shard, tokenization_laws, settings, say)
        made_with = stage_identity(Stage.TOKENIZED, settings, flattened.manifest.identity)
        return turn.publish(shards, {Stage.FLATTENED: flattened.name}, {}, made_with)
