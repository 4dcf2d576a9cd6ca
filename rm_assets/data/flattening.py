"""flattened_conversations: each pair as the text that the chat template makes of it.

`prompt + chosen` is the whole rendered conversation, and so is `prompt + rejected`; the prompt ends where the
template's generation prompt does, or earlier, where the renderings already part.
"""

import os.path
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from rm_assets.data import records
from rm_assets.data.chat import (
    ChatTokenizer,
    MessageDict,
    TemplateError,
    load_chat_tokenizer,
    lost_parts,
    message_dict,
    render,
)
from rm_assets.data.engine import Task, compute_shards
from rm_assets.data.fingerprint import fingerprint
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

VERSION = 2

PAIR_COLUMNS = ("source", "line", "pair_id", "prompt_key", "chosen_key", "rejected_key")


@dataclass(frozen=True, kw_only=True)
class Flattened:
    """One pair as text: `prompt + chosen` and `prompt + rejected` are the two rendered conversations."""

    prompt: str
    chosen: str
    rejected: str


def flatten_pair(
    chat: ChatTokenizer,
    prompt: list[MessageDict],
    chosen: list[MessageDict],
    rejected: list[MessageDict],
    tools: str,
) -> Flattened:
    """Render a pair; raises PreferenceError where the template raises, leaves a part out or makes both sides equal."""
    for side, messages in (("chosen", prompt + chosen), ("rejected", prompt + rejected)):
        if lost := lost_parts(chat, messages, tools):
            raise PreferenceError(Reason.MESSAGE_LOST, f"{' and '.join(lost)}, {side} side")
    try:
        opening = render(chat, prompt, tools, add_generation_prompt=True)
        whole = [render(chat, prompt + side, tools) for side in (chosen, rejected)]
    except TemplateError as error:
        raise PreferenceError(Reason.TEMPLATE_ERROR, str(error)) from None
    if whole[0] == whole[1]:
        raise PreferenceError(Reason.IDENTICAL_AFTER_TEMPLATE, "the chat template writes both sides alike")
    shared = os.path.commonprefix([opening, *whole])  # noqa: RUF071 - characters are what is meant
    return Flattened(prompt=shared, chosen=whole[0][len(shared) :], rejected=whole[1][len(shared) :])


def is_rewritten(flat: Flattened, sides: dict[str, list[MessageDict]]) -> bool:
    """Whether the template wrote some content other than verbatim: stripped, or without its earlier thinking."""
    return any(
        message.get("content") and message["content"] not in flat.prompt + text
        for side, text in (("chosen", flat.chosen), ("rejected", flat.rejected))
        for message in sides["prompt"] + sides[side]
    )


def require_no_control_tokens(chat: ChatTokenizer, sides: dict[str, list[MessageDict]], tools: str) -> None:
    """Raise PreferenceError if text of the pair contains a control token: it could forge a turn or an end."""
    for side, messages in sides.items():
        for number, message in enumerate(messages, start=1):
            if found := chat.control_pattern.search("\n".join(_strings(message))):
                where = f"{found[0]!r} in message {number} of {side}"
                raise PreferenceError(Reason.CONTROL_TOKEN, where)
    if found := chat.control_pattern.search(tools):
        raise PreferenceError(Reason.CONTROL_TOKEN, f"{found[0]!r} in the tools")


def _strings(value: Any) -> list[str]:
    """All strings inside a JSON value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in _strings(part)]
    return []


# --- one shard -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FlatteningTask:
    """A shard of validated pairs, and what renders them."""

    path: Path | None
    tokenizer: TokenizerFiles
    allow_control_tokens: bool


def pair_messages(row: dict[str, Any]) -> dict[str, list[MessageDict]]:
    """The messages of a validated row by side, as a template wants them."""
    return {side: [message_dict(message) for message in row[side]] for side in ("prompt", "chosen", "rejected")}


def flatten_shard(task: FlatteningTask) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Rows and rejects of one shard of validated pairs."""
    chat = load_chat_tokenizer(task.tokenizer)
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    validated = read_table([task.path] if task.path else [], records.VALIDATED).to_pylist()
    num_rewritten = 0
    for row in validated:
        sides = pair_messages(row)
        try:
            if not task.allow_control_tokens:
                require_no_control_tokens(chat, sides, row["tools"])
            flat = flatten_pair(chat, sides["prompt"], sides["chosen"], sides["rejected"], row["tools"])
        except PreferenceError as error:
            rejects.append(pair_reject(row, Stage.FLATTENED, error.reason, error.detail))
            continue
        num_rewritten += is_rewritten(flat, sides)
        rows.append(
            {name: row[name] for name in (*PAIR_COLUMNS, "margin")}
            | {"prompt": flat.prompt, "chosen": flat.chosen, "rejected": flat.rejected}
        )
    tables = {
        DATA: pa.Table.from_pylist(rows, schema=records.FLATTENED),
        REJECTS: pa.Table.from_pylist(rejects, schema=records.REJECTS),
    }
    return tables, {
        "num_in": len(validated),
        "num_rewritten": num_rewritten,
        "reasons": reason_counts(reject["reason"] for reject in rejects),
    }


def pair_reject(row: dict[str, Any], stage: Stage, reason: Reason, detail: str) -> dict[str, Any]:
    """A reject after validation, where a row is known by its pair: `line_sha256` is left empty."""
    return {
        "source": row["source"],
        "line": row["line"],
        "stage": stage,
        "reason": reason,
        "detail": detail,
        "line_sha256": "",
    }


def flattening_laws(task: FlatteningTask, paths: dict[str, Path]) -> dict[str, Any]:
    """Figures of the written shard: pairs out, rejects, and pairs whose two texts are equal."""
    table = read_table([paths[DATA]] if DATA in paths else [], records.FLATTENED)
    rejects = read_table([paths[REJECTS]] if REJECTS in paths else [], records.REJECTS)
    num_characters = [len(text) for side in ("prompt", "chosen", "rejected") for text in table[side].to_pylist()]
    return {
        "num_out": table.num_rows,
        "num_rejects": rejects.num_rows,
        "num_identical": sum(
            chosen == rejected
            for chosen, rejected in zip(table["chosen"].to_pylist(), table["rejected"].to_pylist(), strict=True)
        ),
        "num_characters": sum(num_characters),
    }


# --- the stage -----------------------------------------------------------------------------------------------


def flattened_snapshot(
    settings: Settings, tokenizer: TokenizerFiles, validated: Snapshot, say: Callable[[str], object]
) -> Snapshot:
    """Render every validated shard whose key is not found, and publish."""
    identity = fingerprint(Stage.FLATTENED, VERSION, tokenizer.identity, settings.control_tokens)

    def task(shard: Shard) -> Task:
        path = validated.data_path(shard)
        allow = settings.control_tokens == "allow"
        arguments = FlatteningTask(path=path, tokenizer=tokenizer, allow_control_tokens=allow)
        key = fingerprint(identity, shard.key)
        return Task(name=shard.name, source=shard.source, key=key, num_bytes=shard.num_bytes, arguments=arguments)

    with publication(place(settings.storage), Stage.FLATTENED, settings.keep_snapshots, say) as turn:
        tasks = [task(shard) for shard in validated.manifest.shards]
        shards = compute_shards(turn, tasks, flatten_shard, flattening_laws, settings, say)
        made_with = stage_identity(Stage.FLATTENED, settings, validated.manifest.identity, tokenizer.identity)
        return turn.publish(shards, {Stage.VALIDATED: validated.name}, {}, made_with)
