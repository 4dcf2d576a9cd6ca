"""Expressions over the contents of messages, and guards on them, computed for many conversations at once.

Tracing a chat template with symbolic contents (`template_tracing`) gives one expression for its output, and a guard for
each condition that it tests. `Columns` evaluates both for all conversations of one shape, column by column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# --- expressions over contents ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """The content of message number `index`."""

    index: int


@dataclass(frozen=True)
class Applied:
    """A string's method called on an expression; `item` picks one of the parts of a split."""

    of: "Expression"
    method: str
    arguments: tuple[Any, ...]
    item: int | None = None


@dataclass(frozen=True)
class Joined:
    """Literals and expressions, one after the other."""

    parts: tuple["str | Expression", ...]


Expression = Content | Applied | Joined


@dataclass(frozen=True)
class Guard:
    """A question about an expression, and the answer for which a rendering is valid; `bool` asks if it is not empty."""

    of: Expression
    question: str
    arguments: tuple[Any, ...]
    answer: bool


def answer(text: str, question: str, arguments: tuple[Any, ...]) -> bool:
    """A text's answer to a question."""
    return bool(text) if question == "bool" else bool(getattr(str, question)(text, *arguments))


def apply(expression: Applied, text: str) -> str:
    """The result of an expression's method on a text."""
    result = getattr(str, expression.method)(text, *expression.arguments)
    return str(result if expression.item is None else result[expression.item])


# --- many conversations --------------------------------------------------------------------------------------

# With an argument, Arrow does exactly what Python does; without one, they differ in what counts as white space.
_METHODS = {"strip": pc.utf8_trim, "lstrip": pc.utf8_ltrim, "rstrip": pc.utf8_rtrim}
_QUESTIONS = {"__contains__": pc.match_substring, "startswith": pc.starts_with, "endswith": pc.ends_with}

Part = str | Expression


class Columns:
    """The contents of conversations of one shape: array n holds the content of message n, in every row.

    `prompt` holds the columns of the first messages, shared by both sides of a pair: results that
    depend on it alone are computed once.
    """

    def __init__(self, arrays: Sequence[pa.StringArray], prompt: "Columns | None" = None) -> None:
        self.arrays: list[pa.StringArray] = [*(prompt.arrays if prompt else ()), *arrays]
        self.num_rows = len(self.arrays[0])
        self._prompt = prompt
        self._texts: dict[Expression, pa.StringArray] = {}
        self._answers: dict[tuple[Any, ...], NDArray[np.bool_]] = {}

    def take(self, rows: NDArray[np.int64]) -> "Columns":
        """Some of the rows."""
        return Columns([array.take(pa.array(rows)) for array in self.arrays])

    def row(self, number: int) -> tuple[str, ...]:
        """The contents of one conversation."""
        return tuple(array[number].as_py() for array in self.arrays)

    def _home(self, expression: Expression) -> "Columns":
        """The columns that cache an expression's results: the prompt's, if it depends on the prompt alone."""
        if self._prompt is not None and _last_content(expression) < len(self._prompt.arrays):
            return self._prompt
        return self

    def text(self, expression: Expression) -> pa.StringArray:
        """An expression's text in every row."""
        if isinstance(expression, Content):
            return self.arrays[expression.index]
        found = self._home(expression)._texts
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
        """Literals and expressions, one after the other, in every row."""
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
        found = self._home(guard.of)._answers
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
    return content is not None and memoryview(content).tobytes().find(part.encode()) >= 0


def _last_content(expression: Part) -> int:
    """The highest number of a message that an expression depends on; -1 if there is none."""
    match expression:
        case Content(index):
            return index
        case Applied(of):
            return _last_content(of)
        case Joined(parts):
            return max(map(_last_content, parts), default=-1)
    return -1
