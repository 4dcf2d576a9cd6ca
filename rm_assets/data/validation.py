"""validated_preferences: one JSON parse a line, the format found, and each preference sound or a reject.

A file with more malformed lines than `max_malformed_fraction` is held back whole: its sound lines become rejects too,
so that a delivery gone wrong is not half used. So is a file with any ambiguous label: if `0` beside `output_1` and
`output_2` is a label, the `1` of the file's other lines may not mean `output_1`. The verdict is taken first, from
counts alone, and is part of the keys of the file's shards.
"""

import functools
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from rm_assets.data import records
from rm_assets.data.engine import Task, compute_shards
from rm_assets.data.fingerprint import fingerprint, short_hash
from rm_assets.data.formats import stated_by
from rm_assets.data.identities import stage_identity
from rm_assets.data.preferences import Message, ParsingRules, Preference, PreferenceError, Stated
from rm_assets.data.publication import Publication, publication
from rm_assets.data.raw import reason_counts
from rm_assets.data.records import MALFORMED, Reason, Stage
from rm_assets.data.snapshots import DATA, REJECTS, Shard, Snapshot, read_table
from rm_assets.data.storage import place
from rm_assets.data.two_line_format import NumberedLine, pairs_of_lines, stated_by_two_lines
from rm_assets.settings import Settings

VERSION = 2

