"""Conversations rendered without Jinja in the loop, equal to transformers' own rendering.

For a shape of conversation (its roles, with or without a generation prompt) the template is run once on symbols
(`template_tracing`): what it writes is a row of literals and contents, what it asks of the contents are
guards. Conversations of that shape whose contents pass the guards are then joined from these pieces. All others go to
transformers, as does every shape that is not understood, and any message that has more than a role and a content.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rm_assets.data.chat.template_columns import Columns, Part
from rm_assets.data.chat.template_symbols import Content, Guard
from rm_assets.data.chat.template_tracing import on_symbols, traced
from rm_assets.data.chat.tokenizer import (
    ChatTokenizer,
    MessageDict,
    TemplateError,
    chat_template_utils,
    lost_parts,
    reference_text,
    render,
)
from rm_assets.settings import SettingsError

Roles = tuple[str, ...]
Row = tuple[str, ...]
"""The contents of a conversation, message by message."""

_LEARN_AFTER = 4
"""Conversations of a shape before its pieces are learnt: rare shapes are rendered sooner than learnt."""
_MAX_ATTEMPTS = 8
"""Ways to render one shape, which differ in what contents answer; further contents go to transformers."""

_MAX_SHAPES = 10_000
"""Shapes that are remembered; one more, and all are learnt anew."""
_MAX_MESSAGES = 500
"""Messages of a shape that is remembered: each longer one may be another one, and large."""


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """One way that a template writes a shape: for contents that pass the guards it is these parts, one by one."""

    guards: tuple[Guard, ...]
    parts: tuple[Part, ...]
    num_control: int  # control tokens that the template itself writes

    @functools.cached_property
    def num_verbatim(self) -> Counter[int]:
        """How often each message's content is written as it is."""
        return Counter(part.index for part in self.parts if isinstance(part, Content))

    def after(self, opening: "Pieces") -> tuple[Part, ...] | None:
        """What these pieces write after all that others write; None where they do not begin with those.

        After ("<", content 0, ">") the parts ("<", content 0, "><", content 1) write ("<", content 1).
        """
        if not opening.parts:
            return self.parts
        *earlier, last = opening.parts
        number = len(earlier)
        if len(self.parts) <= number or self.parts[:number] != tuple(earlier):
            return None
        following, rest = self.parts[number], self.parts[number + 1 :]
        if following == last:
            return rest
        if isinstance(following, str) and isinstance(last, str) and following.startswith(last):
            return following[len(last) :], *rest
        return None


