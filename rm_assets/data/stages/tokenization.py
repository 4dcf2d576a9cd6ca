"""tokenized_pairs: both sides of each pair as token ids, equal to `apply_chat_template(..., tokenize=True)`.

Over-long pairs are rejects, or, with `over_long: drop_turns`, lose the same oldest turns on both sides; a reply is
never cut. A sample of every written shard is encoded again by transformers, from the messages.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rm_assets.data.chat.encoder import (
    FAST,
    NUM_SAMPLED_IDS,
    NUM_SAMPLED_LATER,
    EncodedTexts,
    Encoder,
    EncodingError,
    control_counts,
    encode_shard,
    load_encoder,
)
from rm_assets.data.chat.model_files import TokenizerFiles
from rm_assets.data.chat.pair_rendering import SIDES, pair_messages
from rm_assets.data.chat.shortening import shortened_pair, without_oldest_turns
from rm_assets.data.chat.tokenizer import ChatTokenizer, load_chat_tokenizer, reference_ids
from rm_assets.data.compute.engine import Task
from rm_assets.data.formats.preferences import Message
from rm_assets.data.pairs.conversations import Conversations
from rm_assets.data.pairs.keys import pair_keys
from rm_assets.data.stages.identities import settings_key
from rm_assets.data.stages.rejects import Refusal, num_rejects, reason_counts, refused_rows
from rm_assets.data.stages.run_stage import Log, log_slow_paths, run_stage, shard_task
from rm_assets.data.storage.files import resolve_path
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.parquet import read_batches
from rm_assets.data.storage.shards import ShardWriter, Stats, counts_of_files
from rm_assets.data.storage.snapshots import DATA, REJECTS, Shard, Snapshot
from rm_assets.data.tables import schemas
from rm_assets.data.tables.message_columns import single_chunk
from rm_assets.data.tables.ragged import IdLists, equal_rows, join_rows, lists_of, prefix_lengths, rows_with
from rm_assets.data.tables.reasons import Reason
from rm_assets.data.tables.schemas import PAIR_COLUMNS, Stage
from rm_assets.settings import Settings

VERSION = 5
NUM_SAMPLED = 32
"""Rows of each shard that transformers encodes again: those with the smallest pair_id, a choice by hash."""
MAX_BYTES_PER_TOKEN = 1_000
"""A text with more bytes for each of `max_length` tokens is not encoded: it would take seconds, and gigabytes."""
SELF_TESTS = "tokenizers"
"""Where in the storage the outcomes of the encoders' self-tests are kept."""


@dataclass(frozen=True, kw_only=True)
class PairIds:
    """Both sides of pairs as ids, and how many of their oldest turns were dropped, int [pairs].

    `keys` are the hashes of both conversations of the pairs that lost turns, as they are now: equal and flipped pairs
    are found by them.
    """

    chosen: IdLists
    rejected: IdLists
    num_dropped_turns: NDArray[np.int32]
    keys: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)

    @property
    def longest(self) -> NDArray[np.int64]:
        """Tokens of the longer side of each pair."""
        return np.maximum(self.chosen.lengths, self.rejected.lengths)


# --- one shard -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TokenizationTask:
    """A shard of rendered pairs, the validated shard it came from, and what encodes them.

    `self_tests` is where the outcome of the encoder's self-test is kept.
    """

    path: Path | None
    validated: Path | None
    sources: tuple[str, ...]
    tokenizer: TokenizerFiles
    max_length: int
    drop_turns: bool
    allow_control_tokens: bool
    self_tests: Path


def tokenize_shard(task: TokenizationTask, writer: ShardWriter) -> Stats:
    """Rows and rejects of one shard of rendered pairs; if the fast backend fails its check, by the reference."""
    encoder = load_encoder(task.tokenizer, task.self_tests)
    was_fast = encoder.backend == FAST
    stats = _tokenize(task, encoder, writer)
    if was_fast and encoder.backend != FAST:
        writer.restart()
        stats = _tokenize(task, encoder, writer)
    return stats