_INDENTATION = re.compile(r"\s*")
_FOLLOWERS = {
    "": {"system", "user"},
    "system": {"user"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant"},
}
"""Which role may follow which; the empty one is the start."""


# --- one preference ------------------------------------------------------------------------------------------


def require_sound(preference: Preference) -> None:
    """Raise PreferenceError unless the conversation is in order and states a preference between two replies."""
    _require_order(preference)
    for number, message in enumerate(preference.prompt, start=1):
        if not _has_content(message):
            raise PreferenceError(Reason.EMPTY_MESSAGE, f"message {number} of the prompt is empty")
    for name, reply in (("chosen", preference.chosen), ("rejected", preference.rejected)):
        if not all(map(_has_content, reply)):
            raise PreferenceError(Reason.EMPTY_REPLY, f"the {name} reply is empty")
    if preference.chosen == preference.rejected:
        raise PreferenceError(Reason.IDENTICAL_REPLIES, "both replies are equal")
    if not abs(preference.margin) <= float(np.finfo(np.float32).max):
        raise PreferenceError(Reason.MARGIN_NOT_FINITE, "the margin is no finite float32")


def _has_content(message: Message) -> bool:
    return bool(message.tool_calls or (message.content or "").strip())


def _require_order(preference: Preference) -> None:
    if not preference.prompt:
        raise PreferenceError(Reason.EMPTY_MESSAGE, "the prompt has no message")
    for name, reply in (("chosen", preference.chosen), ("rejected", preference.rejected)):
        if not reply:
            raise PreferenceError(Reason.EMPTY_REPLY, f"the {name} reply has no message")
        before = Message(role="")
        for number, message in enumerate(preference.prompt + reply, start=1):
            if message.role not in _FOLLOWERS[before.role] or (message.role == "tool" and not _calls(before)):
                problem = f"message {number}, {name} side: {message.role!r} after {before.role or 'the start'!r}"
                raise PreferenceError(Reason.ROLES_OUT_OF_ORDER, problem)
            before = message
        if reply[0].role != "assistant" or reply[-1].role != "assistant":
            raise PreferenceError(Reason.ROLES_OUT_OF_ORDER, f"the {name} reply is not the assistant's")


def _calls(message: Message) -> bool:
    return message.role == "tool" or message.tool_calls is not None


def pair_id(preference: Preference) -> str:
    """The identity of a pair: a hash of its messages and tools, whatever file, format or margin it came with."""
    content = [preference.prompt, preference.chosen, preference.rejected, preference.tools]
    return short_hash(msgspec.json.encode(content).decode())


def prompt_key(preference: Preference) -> str:
    """What decides the split: a hash of the system message and the first user turn, in their normal form."""
    opening = [m.content or "" for m in preference.prompt if m.role == "system"][:1] or [""]
    first = next((m.content or "" for m in preference.prompt if m.role == "user"), "")
    return short_hash(*map(normal_form, (*opening, first)))


def conversation_key(messages: tuple[Message, ...], tools: str) -> str:
    """A hash of one side's texts in their normal form: what counts as equal."""
    return short_hash(*map(normal_form, _texts(messages)), tools)


def normal_form(text: str) -> str:
    """A text in Unicode NFC, white space inside a line as one space, none at the ends of lines and of the text.

    Indentation stays: two programs that differ in it are two programs.
    """
    lines = unicodedata.normalize("NFC", text).strip().splitlines()
    return "\n".join(_INDENTATION.match(line)[0] + " ".join(line.split()) for line in lines)  # type: ignore[index]


def _texts(messages: tuple[Message, ...]) -> list[str]:
    return [part for message in messages for part in (message.role, *_message_texts(message))]


def _message_texts(message: Message) -> tuple[str, ...]:
    return tuple(
        value or ""
        for value in (
            message.content,
            message.name,
            message.reasoning_content,
            message.tool_calls,
            message.tool_call_id,
        )
    )


# --- one shard -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ValidationTask:
    """A shard of raw lines with its rejects; `held_back` says why its file is held back, or is empty."""

    path: Path | None
    rejected: Path | None
    held_back: str
    rules: ParsingRules


def validate_shard(task: ValidationTask) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Rows and rejects of one shard of raw lines."""
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    raw = read_table([task.path] if task.path else [], records.RAW)
    num_malformed = num_stated = num_tied = num_not_taken = num_second_lines = 0
    for source, lines, stated_by_lines in _statements(task, raw):
        try:
            stated = stated_by_lines()
            for preference in stated.preferences:
                require_sound(preference)
            if task.held_back:
                raise PreferenceError(Reason.HELD_BACK_FILE, task.held_back)
            num_stated += len(stated.preferences)
            num_tied += stated.num_tied
            num_not_taken += stated.num_not_taken
            num_second_lines += len(lines) - 1
            rows += [_row(source, lines[0][0], preference) for preference in stated.preferences]
        except PreferenceError as error:
            told = [_reject(source, line, error, text) for line, text in lines if text is not None]
            num_malformed += len(told) * (error.reason in MALFORMED)
            rejects += told
    tables = {
        DATA: pa.Table.from_pylist(rows, schema=records.VALIDATED),
        REJECTS: pa.Table.from_pylist(rejects, schema=records.REJECTS),
    }
    return tables, {
        "num_in": raw.num_rows,
        "num_malformed": num_malformed,
        "num_ambiguous_labels": sum(reject["reason"] == Reason.AMBIGUOUS_LABEL for reject in rejects),
        "num_stated": num_stated,
        "num_tied": num_tied,
        "num_not_taken": num_not_taken,
        "num_second_lines": num_second_lines,
        "num_held_back": int(bool(task.held_back)) * raw.num_rows,
        "formats": dict(sorted(Counter(row["format"] for row in rows).items())),
        "reasons": reason_counts(reject["reason"] for reject in rejects),
    }


def _statements(task: ValidationTask, raw: pa.Table) -> Iterator[tuple[str, list[NumberedLine], Callable[[], Stated]]]:
    """What to read together: a source, its line or two lines, and how to know what they state."""
    rows = zip(*(column.to_pylist() for column in raw.columns), strict=True)
    if not task.rules.two_line_files:
        for source, line, text in rows:
            yield source, [(line, text)], functools.partial(stated_by, text, task.rules)
        return
    rejected = read_table([task.rejected] if task.rejected else [], records.REJECTS)
    places = rejected.select(["source", "line"]).to_pylist()
    found = [*rows, *((place["source"], place["line"], None) for place in places if place["line"])]
    for first, second in pairs_of_lines([(line, text) for _, line, text in found]):
        yield found[0][0], [first, *([second] if second else [])], functools.partial(stated_by_two_lines, first, second)


def _row(source: str, line: int, preference: Preference) -> dict[str, Any]:
    sides = {"chosen": preference.chosen, "rejected": preference.rejected}
    keys = {f"{n}_key": conversation_key(preference.prompt + m, preference.tools) for n, m in sides.items()}
    return {
        "source": source,
        "line": line,
        "pair_id": pair_id(preference),
        "prompt_key": prompt_key(preference),
        **keys,
        "prompt": msgspec.to_builtins(preference.prompt),
        **{name: msgspec.to_builtins(messages) for name, messages in sides.items()},
        "tools": preference.tools,
        "margin": preference.margin,
        "format": preference.format,
        "num_turns": sum(message.role == "user" for message in preference.prompt),
        "subset": preference.subset,
    }


def _reject(source: str, line: int, error: PreferenceError, text: str) -> dict[str, Any]:
    return {
        "source": source,
        "line": line,
        "stage": Stage.VALIDATED,
        "reason": error.reason,
        "detail": error.detail,
        "line_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
    }


def validation_laws(task: ValidationTask, paths: dict[str, Path]) -> dict[str, Any]:
    """Figures of the written shard: how many lines gave its pairs, and pairs whose two replies are equal."""
    table = read_table([paths[DATA]] if DATA in paths else [], records.VALIDATED)
    rejects = read_table([paths[REJECTS]] if REJECTS in paths else [], records.REJECTS)
    return {
        "num_out": table.num_rows,
        "num_lines_with_pairs": len(set(zip(table["source"].to_pylist(), table["line"].to_pylist(), strict=True))),
        "num_rejects": rejects.num_rows,
        "num_identical": sum(
            chosen == rejected
            for chosen, rejected in zip(table["chosen"].to_pylist(), table["rejected"].to_pylist(), strict=True)
        ),
    }


# --- the stage -----------------------------------------------------------------------------------------------


def validated_snapshot(settings: Settings, raw: Snapshot, say: Callable[[str], object]) -> Snapshot:
    """Validate every raw shard whose key is not found, hold back the files that are mostly damage, and publish."""
    with publication(place(settings.storage), Stage.VALIDATED, settings.keep_snapshots, say) as turn:
        limit, rules = settings.max_malformed_fraction, parsing_rules(settings)
        verdict = f"more than {limit:.4g} of the file's lines are malformed, or one has an ambiguous label"
        sound = [_task(raw, shard, "", rules) for shard in raw.manifest.shards]
        held = [_task(raw, shard, verdict, rules) for shard in raw.manifest.shards]
        held_back = _held_back_files(raw, _first_looks(turn, sound, held, settings, say), limit)
        tasks = [worse if task.source in held_back else task for task, worse in zip(sound, held, strict=True)]
        shards = compute_shards(turn, tasks, validate_shard, validation_laws, settings, say)
        return turn.publish(
            shards,
            {Stage.RAW: raw.name},
            {"held_back": held_back},
            stage_identity(Stage.VALIDATED, settings, raw.manifest.identity),
        )


def parsing_rules(settings: Settings) -> ParsingRules:
    """The settings that decide what a row states; they are part of the keys of the shards."""
    return ParsingRules(
        columns=settings.columns,
        labels=settings.labels,
        max_pairs_per_prompt=settings.max_pairs_per_prompt,
        two_line_files=settings.two_line_files,
    )


def _task(raw: Snapshot, shard: Shard, held_back: str, rules: ParsingRules) -> Task:
    data = raw.data_path(shard)
    key = fingerprint(Stage.VALIDATED, VERSION, msgspec.to_builtins(rules), shard.key, held_back)
    rejected = next((raw.directory / file.path for file in shard.files if file.folder == REJECTS), None)
    arguments = ValidationTask(path=data, rejected=rejected, held_back=held_back, rules=rules)
    return Task(name=shard.name, source=shard.source, key=key, num_bytes=shard.num_bytes, arguments=arguments)


def _first_looks(
    turn: Publication, sound: list[Task], held: list[Task], settings: Settings, say: Callable[[str], object]
) -> list[Shard]:
    """Each shard in whichever version is known, which count alike; shards known in neither are computed."""
    known = {task.key: turn.find(task.key) or turn.find(worse.key) for task, worse in zip(sound, held, strict=True)}
    missing = [task for task in sound if known[task.key] is None]
    if missing:
        computed = compute_shards(turn, missing, validate_shard, validation_laws, settings, say)
        known |= {shard.key: shard for shard in computed}
    return [shard for task in sound if (shard := known[task.key]) is not None]


def _held_back_files(raw: Snapshot, validated: list[Shard], limit: float) -> dict[str, dict[str, int]]:
    """The files with too much damage or an ambiguous label: their malformed and their non-blank lines, by source."""
    num_lines: Counter[str] = Counter()
    num_malformed: Counter[str] = Counter()
    num_ambiguous: Counter[str] = Counter()
    for shard, seen in zip(raw.manifest.shards, validated, strict=True):
        num_lines[shard.source] += shard.stats["num_lines"] - shard.stats["num_blank"]
        num_malformed[shard.source] += shard.stats["num_malformed"] + seen.stats["num_malformed"]
        num_ambiguous[shard.source] += seen.stats["num_ambiguous_labels"]
    return {
        source: {"num_malformed": num_malformed[source], "num_lines": total}
        for source, total in sorted(num_lines.items())
        if num_malformed[source] > limit * total or num_ambiguous[source]
    }
