"""Renders conversations as transformers does, but without running Jinja for each of them.

For a shape of conversation (its roles, with or without a generation prompt) the template is run once on symbols
(`template_tracing`). That gives pieces: the literals and contents that it writes, and guards on the contents under
which it writes them. Conversations of that shape whose contents pass the guards are put together from the pieces. All
others go to transformers, as do shapes that cannot be traced and messages with more than a role and a content.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rm_assets.data.chat.template_tracing import (
    Applied,
    Content,
    Expression,
    Guard,
    Joined,
    Part,
    answer,
    apply,
    on_symbols,
    trace,
)
from rm_assets.data.chat.tokenizer import ChatTokenizer, MessageDict, TemplateError, chat_template_utils, reference_text
from rm_assets.settings import SettingsError

Roles = tuple[str, ...]

_LEARN_AFTER = 4
"""How many conversations of a shape are seen before its pieces are learnt: rendering a few is faster than learning."""
_MAX_ATTEMPTS = 8
"""Attempts to learn pieces for one shape. Contents for which no pieces are learnt go to transformers."""
_MAX_SHAPES = 10_000
"""Shapes in the cache; when it is full, it is cleared."""
_MAX_MESSAGES = 500
"""Longest shape that is cached: longer ones take much memory and rarely occur twice."""


# --- expressions, for many conversations at once ---------------------------------------------------------------

# With an argument, Arrow does exactly what Python does; without one, they differ in what counts as white space.
_METHODS = {"strip": pc.utf8_trim, "lstrip": pc.utf8_ltrim, "rstrip": pc.utf8_rtrim}
_QUESTIONS = {"__contains__": pc.match_substring, "startswith": pc.starts_with, "endswith": pc.ends_with}


class Columns:
    """The contents of conversations of one shape: array n holds the contents of message n, a row per conversation.

    `prompt` has the columns of the first messages, which both sides of a pair share: what depends on it alone is
    computed once for both.
    """

    def __init__(self, arrays: Sequence[pa.StringArray], prompt: "Columns | None" = None) -> None:
        self.arrays: list[pa.StringArray] = [*(prompt.arrays if prompt else ()), *arrays]
        self.num_rows = len(self.arrays[0])
        self._prompt = prompt
        self._texts: dict[Expression, pa.StringArray] = {}
        self._answers: dict[tuple[Any, ...], NDArray[np.bool_]] = {}

    def take(self, rows: NDArray[np.int64]) -> "Columns":
        """The columns of these rows alone."""
        return Columns([array.take(pa.array(rows)) for array in self.arrays])

    def row(self, number: int) -> tuple[str, ...]:
        """The contents of one conversation."""
        return tuple(array[number].as_py() for array in self.arrays)

    def _cache_for(self, expression: Expression) -> "Columns":
        """The columns that cache the results of an expression: the prompt's, if it depends on the prompt alone."""
        if self._prompt is not None and _last_content(expression) < len(self._prompt.arrays):
            return self._prompt
        return self

    def text(self, expression: Expression) -> pa.StringArray:
        """An expression's text in every row."""
        if isinstance(expression, Content):
            return self.arrays[expression.index]
        found = self._cache_for(expression)._texts
        if expression not in found:
            found[expression] = (
                self.join(expression.parts) if isinstance(expression, Joined) else self._apply(expression)
            )
        return found[expression]

    def _apply(self, expression: Applied) -> pa.StringArray:
        texts, arguments = self.text(expression.of), expression.arguments
        if expression.method in _METHODS and expression.item is None and _is_one_text(arguments):
            return _METHODS[expression.method](texts, characters=arguments[0])
        return pa.array([apply(expression, text) for text in texts.to_pylist()], pa.string())

    def join(self, parts: Sequence[Part]) -> pa.StringArray:
        """Literals and expressions in sequence, in every row."""
        if all(isinstance(part, str) for part in parts):
            return pa.repeat("".join(map(str, parts)), self.num_rows)
        columns = [pa.scalar(part, pa.string()) if isinstance(part, str) else self.text(part) for part in parts]
        return pc.binary_join_element_wise(*columns, "")

    def passes(self, guards: Sequence[Guard]) -> NDArray[np.bool_]:
        """Which rows satisfy every guard."""
        passed = np.ones(self.num_rows, np.bool_)
        for guard in guards:
            passed &= self._answer(guard) == guard.answer
        return passed

    def _answer(self, guard: Guard) -> NDArray[np.bool_]:
        found = self._cache_for(guard.of)._answers
        question = (guard.of, guard.question, guard.arguments)
        if question not in found:
            found[question] = self._compute_answer(guard)
        return found[question]

    def _compute_answer(self, guard: Guard) -> NDArray[np.bool_]:
        texts = self.text(guard.of)
        if guard.question == "bool":
            return np.asarray(pc.binary_length(texts).to_numpy() > 0)
        if guard.question in _QUESTIONS and _is_one_text(guard.arguments):
            if guard.question == "__contains__" and not _occurs(texts, guard.arguments[0]):
                return np.zeros(self.num_rows, np.bool_)
            answers = _QUESTIONS[guard.question](texts, pattern=guard.arguments[0])
            return np.asarray(answers.to_numpy(zero_copy_only=False))
        return np.array([answer(text, guard.question, guard.arguments) for text in texts.to_pylist()], np.bool_)