def _tokenize(task: TokenizationTask, encoder: Encoder, writer: ShardWriter) -> Stats:
    chat = load_chat_tokenizer(task.tokenizer)
    num_in, detail, reasons = Counter[str](), "", Counter[Reason]()
    for number, rows in enumerate(read_batches(task.path, schemas.FLATTENED)):
        surely_long = _surely_long(task, rows)
        num_sampled = NUM_SAMPLED_LATER if number else NUM_SAMPLED_IDS
        encoded, failed = _encoded(encoder, _emptied(rows, surely_long), num_sampled)
        detail = encoded.detail or detail
        is_forged = _is_forged(encoder, encoded, rows) & (not task.allow_control_tokens)
        is_forged[list(surely_long)] = False
        pairs = _pairs(encoded, rows.num_rows)
        if task.drop_turns:
            pairs = _shortened(chat, task, rows, pairs, failed, surely_long)
        prefixes = prefix_lengths(pairs.chosen, pairs.rejected)
        refused = _refused(task, pairs, is_forged, chat.pad_token_id) | failed
        refused |= {row: refusal for row, refusal in surely_long.items() if not pairs.num_dropped_turns[row]}
        refused = dict(sorted(refused.items()))
        writer.write(DATA, _table(rows, pairs, prefixes, refused))
        writer.write(REJECTS, refused_rows(rows, Stage.TOKENIZED, refused))
        num_in.update(schemas.num_rows_by_source(rows))
        reasons.update(reason for reason, _ in refused.values())
    # The padding token is the tokenizer's; kept here, so that no later stage has to load a tokenizer.
    return {
        "pad_token_id": chat.pad_token_id,
        **counts_of_files(task.sources, num_in=num_in),
        "encoder": encoder.backend,
        "encoder_reason": encoder.reason or detail,
        "reasons": reason_counts(reasons),
    }


def _surely_long(task: TokenizationTask, rows: pa.Table) -> dict[int, Refusal]:
    """The pairs that are not encoded, as their bytes, or the template's control tokens, already make them too long."""
    written = [rows[f"{side}_control_tokens"].to_numpy() for side in SIDES]
    found = {
        row: (
            Reason.TOO_LONG,
            f"at least {written[0][row]} (chosen) and {written[1][row]} (rejected) tokens, more than {task.max_length}",
        )
        for row in np.flatnonzero(np.maximum(*written) > task.max_length).tolist()
    }
    longer = pc.max_element_wise(*(pc.binary_length(rows[side]) for side in SIDES))
    num_bytes = pc.add(pc.binary_length(rows["prompt"]), longer).to_numpy()
    for row in np.flatnonzero(num_bytes > MAX_BYTES_PER_TOKEN * task.max_length).tolist():
        limit = f"more than {MAX_BYTES_PER_TOKEN} per token of max_length {task.max_length}, so not encoded"
        found[row] = Reason.TOO_LONG, f"{num_bytes[row]} bytes, {limit}"
    return found


def _emptied(rows: pa.Table, numbers: Collection[int]) -> pa.Table:
    """The rows, with empty texts in those of these numbers."""
    if not numbers:
        return rows
    is_emptied = np.zeros(rows.num_rows, np.bool_)
    is_emptied[list(numbers)] = True
    for name in ("prompt", *SIDES):
        texts = pc.if_else(pa.array(is_emptied), "", single_chunk(rows[name]))
        rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), texts)
    return rows


def _encoded(encoder: Encoder, rows: pa.Table, num_sampled_ids: int) -> tuple[EncodedTexts, dict[int, Refusal]]:
    """The ids of all chosen sides, then of all rejected ones; rows on which the tokenizer itself fails have none."""
    failed: dict[int, Refusal] = {}
    texts = [text for side in SIDES for text in pc.binary_join_element_wise(rows["prompt"], rows[side], "").to_pylist()]
    while True:
        try:
            return encode_shard(encoder, texts, num_sampled_ids), failed
        except EncodingError as error:
            texts[error.row] = ""
            failed[error.row % rows.num_rows] = Reason.TOKENIZER_ERROR, "the tokenizer fails on the conversation"


def _is_forged(encoder: Encoder, encoded: EncodedTexts, rows: pa.Table) -> NDArray[np.bool_]:
    """Which rows have more or fewer control tokens than the template writes."""
    written = np.concatenate([rows[f"{side}_control_tokens"].to_numpy() for side in SIDES])
    differ = control_counts(encoder, encoded.ids, encoded.offsets) != written
    return np.asarray(differ.reshape(2, -1).any(axis=0))


def _pairs(encoded: EncodedTexts, num_pairs: int) -> PairIds:
    ids, offsets, middle = encoded.ids, encoded.offsets, encoded.offsets[num_pairs]
    return PairIds(
        chosen=IdLists(ids[:middle], offsets[: num_pairs + 1]),
        rejected=IdLists(ids[middle:], offsets[num_pairs:] - middle),
        num_dropped_turns=np.zeros(num_pairs, np.int32),
    )


