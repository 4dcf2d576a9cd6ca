"""The short way for most lines: `prompt`, `chosen` and `rejected` as texts or lists of messages, and nothing else.

Such a line is parsed straight into its type, and known to be sound by its roles and texts; whatever is not sound for
certain is left to `rm_assets.data.formats`, which reads every format and says what is wrong.
"""

from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from rm_assets.data.messages import is_transcript
from rm_assets.data.preferences import Format
from rm_assets.data.soundness import are_in_order


class _Message(Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "user", "assistant"]
    content: str


class _Row(Struct, forbid_unknown_fields=True, gc=False):
    prompt: list[_Message] | str
    chosen: list[_Message] | str
    rejected: list[_Message] | str


_decode = msgspec.json.Decoder(_Row).decode

Conversation = tuple[tuple[str, ...], tuple[str, ...]]
"""The roles and the contents of messages."""


class PlainPair(NamedTuple):
    """A sound preference of messages with a role and a content alone."""

    prompt: Conversation
    chosen: Conversation
    rejected: Conversation
    format: Format


def plain_pair(line: bytes) -> PlainPair | None:
    """The sound preference that such a line states, as `rm_assets.data.formats` reads it; None for any other line."""
    try:
        row = _decode(line)
    except (msgspec.MsgspecError, RecursionError):
        return None
    prompt, chosen, rejected = row.prompt, row.chosen, row.rejected
    if isinstance(prompt, list) and isinstance(chosen, list) and isinstance(rejected, list):
        pair = PlainPair(_conversation(prompt), _conversation(chosen), _conversation(rejected), Format.MESSAGES)
    elif isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        if is_transcript(prompt):
            return None
        pair = PlainPair((("user",), (prompt,)), (_REPLY, (chosen,)), (_REPLY, (rejected,)), Format.PLAIN)
    else:
        return None
    return pair if _is_sound(pair) and _has_each_field_once(line, pair) else None


def _conversation(messages: list[_Message]) -> Conversation:
    return tuple([message.role for message in messages]), tuple([message.content for message in messages])


_REPLY = ("assistant",)


def _is_sound(pair: PlainPair) -> bool:
    (roles, contents), chosen, rejected, _ = pair
    contents += chosen[1] + rejected[1]
    return (
        are_in_order(roles, chosen[0])
        and are_in_order(roles, rejected[0])
        and chosen != rejected
        and all(contents)
        and not any(map(str.isspace, contents))
    )


def _has_each_field_once(line: bytes, pair: PlainPair) -> bool:
    """See `rm_assets.data.json_rows.json_object`: every colon outside the texts belongs to one of the fields."""
    contents = pair.prompt[1] + pair.chosen[1] + pair.rejected[1]
    num_fields = 3 + (2 * len(contents) if pair.format is Format.MESSAGES else 0)
    return line.count(b":") == num_fields + "".join(contents).count(":") and b"\\u003" not in line