def _is_one_text(arguments: tuple[Any, ...]) -> bool:
    return len(arguments) == 1 and isinstance(arguments[0], str)


def _occurs(texts: pa.StringArray, part: str) -> bool:
    """Whether a part occurs anywhere in the column's bytes: a single search, many times faster than one per row."""
    content = texts.buffers()[2]
    return content is not None and part.encode() in content.to_pybytes()


def _last_content(expression: Part) -> int:
    """The number of the last message that an expression depends on; -1 if it depends on none."""
    match expression:
        case Content(index):
            return index
        case Applied(of):
            return _last_content(of)
        case Joined(parts):
            return max(map(_last_content, parts), default=-1)
    return -1


# --- the renderer ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The parts that a template writes for conversations of one shape whose contents pass the guards."""

    guards: tuple[Guard, ...]
    parts: tuple[Part, ...]
    num_control: int  # control tokens that the template itself writes

    @functools.cached_property
    def num_verbatim(self) -> Counter[int]:
        """How often each message's content is written as it is."""
        return Counter(part.index for part in self.parts if isinstance(part, Content))

    def after(self, opening: "Pieces") -> tuple[Part, ...] | None:
        """The parts that follow those of `opening`; None if these pieces do not begin with them.

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


class TemplateRenderer:
    """A chat template's fast path; `reason` says why it is off, or is empty."""

    def __init__(self, chat: ChatTokenizer) -> None:
        self.chat = chat
        self.reason = ""
        self._shapes: dict[tuple[Roles, bool], _Shape] = {}
        self._variables: dict[str, Any] = {"tools": None, "documents": None, **chat.reference.special_tokens_map}
        try:
            compile_template = chat_template_utils()._compile_jinja_template
            assert chat.bounded  # a template that cannot be compiled within bounds is not compiled without them
            self._on_symbols = on_symbols(compile_template(chat.template), chat.template)
        except Exception as error:  # the function is private to transformers, which may move it
            self.turn_off(f"the template cannot be run on symbols: {type(error).__name__}")

    def turn_off(self, reason: str) -> None:
        """Let transformers render everything from now on, in this process."""
        self.reason = reason

    def pieces_for(
        self, roles: Roles, columns: Columns, add_generation_prompt: bool = False
    ) -> list[tuple[Pieces, NDArray[np.int64]]]:
        """The pieces for conversations of one shape, each with its rows; all other rows are left to transformers."""
        if len(self._shapes) >= _MAX_SHAPES:
            self._shapes.clear()
        key, is_cached = (roles, add_generation_prompt), len(roles) <= _MAX_MESSAGES
        shape = self._shapes.setdefault(key, _Shape()) if is_cached else _Shape()
        shape.num_seen += columns.num_rows
        if self.reason or shape.num_seen < _LEARN_AFTER:
            return []
        found = []
        left, number = np.arange(columns.num_rows), 0
        while len(left):
            if number == len(shape.pieces) and not self._learn(
                shape, roles, columns.row(left[0]), add_generation_prompt
            ):
                break
            pieces = shape.pieces[number]
            passed = columns.passes(pieces.guards)[left]
            if passed.any():
                found.append((pieces, left[passed]))
            left, number = left[~passed], number + 1
        return found

    def _learn(self, shape: _Shape, roles: Roles, contents: tuple[str, ...], prompt: bool) -> bool:
        """Add the pieces that render these contents; False if there are none, or after _MAX_ATTEMPTS."""
        if shape.num_attempts == _MAX_ATTEMPTS:
            return False
        shape.num_attempts += 1
        try:
            # first: this renders within bounds; tracing has none, and takes the same path through the template
            expected = reference_text(self.chat, plain_messages(roles, contents), "", add_generation_prompt=prompt)
            written, guards = trace(self._on_symbols, roles, contents, add_generation_prompt=prompt, **self._variables)
        except SettingsError:
            raise
        except Exception:  # not understood, or refused by the template: transformers renders or refuses it
            return False
        # with "x" for contents: no control token is made of two literals around one
        literals = "".join(part if isinstance(part, str) else "x" for part in written.parts)
        num_control = len(self.chat.control_pattern.findall(literals))
        pieces = Pieces(guards=guards, parts=_merged(written.parts), num_control=num_control)
        columns = Columns([pa.array([content], pa.string()) for content in contents])
        if not columns.passes(guards).all() or columns.join(pieces.parts).to_pylist() != [expected]:
            return False
        shape.pieces.append(pieces)
        return True

    def verify(self, messages: Sequence[MessageDict], text: str) -> None:
        """Turn the fast path off unless transformers renders this conversation as `text`, too."""
        try:
            is_exact = reference_text(self.chat, messages, "") == text
        except TemplateError:
            is_exact = False
        if not is_exact:
            roles = tuple(message["role"] for message in messages)
            self.turn_off(f"a sampled conversation of the roles {roles!r} differed from transformers' rendering")


def _merged(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts with neighbouring literals as one, so that equal renderings have equal parts."""
    merged: list[Part] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    return tuple(merged)


def plain_messages(roles: Sequence[str], contents: Sequence[str]) -> list[MessageDict]:
    """Messages with only a role and a content."""
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
