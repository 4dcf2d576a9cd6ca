"""One pair of conversations as text, by the model's chat template, or the reason why it is rejected."""

import os.path
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from rm_assets.data.chat.control_counts import num_written
from rm_assets.data.chat.tokenizer import ChatTokenizer, MessageDict, TemplateError, message_dict, render
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason

SIDES = ("chosen", "rejected")
_MAX_LISTED = 8
"""Lost parts that a reject names."""
_MAX_EARLIER = 64
"""Contents of a conversation that may be found before the content that precedes them."""
_MARK = re.compile(r"(?=(zq(?:\d+(?:c\d+)?|tool)qz))")
"""Any mark, also one that overlaps another."""
_MAX_SHAPE = 500
"""Conversations with at most this many messages have their shape cached."""
_MAX_SHAPES = 10_000


class Flattened(NamedTuple):
    """One pair as text: `prompt + chosen` and `prompt + rejected` are the two rendered conversations.

    `control_tokens` counts, for each of the two, the control tokens that the template itself writes. `is_rewritten`:
    some content does not appear verbatim, because it was stripped or lost its earlier reasoning.
    """

    prompt: str
    chosen: str
    rejected: str
    control_tokens: tuple[int, int]
    is_rewritten: bool


def pair_messages(row: dict[str, Any]) -> dict[str, list[MessageDict]]:
    """The messages of a validated row by side, as a template takes them."""
    return {side: [message_dict(message) for message in row[side]] for side in ("prompt", *SIDES)}


def flatten_pair(
    chat: ChatTokenizer, sides: dict[str, list[MessageDict]], tools: str, *, counts_tokens: bool = True
) -> Flattened:
    """Render a pair; raises PreferenceError if the template raises, leaves a part out or makes both sides equal.

    Without `counts_tokens`, control tokens are not counted, and contents may contain some.
    """
    wholes = {side: sides["prompt"] + sides[side] for side in SIDES}
    for side, whole in wholes.items():
        if lost := lost_parts(chat, whole, tools):
            raise PreferenceError(Reason.MESSAGE_LOST, f"{_listed(lost)}, {side} side")
    try:
        opening = render(chat, sides["prompt"], tools, add_generation_prompt=True)
        texts = {side: render(chat, whole, tools) for side, whole in wholes.items()}
    except TemplateError as error:
        raise PreferenceError(Reason.TEMPLATE_ERROR, str(error)) from None
    contents = {side: [message.get("content") or "" for message in whole] for side, whole in wholes.items()}
    for side in SIDES:
        if loses_reasoning(texts[side], contents[side][-1]):
            raise PreferenceError(Reason.MESSAGE_LOST, f"the reasoning of message {len(contents[side])}, {side} side")
    if texts["chosen"] == texts["rejected"]:
        raise PreferenceError(Reason.IDENTICAL_AFTER_TEMPLATE, "the chat template renders both sides identically")
    pattern = chat.control_pattern
    one, other = (num_written(pattern, texts[side], contents[side]) if counts_tokens else 0 for side in SIDES)
    is_rewritten = not all(all_occur(texts[side], contents[side]) for side in SIDES)
    return Flattened(*split_texts(opening, *texts.values()), (one, other), is_rewritten)


def loses_reasoning(text: str, reply: str) -> bool:
    """Whether a rendering leaves out the reasoning inside a reply, as in `<think>Two and two.</think>4`."""
    reasoning, end, _ = reply.partition("</think>")
    reasoning = reasoning.rpartition("<think>")[2].strip()
    return bool(end and reasoning) and reasoning not in text


def _listed(parts: Sequence[str]) -> str:
    """The names of the parts; if there are very many, the first ones and how many more."""
    if len(parts) <= _MAX_LISTED:
        return " and ".join(parts)
    return f"{' and '.join(parts[:_MAX_LISTED])} and {len(parts) - _MAX_LISTED} more"


def all_occur(text: str, contents: Iterable[str]) -> bool:
    """Whether all contents occur verbatim in a rendering.

    Each is searched for first after the previous one, then before it: templates write contents in order, except perhaps
    for a system message. If very many are out of order, they count as rewritten.
    """
    place = num_earlier = 0
    for content in contents:
        start = text.find(content, place)
        if start < 0:
            num_earlier += 1
            start = text.find(content, 0, place + len(content))
            if start < 0 or num_earlier > _MAX_EARLIER:
                return False
        place = start + len(content)
    return True


