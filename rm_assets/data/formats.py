"""The formats of preference files: one typed record each, found row by row, all turned into one `Preference`.

A format is a msgspec record, whose type is its documentation, and a function from that record to the preferences it
states. To add one, write both and name them in `FORMATS`.
"""

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Literal

import msgspec
from msgspec import Struct

from rm_assets.data.records import Reason


class PreferenceError(ValueError):
    """A row that states no usable preference. The detail never holds the row's own text."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Format(StrEnum):
    """The formats a row can have."""

    PLAIN = "plain"
    MESSAGES = "messages"
    CONVERSATIONS = "conversations"
    TRANSCRIPT = "transcript"


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of a conversation; `tool_calls` is canonical JSON text. Keys that are None are absent."""

    role: str
    content: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: str | None = None
    tool_call_id: str | None = None


class Preference(Struct, frozen=True, kw_only=True):
    """One comparison in canonical form: two continuations of one prompt; `tools` is canonical JSON text or empty."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: str = ""
    margin: float = 0.0
    subset: str = ""
    format: Format


# --- the records, as they stand in files ---------------------------------------------------------------------


class MessageRecord(Struct, kw_only=True):
    """A message in OpenAI's form; other keys are not read."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None


class PlainRecord(Struct, kw_only=True):
    """`{"prompt": "...", "chosen": "...", "rejected": "..."}`"""

    prompt: str
    chosen: str
    rejected: str
    margin: float | None = None
    subset: str | None = None


class MessagesRecord(Struct, kw_only=True):
    """`prompt`, `chosen` and `rejected` as lists of messages; a text stands for one message of its side.

    Where the replies are whole conversations that begin with the prompt, the prompt is checked against them.
    """

    prompt: list[MessageRecord] | str
    chosen: list[MessageRecord] | str
    rejected: list[MessageRecord] | str
    tools: list[Any] | str | None = None
    margin: float | None = None
    subset: str | None = None


class ConversationsRecord(Struct, kw_only=True):
    """`chosen` and `rejected` as lists of messages that share their beginning, which is the prompt."""

    chosen: list[MessageRecord]
    rejected: list[MessageRecord]
    tools: list[Any] | str | None = None
    margin: float | None = None
    subset: str | None = None


class TranscriptRecord(Struct, kw_only=True):
    r"""`\n\nHuman: ...\n\nAssistant: ...` texts; with `prompt`, the replies go on where it stops, or repeat it."""

    chosen: str
    rejected: str
    prompt: str = ""
    margin: float | None = None
    subset: str | None = None


# --- from a record to preferences ----------------------------------------------------------------------------


def _from_plain(record: PlainRecord) -> list[Preference]:
    return [
        _preference(
            record,
            Format.PLAIN,
            (Message(role="user", content=record.prompt),),
            (Message(role="assistant", content=record.chosen),),
            (Message(role="assistant", content=record.rejected),),
        )
    ]


def _from_messages(record: MessagesRecord) -> list[Preference]:
    prompt = _messages(record.prompt, "user")
    chosen, rejected = (_messages(side, "assistant") for side in (record.chosen, record.rejected))
    if chosen and rejected and chosen[0].role != "assistant" and rejected[0].role != "assistant":
        shared, chosen, rejected = _split_shared(chosen, rejected)
        if shared != prompt and not (isinstance(record.prompt, str) and _ends_with(shared, record.prompt)):
            raise PreferenceError(Reason.UNSHARED_PROMPT, "the replies repeat another prompt than `prompt`")
        prompt = shared
    return [_preference(record, Format.MESSAGES, prompt, chosen, rejected)]


def _ends_with(messages: tuple[Message, ...], content: str) -> bool:
    return bool(messages) and messages[-1].content == content


def _from_conversations(record: ConversationsRecord) -> list[Preference]:
    chosen, rejected = (_messages(side, "assistant") for side in (record.chosen, record.rejected))
    return [_preference(record, Format.CONVERSATIONS, *_split_shared(chosen, rejected))]


def _from_transcript(record: TranscriptRecord) -> list[Preference]:
    sides = (record.chosen, record.rejected)
    repeated = all(side.startswith(record.prompt) for side in sides)
    chosen, rejected = (parse_transcript(side if repeated else record.prompt + side) for side in sides)
    return [_preference(record, Format.TRANSCRIPT, *_split_shared(chosen, rejected))]


def _preference(
    record: Any,
    format_name: Format,
    prompt: tuple[Message, ...],
    chosen: tuple[Message, ...],
    rejected: tuple[Message, ...],
) -> Preference:
    return Preference(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        tools=_tools(getattr(record, "tools", None)),
        margin=record.margin or 0.0,
        subset=record.subset or "",
        format=format_name,
    )


def _messages(records: list[MessageRecord] | str, role_of_text: str) -> tuple[Message, ...]:
    if isinstance(records, str):
        return (Message(role=role_of_text, content=records),)
    return tuple(
        Message(
            role=record.role,
            content=record.content,
            name=record.name,
            reasoning_content=record.reasoning_content,
            tool_calls=_canonical_json(record.tool_calls) if record.tool_calls else None,
            tool_call_id=record.tool_call_id,
        )
        for record in records
    )


