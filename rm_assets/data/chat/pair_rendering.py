"""One pair of conversations as text, by the model's chat template, or the reason why it is refused."""

import os.path
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rm_assets.data.chat.control_counts import num_written
from rm_assets.data.chat.lost_parts import lost_parts
from rm_assets.data.chat.tokenizer import ChatTokenizer, MessageDict, TemplateError, message_dict, render
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason

SIDES = ("chosen", "rejected")
_MAX_LISTED = 8
"""Lost parts that a reject names."""
_MAX_EARLIER = 64
"""Contents of a conversation that may occur before the one that they follow."""


class Flattened(NamedTuple):
    """One pair as text: `prompt + chosen` and `prompt + rejected` are the two rendered conversations.

    `control_tokens` is their number in each of the two, of those that the template itself writes. `is_rewritten` says
    that some content is not there verbatim: it was stripped, or lost its earlier reasoning.
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
    """Render a pair; raises PreferenceError where the template raises, leaves a part out or makes both sides equal.

    Without `counts_tokens` no control token is counted; contents may then hold some themselves.
    """
    prompt = sides["prompt"]
    for side in SIDES:
        if lost := lost_parts(chat, prompt + sides[side], tools):
            raise PreferenceError(Reason.MESSAGE_LOST, f"{_listed(lost)}, {side} side")
    try:
        opening = render(chat, prompt, tools, add_generation_prompt=True)
        one, other = (render(chat, prompt + sides[side], tools) for side in SIDES)
    except TemplateError as error:
        raise PreferenceError(Reason.TEMPLATE_ERROR, str(error)) from None
    for text, side in zip((one, other), SIDES, strict=True):
        if loses_thought(text, (prompt + sides[side])[-1].get("content") or ""):
            number = len(prompt) + len(sides[side])
            raise PreferenceError(Reason.MESSAGE_LOST, f"the reasoning of message {number}, {side} side")
    if one == other:
        raise PreferenceError(Reason.IDENTICAL_AFTER_TEMPLATE, "the chat template writes both sides alike")
    written = [(text, _contents(prompt + sides[side])) for text, side in zip((one, other), SIDES, strict=True)]
    counts = [num_written(chat.control_pattern, *text) if counts_tokens else 0 for text in written]
    is_rewritten = any(not all_occur(*text) for text in written)
    return Flattened(*split_texts(opening, one, other), (counts[0], counts[1]), is_rewritten)


def loses_thought(text: str, reply: str) -> bool:
    """Whether a rendering leaves out the reasoning inside a reply, as in `<think>Two and two.</think>4`."""
    thought, end, _ = reply.partition("</think>")
    thought = thought.rpartition("<think>")[2].strip()
    return bool(end and thought) and thought not in text


def _contents(messages: Sequence[MessageDict]) -> list[str]:
    return [message.get("content") or "" for message in messages]


def _listed(parts: Sequence[str]) -> str:
    """The names of parts; of very many, the first ones and how many more."""
    if len(parts) <= _MAX_LISTED:
        return " and ".join(parts)
    return f"{' and '.join(parts[:_MAX_LISTED])} and {len(parts) - _MAX_LISTED} more"


def all_occur(text: str, contents: Iterable[str]) -> bool:
    """Whether all contents occur verbatim in a rendering; each is searched for after the one before it, then before it.

    Templates write contents in order, except perhaps for a system message. If very many are out of order, they count
    as rewritten.
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
