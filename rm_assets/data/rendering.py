"""Pairs of conversations as text, by the model's chat template.

Most pairs are of messages with a role and a content alone: those are rendered many at a time, by shape, through the
fast path of `rm_assets.data.templates`. All others, and all that the fast path gives back, are rendered one by one.
"""

import os.path
from collections.abc import Sequence
from typing import Any, NamedTuple

from rm_assets.data.chat import ChatTokenizer, MessageDict, TemplateError, lost_parts, message_dict, render
from rm_assets.data.message_columns import PlainConversation
from rm_assets.data.preferences import PreferenceError
from rm_assets.data.records import Reason
from rm_assets.data.templates import Rendered, TemplateRenderer

SIDES = ("chosen", "rejected")


class Flattened(NamedTuple):
    """One pair as text: `prompt + chosen` and `prompt + rejected` are the two rendered conversations.

    `control_tokens` are how many of them the template writes in each of the two; `is_rewritten` says that it wrote
    some content other than verbatim: stripped, or without its earlier thinking.
    """

    prompt: str
    chosen: str
    rejected: str
    control_tokens: tuple[int, int]
    is_rewritten: bool


# --- one pair ------------------------------------------------------------------------------------------------


def pair_messages(row: dict[str, Any]) -> dict[str, list[MessageDict]]:
    """The messages of a validated row by side, as a template wants them."""
    return {side: [message_dict(message) for message in row[side]] for side in ("prompt", *SIDES)}


def flatten_pair(chat: ChatTokenizer, sides: dict[str, list[MessageDict]], tools: str) -> Flattened:
    """Render a pair; raises PreferenceError where the template raises, leaves a part out or makes both sides equal."""
    prompt = sides["prompt"]
    for side in SIDES:
        if lost := lost_parts(chat, prompt + sides[side], tools):
            raise PreferenceError(Reason.MESSAGE_LOST, f"{' and '.join(lost)}, {side} side")
    try:
        opening = render(chat, prompt, tools, add_generation_prompt=True)
        one, other = (render(chat, prompt + sides[side], tools) for side in SIDES)
    except TemplateError as error:
        raise PreferenceError(Reason.TEMPLATE_ERROR, str(error)) from None
    if one == other:
        raise PreferenceError(Reason.IDENTICAL_AFTER_TEMPLATE, "the chat template writes both sides alike")
    contents = [[m.get("content") or "" for m in prompt + sides[side]] for side in SIDES]
    counts = tuple(_num_written(chat, text, parts) for text, parts in zip((one, other), contents, strict=True))
    rewritten = any(part not in text for parts, text in zip(contents, (one, other), strict=True) for part in parts)
    return _flattened(opening, one, other, counts, rewritten)  # type: ignore[arg-type]


def _flattened(opening: str, one: str, other: str, counts: tuple[int, int], is_rewritten: bool) -> Flattened:
    if one.startswith(opening) and other.startswith(opening):
        shared = len(opening)
    else:
        shared = len(os.path.commonprefix([opening, one, other]))  # noqa: RUF071 - characters are what is meant
    return Flattened(one[:shared], one[shared:], other[shared:], counts, is_rewritten)


def _num_written(chat: ChatTokenizer, text: str, contents: Sequence[str]) -> int:
    """How many control tokens of a rendering the template writes: those that no content has a part in."""
    spans, place = [], 0
    for content in contents:
        start = text.find(content, place) if content else -1
        if start >= 0:
            place = start + len(content)
            spans.append((start, place))
    found = [match.span() for match in chat.control_pattern.finditer(text)]
    return sum(not any(start < last and first < end for start, end in spans) for first, last in found)


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


# --- many pairs ----------------------------------------------------------------------------------------------

PlainPair = tuple[PlainConversation, PlainConversation, PlainConversation]
"""A prompt and its two replies."""


def flatten_plain(renderer: TemplateRenderer, pairs: Sequence[PlainPair]) -> list[Flattened | None]:
    """Render pairs by the fast path; None for those to be rendered, or refused, one by one."""
    openings = _Renderings(renderer, [prompt for prompt, _, _ in pairs], add_generation_prompt=True)
    ones, others = (
        _Renderings(renderer, [_joined(pair[0], pair[side]) for pair in pairs], add_generation_prompt=False)
        for side in (1, 2)
    )
    return [
        None
        if opening is None or one is None or other is None or one == other
        else _flattened(opening, one, other, counts, one_rewritten or other_rewritten)
        for opening, one, other, counts, one_rewritten, other_rewritten in zip(
            openings.texts,
            ones.texts,
            others.texts,
            zip(ones.counts, others.counts, strict=True),
            ones.rewritten,
            others.rewritten,
            strict=True,
        )
    ]


def _joined(prompt: PlainConversation, reply: PlainConversation) -> PlainConversation:
    return prompt[0] + reply[0], prompt[1] + reply[1]


class _Renderings:
    """Conversations as text, with the control tokens of each and whether it was rewritten; None as `render_many`."""

    def __init__(
        self, renderer: TemplateRenderer, conversations: list[PlainConversation], *, add_generation_prompt: bool
    ) -> None:
        self.texts: list[str | None] = [None] * len(conversations)
        self.counts = [0] * len(conversations)
        self.rewritten = [False] * len(conversations)
        rows_by_roles: dict[tuple[str, ...], list[int]] = {}
        for row, (roles, _) in enumerate(conversations):
            rows_by_roles.setdefault(roles, []).append(row)
        for roles, rows in rows_by_roles.items():
            contents = [conversations[row][1] for row in rows]
            if not add_generation_prompt and renderer.lost_parts(roles, contents[0]):
                continue
            texts = renderer.render_many(roles, contents, add_generation_prompt)
            for row, text in zip(rows, texts, strict=True):
                self.texts[row] = text
            if not add_generation_prompt:
                self._look_at(renderer, roles, rows, contents)

    def _look_at(
        self, renderer: TemplateRenderer, roles: tuple[str, ...], rows: list[int], contents: list[tuple[str, ...]]
    ) -> None:
        num_control = renderer.num_control(roles)
        treated = renderer.treated(roles)
        for row, parts in zip(rows, contents, strict=True):
            text = self.texts[row]
            if text is not None:
                self.counts[row] = num_control if num_control is not None else _num_written(renderer.chat, text, parts)
                for number in treated:
                    self.rewritten[row] |= parts[number] not in text


def verify_plain(renderer: TemplateRenderer, pairs: Sequence[PlainPair], flattened: Sequence[Flattened | None]) -> str:
    """Render pairs again by transformers: the first difference in words, or empty; see `TemplateRenderer.verify`."""
    sample = []
    for (prompt, *replies), flat in zip(pairs, flattened, strict=True):
        for reply, text in zip(replies, (flat.chosen, flat.rejected) if flat else (), strict=False):
            roles, contents = _joined(prompt, reply)
            sample.append(Rendered(roles=roles, contents=contents, text=flat.prompt + text))  # type: ignore[union-attr]
    return renderer.verify(sample)