@dataclass
class _Shape:
    """What is known of conversations with these roles."""

    pieces: list[Pieces] = field(default_factory=list)
    num_seen: int = 0
    num_attempts: int = 0


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation and the text that the fast path made of it, for `TemplateRenderer.verify`."""

    roles: Roles
    contents: Row
    text: str
    add_generation_prompt: bool = False


class TemplateRenderer:
    """A chat template's two ways to a text. `num_fast` and `num_slow` count conversations by the way they took.

    `reason` says why the fast way is off, or is empty.
    """

    def __init__(self, chat: ChatTokenizer) -> None:
        self.chat = chat
        self.num_fast = self.num_slow = 0
        self.reason = ""
        self._shapes: dict[tuple[Roles, bool], _Shape] = {}
        self._lost: dict[Roles, tuple[str, ...]] = {}
        self._variables: dict[str, Any] = {"tools": None, "documents": None, **chat.reference.special_tokens_map}
        try:
            compile_template = chat_template_utils()._compile_jinja_template
            assert chat.bounded  # compiled within bounds before it is compiled without them
            self._on_symbols = on_symbols(compile_template(chat.template), chat.template)
        except Exception as error:  # transformers keeps this function to itself and may move it
            self.turn_off(f"the template cannot be run on symbols: {type(error).__name__}")

    def turn_off(self, reason: str) -> None:
        """Let transformers render from now on, in this process."""
        self.reason = reason

    def __call__(self, messages: Sequence[MessageDict], tools: str = "", add_generation_prompt: bool = False) -> str:
        """The rendering of any conversation; raises TemplateError where the template does."""
        if not tools and all(len(m) == 2 and type(m.get("content")) is str and "role" in m for m in messages):
            roles = tuple(message["role"] for message in messages)
            row = tuple(message["content"] for message in messages)
            if (text := self.render_many(roles, [row], add_generation_prompt)[0]) is not None:
                return text
        else:
            self.num_slow += 1
        return render(self.chat, messages, tools, add_generation_prompt=add_generation_prompt)

    def render_many(self, roles: Roles, rows: Sequence[Row], add_generation_prompt: bool = False) -> list[str | None]:
        """The renderings of conversations of one shape; None for those to be rendered by transformers instead."""
        texts: list[str | None] = [None] * len(rows)
        if rows and roles:
            columns = Columns([pa.array(contents, pa.string()) for contents in zip(*rows, strict=True)])
            for pieces, found in self.ways(roles, columns, add_generation_prompt):
                for row, text in zip(found, columns.take(found).joined(pieces.parts).to_pylist(), strict=True):
                    texts[row] = text
        num_slow = texts.count(None)
        self.num_slow += num_slow
        self.num_fast += len(rows) - num_slow
        return texts

    def ways(
        self, roles: Roles, columns: Columns, add_generation_prompt: bool = False
    ) -> list[tuple[Pieces, NDArray[np.int64]]]:
        """The pieces of conversations of one shape, each with the rows that it writes; all others are transformers'."""
        if len(self._shapes) >= _MAX_SHAPES:
            self._shapes.clear()
        shape = _Shape()
        if len(roles) <= _MAX_MESSAGES:
            shape = self._shapes.setdefault((roles, add_generation_prompt), shape)
        shape.num_seen += columns.num_rows
        if self.reason or shape.num_seen < _LEARN_AFTER:
            return []
        ways = []
        left, number = np.arange(columns.num_rows), 0
        while len(left):
            if number == len(shape.pieces) and not self._learn(
                shape, roles, columns.row(left[0]), add_generation_prompt
            ):
                break
            pieces = shape.pieces[number]
            passed = columns.passes(pieces.guards)[left]
            if passed.any():
                ways.append((pieces, left[passed]))
            left, number = left[~passed], number + 1
        return ways

    def _learn(self, shape: _Shape, roles: Roles, row: Row, prompt: bool) -> bool:
        if shape.num_attempts == _MAX_ATTEMPTS:
            return False
        shape.num_attempts += 1
        try:
            # first, as this sets bounds: what is traced goes the same way through the template
            expected = reference_text(self.chat, _messages(roles, row), "", add_generation_prompt=prompt)
            written, guards = traced(self._on_symbols, roles, row, add_generation_prompt=prompt, **self._variables)
        except SettingsError:
            raise
        except Exception:  # not understood, or refused: this conversation is transformers' to render or to refuse
            return False
        literals = "".join(part if isinstance(part, str) else "x" for part in written.parts)
        num_control = len(self.chat.control_pattern.findall(literals))
        pieces = Pieces(guards=guards, parts=_merged(written.parts), num_control=num_control)
        columns = Columns([pa.array([content], pa.string()) for content in row])
        if not columns.passes(guards).all() or columns.joined(pieces.parts).to_pylist() != [expected]:
            return False
        shape.pieces.append(pieces)
        return True

    def verify(self, sample: Iterable[Rendered]) -> str:
        """The first difference to transformers' rendering, in words without the text; empty if there is none.

        After a difference the fast way is off, and whatever it rendered for this shard is to be rendered again.
        """
        for number, one in enumerate(sample):
            if one.text != self._reference(one):
                difference = f"sampled conversation {number}, of the roles {one.roles!r}, is rendered otherwise"
                self.turn_off(f"the fast way through the chat template differed from transformers': {difference}")
                return self.reason
        return ""

    def _reference(self, one: Rendered) -> str | None:
        messages = _messages(one.roles, one.contents)
        try:
            return reference_text(self.chat, messages, "", add_generation_prompt=one.add_generation_prompt)
        except TemplateError:
            return None

    # --- what is the same for all conversations of a shape --------------------------------------------------

    def lost_parts(self, roles: Roles, row: Row) -> tuple[str, ...]:
        """What the template leaves out altogether of such a conversation, see `tokenizer.lost_parts`."""
        if not all(row) or len(roles) > _MAX_MESSAGES:
            return lost_parts(self.chat, _messages(roles, row), "")
        if roles not in self._lost:
            if len(self._lost) >= _MAX_SHAPES:
                self._lost.clear()
            self._lost[roles] = lost_parts(self.chat, _messages(roles, row), "")
        return self._lost[roles]


def _merged(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts with neighbouring literals as one, so that equal writings are equal."""
    merged: list[Part] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    return tuple(merged)


def _messages(roles: Roles, row: Row) -> list[MessageDict]:
    return [{"role": role, "content": content} for role, content in zip(roles, row, strict=True)]