def _shortened(
    chat: ChatTokenizer,
    task: TokenizationTask,
    rows: pa.Table,
    pairs: PairIds,
    failed: Collection[int],
    surely_long: Collection[int],
) -> PairIds:
    """The pairs, with over-long ones shortened by their oldest turns where that makes them fit."""
    found_long = np.flatnonzero(pairs.longest > task.max_length).tolist()
    long_rows = [row for row in sorted({*found_long, *surely_long}) if row not in failed]
    if not long_rows:
        return pairs
    chosen, rejected = ([lists.row(row) for row in range(rows.num_rows)] for lists in (pairs.chosen, pairs.rejected))
    num_dropped_turns, keys = pairs.num_dropped_turns.copy(), dict[int, tuple[str, str]]()
    pair_ids = rows["pair_id"].take(long_rows)
    messages = _validated_rows(task, pair_ids)
    for row, pair_id in zip(long_rows, pair_ids.to_pylist(), strict=True):
        validated = messages[pair_id]
        if found := shortened_pair(chat, pair_messages(validated), validated["tools"] or "", task.max_length):
            chosen[row], rejected[row], num_dropped_turns[row] = found
            keys[row] = _keys_without_turns(validated, found[2])
    return PairIds(
        chosen=join_rows(chosen), rejected=join_rows(rejected), num_dropped_turns=num_dropped_turns, keys=keys
    )


def _keys_without_turns(validated: dict[str, Any], num_turns: int) -> tuple[str, str]:
    """The hashes of both conversations of a validated row without its oldest turns."""
    sides = Conversations(), Conversations(), Conversations()
    shortened = validated | {"prompt": without_oldest_turns(validated["prompt"], num_turns)}
    for side, name in zip(sides, ("prompt", *SIDES), strict=True):
        side.add([Message(**message) for message in shortened[name]])
    keys = pair_keys(*sides, [validated["tools"] or ""])
    return keys.chosen[0], keys.rejected[0]


def _refused(
    task: TokenizationTask, pairs: PairIds, is_forged: NDArray[np.bool_], pad_token_id: int
) -> dict[int, Refusal]:
    """Why rows are rejects, by row; of several reasons the last one."""
    refused: dict[int, Refusal] = {}
    for row in np.flatnonzero(pairs.longest > task.max_length).tolist():
        lengths = pairs.chosen.lengths[row], pairs.rejected.lengths[row]
        refused[row] = (
            Reason.TOO_LONG,
            f"{lengths[0]} (chosen) and {lengths[1]} (rejected) tokens, more than {task.max_length}",
        )
    for row in np.flatnonzero(equal_rows(pairs.chosen, pairs.rejected)).tolist():
        refused[row] = Reason.IDENTICAL_AFTER_TOKENIZATION, "both sides have the same token ids"
    for row in np.flatnonzero(is_forged).tolist():
        refused[row] = Reason.CONTROL_TOKEN, "the ids contain more or fewer control tokens than the template writes"
    is_padded = rows_with(pairs.chosen, pad_token_id) | rows_with(pairs.rejected, pad_token_id)
    for row in np.flatnonzero(is_padded).tolist():
        refused[row] = Reason.CONTROL_TOKEN, "the conversation contains the padding token"
    return refused


def _table(rows: pa.Table, pairs: PairIds, prefixes: NDArray[np.int64], refused: dict[int, Refusal]) -> pa.Table:
    keep = np.ones(rows.num_rows, np.bool_)
    keep[list(refused)] = False
    rows = _with_keys(rows, pairs.keys)
    rows = rows if keep.all() else rows.filter(pa.array(keep))
    ids_type = schemas.TOKENIZED.field("chosen_ids").type
    columns: dict[str, Any] = {name: rows[name] for name in (*PAIR_COLUMNS, "margin")}
    columns["chosen_ids"] = pairs.chosen.where(keep).array(ids_type)
    columns["rejected_ids"] = pairs.rejected.where(keep).array(ids_type)
    columns["prefix_length"] = prefixes[keep]
    columns["num_dropped_turns"] = pairs.num_dropped_turns[keep]
    return schemas.build_table(columns, schemas.TOKENIZED)


def _with_keys(rows: pa.Table, keys: dict[int, tuple[str, str]]) -> pa.Table:
    """The rows, with these hashes of their conversations in some."""
    if not keys:
        return rows
    for which, side in enumerate(SIDES):
        column = rows[f"{side}_key"].to_pylist()
        for row, pair in keys.items():
            column[row] = pair[which]
        number = rows.column_names.index(f"{side}_key")
        rows = rows.set_column(number, rows.schema.field(number), pa.array(column, pa.string()))
    return rows


