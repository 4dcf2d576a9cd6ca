"""Conversations rendered without Jinja in the loop, equal to transformers' own rendering.

For a shape of conversation (its roles, with or without a generation prompt) the template is run once on symbols
(`rm_assets.data.template_tracing`): what it writes is a row of literals and contents, what it asks of the contents are
guards. Conversations of that shape whose contents pass the guards are then joined from these pieces. All others go to
transformers, as does every shape that is not understood, and any message that has more than a role and a content.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rm_assets.data.chat import ChatTokenizer, MessageDict, lost_parts, render
from rm_assets.data.template_symbols import Content, Expression, Guard, column, failures
from rm_assets.data.template_tracing import on_symbols, traced

Roles = tuple[str, ...]
Row = tuple[str, ...]
"""The contents of a conversation, message by message."""

_LEARN_AFTER = 4
"""Conversations of a shape before its pieces are learnt: rare shapes are rendered sooner than learnt."""
_MAX_ATTEMPTS = 8
"""Ways to render one shape, which differ in what contents answer; further contents go to transformers."""

_MAX_SHAPES = 10_000
"""Shapes that are remembered; one more, and all are learnt anew."""


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """One way that a template writes a shape: for contents that pass the guards it is `form % slots`."""

    guards: tuple[Guard, ...]
    form: str
    slots: tuple[Expression, ...]
    num_control: int  # control tokens that the template itself writes

    def is_verbatim(self, num_messages: int) -> bool:
        """Whether every content is written once, in order and as it is."""
        return self.slots == tuple(map(Content, range(num_messages)))

    def texts(self, rows: Sequence[Row]) -> list[str | None]:
        """The renderings of rows; None for those that a guard refuses."""
        columns = list(zip(*rows, strict=True))
        slots: Iterable[Row] = rows
        if not self.is_verbatim(len(columns)):
            slots = (
                zip(*(column(slot, columns) for slot in self.slots), strict=True) if self.slots else [()] * len(rows)
            )
        texts: list[str | None] = list(map(self.form.__mod__, slots))
        for guard in self.guards:
            for row in failures(guard, columns):
                texts[row] = None
        return texts


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
            from transformers.utils.chat_template_utils import _compile_jinja_template

            self._on_symbols = on_symbols(_compile_jinja_template(chat.template), chat.template)
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
        if len(self._shapes) >= _MAX_SHAPES:
            self._shapes.clear()
        shape = self._shapes.setdefault((roles, add_generation_prompt), _Shape())
        shape.num_seen += len(rows)
        if rows and roles and not self.reason and shape.num_seen >= _LEARN_AFTER:
            texts = self._rendered(shape, roles, rows, add_generation_prompt)
        num_slow = texts.count(None)
        self.num_slow += num_slow
        self.num_fast += len(rows) - num_slow
        return texts

    def _rendered(self, shape: _Shape, roles: Roles, rows: Sequence[Row], prompt: bool) -> list[str | None]:
        texts: list[str | None] = shape.pieces[0].texts(rows) if shape.pieces else [None] * len(rows)
        number = min(1, len(shape.pieces))
        while None in texts:
            left = [row for row, text in enumerate(texts) if text is None]
            if number == len(shape.pieces) and not self._learn(shape, roles, rows[left[0]], prompt):
                break
            for row, text in zip(left, shape.pieces[number].texts([rows[row] for row in left]), strict=True):
                texts[row] = text
            number += 1
        return texts

    def _learn(self, shape: _Shape, roles: Roles, row: Row, prompt: bool) -> bool:
        if shape.num_attempts == _MAX_ATTEMPTS:
            return False
        shape.num_attempts += 1
        try:
            written, guards = traced(self._on_symbols, roles, row, add_generation_prompt=prompt, **self._variables)
            expected = render(self.chat, _messages(roles, row), "", add_generation_prompt=prompt)
        except Exception:  # not understood, or refused: this conversation is transformers' to render or to refuse
            return False
        form = "".join(part.replace("%", "%%") if isinstance(part, str) else "%s" for part in written.parts)
        slots = tuple(part for part in written.parts if not isinstance(part, str))
        num_control = len(self.chat.control_pattern.findall(form.replace("%s", "x")))
        pieces = Pieces(guards=guards, form=form, slots=slots, num_control=num_control)
        if pieces.texts([row]) != [expected]:
            return False
        shape.pieces.append(pieces)
        return True

    def verify(self, sample: Iterable[Rendered]) -> str:
        """The first difference to transformers' rendering, in words without the text; empty if there is none.

        After a difference the fast way is off, and whatever it rendered for this shard is to be rendered again.
        """
        for number, one in enumerate(sample):
            messages = _messages(one.roles, one.contents)
            expected = render(self.chat, messages, "", add_generation_prompt=one.add_generation_prompt)
            if one.text != expected:
                difference = f"sampled conversation {number}, of the roles {one.roles!r}, is rendered otherwise"
                self.turn_off(f"the fast way through the chat template differed from transformers': {difference}")
                return self.reason
        return ""

    # --- what is the same for all conversations of a shape --------------------------------------------------

    def lost_parts(self, roles: Roles, row: Row) -> tuple[str, ...]:
        """What the template leaves out altogether of such a conversation, see `rm_assets.data.chat.lost_parts`."""
        if not all(row):
            return lost_parts(self.chat, _messages(roles, row), "")
        if roles not in self._lost:
            self._lost[roles] = lost_parts(self.chat, _messages(roles, row), "")
        return self._lost[roles]

    def treated(self, roles: Roles, add_generation_prompt: bool = False) -> list[int]:
        """The messages of this shape whose contents some way known so far writes other than once and as they are."""
        pieces = self._shapes.get((roles, add_generation_prompt), _Shape()).pieces
        return [n for n in range(len(roles)) if any(one.slots.count(Content(n)) != 1 for one in pieces)]

    def num_control(self, roles: Roles, add_generation_prompt: bool = False) -> int | None:
        """How many control tokens the template writes for this shape; None where that is not known to be one number."""
        pieces = self._shapes.get((roles, add_generation_prompt), _Shape()).pieces
        numbers = {one.num_control for one in pieces}
        return numbers.pop() if len(numbers) == 1 else None


def _messages(roles: Roles, row: Row) -> list[MessageDict]:
    return [{"role": role, "content": content} for role, content in zip(roles, row, strict=True)]