def _tools(tools: list[Any] | str | None) -> str:
    if not isinstance(tools, str):
        return _canonical_json(tools) if tools else ""
    try:
        parsed = msgspec.json.decode(tools, type=list[Any]) if tools.strip() else []
    except msgspec.MsgspecError:
        raise PreferenceError(Reason.WRONG_TYPE, "`tools` is a text that is not a JSON list") from None
    return _canonical_json(parsed) if parsed else ""


def _canonical_json(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def _split_shared(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Two conversations cut where they part: the shared beginning and the two rests.

    For [u1, a1, u2, a2] and [u1, a1, u2, a3] it is [u1, a1, u2], [a2] and [a3].
    """
    if chosen == rejected:
        raise PreferenceError(Reason.IDENTICAL_REPLIES, "both conversations are equal")
    num_shared = next(
        (i for i, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other),
        min(len(chosen), len(rejected)),
    )
    if num_shared == min(len(chosen), len(rejected)):
        shorter = "chosen" if len(chosen) == num_shared else "rejected"
        raise PreferenceError(Reason.EMPTY_REPLY, f"the {shorter} conversation is the beginning of the other")
    if chosen[num_shared].role != "assistant" or rejected[num_shared].role != "assistant":
        raise PreferenceError(
            Reason.UNSHARED_PROMPT, f"the conversations part at message {num_shared + 1}, which is no reply"
        )
    return chosen[:num_shared], chosen[num_shared:], rejected[num_shared:]


# A marker stands at the start of the text or after an empty line; "What is a Human: label?" holds none.
_MARKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_transcript(text: str) -> tuple[Message, ...]:
    r"""The messages of a `\n\nHuman: ...\n\nAssistant: ...` text; one space after a marker belongs to the marker."""
    markers = list(_MARKER.finditer(text))
    if not markers or markers[0].start() != 0:
        raise PreferenceError(Reason.UNKNOWN_FORMAT, "text before the first `Human:` or `Assistant:`")
    ends = [marker.start() for marker in markers[1:]] + [len(text)]
    return tuple(
        Message(role=_ROLES[marker[1]], content=text[marker.end() : end].removeprefix(" "))
        for marker, end in zip(markers, ends, strict=True)
    )


# --- which format a row has ----------------------------------------------------------------------------------

FORMATS: dict[Format, tuple[type[Struct], Callable[[Any], list[Preference]]]] = {
    Format.PLAIN: (PlainRecord, _from_plain),
    Format.MESSAGES: (MessagesRecord, _from_messages),
    Format.CONVERSATIONS: (ConversationsRecord, _from_conversations),
    Format.TRANSCRIPT: (TranscriptRecord, _from_transcript),
}


def row_format(row: dict[str, Any]) -> Format:
    """The format of a row, by the fields it has and whether they are texts or lists."""
    for name in ("chosen", "rejected"):
        if name not in row:
            known = "chosen" in row or "rejected" in row
            reason = Reason.MISSING_FIELD if known else Reason.UNKNOWN_FORMAT
            raise PreferenceError(reason, f"no field `{name}`")
    prompt, chosen = row.get("prompt"), row["chosen"]
    if isinstance(chosen, list) and prompt is None:
        return Format.CONVERSATIONS
    if isinstance(chosen, list) or isinstance(prompt, list):
        return Format.MESSAGES
    if isinstance(chosen, str) and _is_transcript(prompt if isinstance(prompt, str) else chosen):
        return Format.TRANSCRIPT
    if prompt is None:
        raise PreferenceError(Reason.MISSING_FIELD, "no field `prompt`, and `chosen` holds no conversation")
    return Format.PLAIN


def _is_transcript(text: str) -> bool:
    return bool(_MARKER.match(text))


def parse_row(text: str) -> list[Preference]:
    """The preferences that one line of JSON states; raises PreferenceError where it states none."""
    try:
        row = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise PreferenceError(Reason.NOT_JSON, "not one JSON value") from None
    if not isinstance(row, dict):
        raise PreferenceError(Reason.NOT_AN_OBJECT, "a JSON value, but no object")
    record_type, preferences = FORMATS[row_format(row)]
    try:
        record = msgspec.convert(row, record_type)
    except msgspec.ValidationError as error:
        raise _wrong_field(error) from None
    return preferences(record)


def _wrong_field(error: msgspec.ValidationError) -> PreferenceError:
    """msgspec's message without any text of the row: it names types and our own fields, but quotes enum values."""
    problem, _, place = str(error).partition(" - at ")
    if problem.startswith("Object missing required field"):
        return PreferenceError(Reason.MISSING_FIELD, f"{problem}{' at ' + place if place else ''}")
    expected = problem if problem.startswith("Expected") else "a value that is not allowed"
    return PreferenceError(Reason.WRONG_TYPE, f"{expected}{' at ' + place if place else ''}")