def split_texts(opening: str, one: str, other: str) -> tuple[str, str, str]:
    """The prompt and its two continuations: cut at the end of the opening, or earlier, where the texts differ."""
    if one.startswith(opening) and other.startswith(opening):
        shared = len(opening)
    else:
        shared = len(os.path.commonprefix([opening, one, other]))  # noqa: RUF071 - characters are what is meant
    return one[:shared], one[shared:], other[shared:]


def require_no_control_tokens(chat: ChatTokenizer, sides: dict[str, list[MessageDict]], tools: str) -> None:
    """Raise PreferenceError if text of the pair contains a control token, which could forge a turn or its end."""
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


# --- what the template leaves out ----------------------------------------------------------------------------


def lost_parts(chat: ChatTokenizer, messages: Sequence[MessageDict], tools: str) -> tuple[str, ...]:
    """What the template leaves out of such a conversation altogether: messages, tool calls, the tools or reasoning.

    A conversation of the same shape (roles, which fields, tools or none) is rendered with marks as its contents, once
    per shape; the parts whose marks are missing are left out. Only the last reasoning counts: templates cut earlier
    reasoning by design.
    """
    shape = (bool(tools), *map(_shape_of, messages))
    if shape not in chat.lost_by_shape:
        if len(messages) > _MAX_SHAPE or len(chat.lost_by_shape) >= _MAX_SHAPES:
            chat.lost_by_shape.clear()  # a long one is kept until the next: both sides of a pair mostly have one shape
        chat.lost_by_shape[shape] = _lost_of_shape(chat, messages, tools)
    return chat.lost_by_shape[shape]


def _shape_of(message: MessageDict) -> tuple[str, bool, int, bool]:
    num_calls = len(message.get("tool_calls") or ())
    return message["role"], bool(message.get("content")), num_calls, bool(message.get("reasoning_content"))


def _lost_of_shape(chat: ChatTokenizer, messages: Sequence[MessageDict], tools: str) -> tuple[str, ...]:
    marked, marks = [], {}
    for number, message in enumerate(messages, start=1):
        copy = dict(message)
        if message.get("content"):
            copy["content"] = marks[f"message {number}"] = f"zq{number}qz"
        if calls := message.get("tool_calls"):
            call_marks = [f"zq{number}c{n}qz" for n in range(len(calls))]
            copy["tool_calls"] = list(map(_marked_call, calls, call_marks))
            marks |= {f"tool call {n} of message {number}": mark for n, mark in enumerate(call_marks, start=1)}
        marked.append(copy)
    if tools:
        marks["the tools"] = "zqtoolqz"
        tools = msgspec.json.encode([_marked_tool("zqtoolqz")]).decode()
    try:
        rendered = render(chat, marked, tools)
    except TemplateError:
        return ()  # a template that inspects contents may reject the marks; the real contents are rendered next
    found = {match[1] for match in _MARK.finditer(rendered)}
    return (*(part for part, mark in marks.items() if mark not in found), *_lost_reasoning(chat, marked, tools))


def _lost_reasoning(chat: ChatTokenizer, messages: Sequence[MessageDict], tools: str) -> tuple[str, ...]:
    """The last reasoning after the user's last message, if the template leaves it out.

    It is rendered as the last message of all, because some templates drop it if an answer follows its tool calls.
    """
    numbers = [number for number, message in enumerate(messages) if message["role"] == "user"]
    start = numbers[-1] + 1 if numbers else 0
    last = next((n for n in reversed(range(start, len(messages))) if messages[n].get("reasoning_content")), None)
    if last is None:
        return ()
    marked = [*messages[:last], messages[last] | {"reasoning_content": "zqreasonqz"}]
    try:
        rendered = render(chat, marked, tools)
    except TemplateError:
        return ()
    return () if "zqreasonqz" in rendered else (f"the reasoning of message {last + 1}",)


def _marked_call(call: Any, mark: str) -> Any:
    """The tool call in the same form, OpenAI's or the bare one, but to a function named by the mark."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return call | {"function": call["function"] | {"name": mark}}
    return call | {"name": mark}


def _marked_tool(mark: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {}}
    return {"type": "function", "function": {"name": mark, "description": mark, "parameters": parameters}}
