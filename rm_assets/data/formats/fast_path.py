"""The fast path for most lines: `chosen`, `rejected` and perhaps `prompt`, all texts or all messages, nothing else.

Such a line is parsed straight into its type, and its roles and texts show that it is valid. Every other line is left to
`rm_assets.data.formats.parsing`, which reads every format and reports what is wrong.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType

from rm_assets.data.formats.conversations.messages import are_single_messages, has_turns, split_sides
from rm_assets.data.formats.conversations.written_lists import opens_like_list
from rm_assets.data.formats.preferences import Format, Message, PreferenceError
from rm_assets.data.formats.validity import are_in_order


class _Message(Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "user", "assistant"]
    content: str


class _Row(Struct, forbid_unknown_fields=True, gc=False):
    chosen: list[_Message] | str
    rejected: list[_Message] | str
    prompt: list[_Message] | str | UnsetType = UNSET


_decode = msgspec.json.Decoder(_Row).decode

Conversation = tuple[tuple[str, ...], tuple[str, ...]]
"""The roles and the contents of messages."""


_USER, _ASSISTANT = ("user",), ("assistant",)


class SimplePair(NamedTuple):
    """A valid preference whose messages have only a role and a content."""

    prompt: Conversation
    chosen: Conversation
    rejected: Conversation
    format: Format


def simple_pair(line: bytes) -> SimplePair | None:
    """The valid preference that such a line states, as `formats.parsing` reads it; None for any other line."""
    try:
        row = _decode(line)
    except (msgspec.MsgspecError, RecursionError):
        return None
    pair = _pair(row)
    if pair is None:
        return None
    contents = pair.prompt[1] + pair.chosen[1] + pair.rejected[1]
    return pair if _is_valid(pair, contents) and _has_each_field_once(line, row, pair, contents) else None


def _pair(row: _Row) -> SimplePair | None:
    prompt, chosen, rejected = row.prompt, row.chosen, row.rejected
    if isinstance(chosen, list) and isinstance(rejected, list):
        if isinstance(prompt, list):
            return SimplePair(_conversation(prompt), _conversation(chosen), _conversation(rejected), Format.MESSAGES)
        if prompt is UNSET:
            shared = _num_shared(chosen, rejected)
            sides = _conversation(chosen[:shared]), _conversation(chosen[shared:]), _conversation(rejected[shared:])
            return SimplePair(*sides, Format.CONVERSATIONS)
        return None
    if isinstance(prompt, list) or isinstance(chosen, list) or isinstance(rejected, list):
        return None
    given = None if isinstance(prompt, UnsetType) else prompt
    if given is not None and are_single_messages(given, chosen, rejected):
        return SimplePair((_USER, (given,)), (_ASSISTANT, (chosen,)), (_ASSISTANT, (rejected,)), Format.PLAIN)
    if given is not None and any(map(opens_like_list, (given, chosen, rejected))):
        return None
    format_name = Format.TRANSCRIPT if has_turns(given, chosen) else Format.PLAIN
    try:
        one, two, three = split_sides(given, chosen, rejected)
    except PreferenceError:
        return None
    return SimplePair(_conversation(one), _conversation(two), _conversation(three), format_name)


def _conversation(messages: Sequence[_Message | Message]) -> Conversation:
    # of a file's message and of a text's, which has a content too
    if len(messages) == 1:  # most replies
        return (messages[0].role,), (messages[0].content,)  # type: ignore[return-value]
    return tuple([message.role for message in messages]), tuple([message.content for message in messages])  # type: ignore[misc]


def _num_shared(one: list[_Message], other: list[_Message]) -> int:
    """How many messages both conversations begin with."""
    for number, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return number
    return min(len(one), len(other))


def _is_valid(pair: SimplePair, contents: tuple[str, ...]) -> bool:
    roles, chosen, rejected = pair.prompt[0], pair.chosen, pair.rejected
    return (
        are_in_order(roles, chosen[0])
        and are_in_order(roles, rejected[0])
        and chosen != rejected
        and all(contents)
        and not any(map(str.isspace, contents))
    )


def _has_each_field_once(line: bytes, row: _Row, pair: SimplePair, contents: tuple[str, ...]) -> bool:
    """See `formats.json_lines.json_object`: every colon outside the texts belongs to one of the fields."""
    has_prompt = row.prompt is not UNSET
    if isinstance(row.chosen, list):
        # without a prompt field, the line has the messages that both sides begin with twice
        texts: Sequence[str] = contents if has_prompt else contents + pair.prompt[1]
        num_colons = 2 * len(texts)
    else:
        texts = [text for text in (row.prompt, row.chosen, row.rejected) if isinstance(text, str)]
        num_colons = 0
    num_colons += 2 + has_prompt + "".join(texts).count(":")
    has_escaped_colons = (
        b"\\" in line and b"\\u003" in line
    )  # searching for one byte is many times faster than for five
    return line.count(b":") == num_colons and not has_escaped_colons