# --- the invariants of one shard -----------------------------------------------------------------------------


def measure_tokenized(task: TokenizationTask, paths: dict[str, Path]) -> Stats:
    """Figures of the written shard: pairs out, rejects, tokens, and pairs whose two sides are equal."""
    num_out, figures = Counter[str](), Counter(num_identical=0, num_tokens=0, num_shared_tokens=0)
    longest, sample = 0, schemas.TOKENIZED.empty_table().select(_MEASURED)
    for rows in read_batches(paths.get(DATA), schemas.TOKENIZED, _MEASURED):
        chosen, rejected = (lists_of(rows[f"{side}_ids"]) for side in SIDES)
        num_out.update(schemas.num_rows_by_source(rows))
        figures.update(
            num_identical=int(equal_rows(chosen, rejected).sum()),
            num_tokens=len(chosen.ids) + len(rejected.ids),
            num_shared_tokens=pc.sum(rows["prefix_length"]).as_py(),
        )
        longest = max(longest, int(chosen.lengths.max()), int(rejected.lengths.max()))
        sample = _smallest(pa.concat_tables([sample, _smallest(rows)]))
    sampled = {row["pair_id"]: row for row in sample.to_pylist()}
    chat, validated = load_chat_tokenizer(task.tokenizer), _validated_rows(task, sample["pair_id"])
    return {
        **counts_of_files(task.sources, num_out=num_out, num_rejects=num_rejects(paths)),
        **figures,
        "max_length": longest,
        "num_sampled": len(sampled),
        "num_inexact": sum(not _is_exact(chat, validated[pair_id], row) for pair_id, row in sampled.items()),
    }


_MEASURED = ["source", "pair_id", "chosen_ids", "rejected_ids", "prefix_length", "num_dropped_turns"]


def _smallest(rows: pa.Table) -> pa.Table:
    """The rows with the smallest pair_ids, once each: a choice by hash."""
    places = pc.select_k_unstable(rows["pair_id"], NUM_SAMPLED, [("", "ascending")])
    found = rows.take(places)
    first = np.unique(found["pair_id"].to_numpy(), return_index=True)[1]  # equal pairs may be many
    return found.take(pa.array(first))


def _validated_rows(task: TokenizationTask, pair_ids: pa.ChunkedArray) -> dict[str, dict[str, Any]]:
    """Validated rows of the shard by pair_id: equal ids have equal messages, so any will do."""
    found = {}
    for rows in read_batches(task.validated, schemas.VALIDATED, ["pair_id", "prompt", *SIDES, "tools"]):
        rows = rows.filter(pc.is_in(rows["pair_id"], pair_ids.combine_chunks()))
        found.update({row["pair_id"]: row for row in rows.to_pylist()})
    return found


def _is_exact(chat: ChatTokenizer, validated: dict[str, Any], row: dict[str, Any]) -> bool:
    sides = pair_messages(validated)
    prompt = without_oldest_turns(sides["prompt"], row["num_dropped_turns"])
    tools = validated["tools"] or ""
    return prompt is not None and all(
        reference_ids(chat, prompt + sides[side], tools) == row[f"{side}_ids"] for side in SIDES
    )


# --- the stage -----------------------------------------------------------------------------------------------


def publish_tokenized(
    settings: Settings, tokenizer: TokenizerFiles, validated: Snapshot, flattened: Snapshot, log: Log
) -> Snapshot:
    """Tokenize every rendered shard whose key is not found, and publish."""
    settings_hash = settings_key(Stage.TOKENIZED, VERSION, settings, tokenizer.identity)
    messages = {shard.name: shard for shard in validated.manifest.shards}

    def task(shard: Shard) -> Task:
        arguments = TokenizationTask(
            path=flattened.data_path(shard),
            validated=validated.data_path(messages[shard.name]),
            sources=tuple(shard.by_source),
            tokenizer=tokenizer,
            max_length=settings.max_length,
            drop_turns=settings.over_long == "drop_turns",
            allow_control_tokens=settings.control_tokens == "allow",
            self_tests=resolve_path(settings.storage) / SELF_TESTS,
        )
        return shard_task(shard, fingerprint(settings_hash, shard.key), arguments)

    snapshot = run_stage(
        Stage.TOKENIZED,
        settings,
        flattened,
        lambda _: [task(shard) for shard in flattened.manifest.shards],
        tokenize_shard,
        measure_tokenized,
        log,
    )
    log_slow_paths(snapshot, "encoded by transformers' own tokenizer, several times slower", "encoder_reason", log)
    return snapshot
