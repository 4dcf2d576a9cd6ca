"""Symbols that stand for the contents of messages while a chat template runs.

A symbol is no string, so whatever it does not understand fails instead of losing track. What it does understand is
written down: methods that make a new text of it become part of an expression, and every question about it (`in`,
`startswith`, truth, ...) becomes a guard with the answer that the example at hand gives.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


class NotUnderstoodError(Exception):
    """The template asked something of a content that a symbol cannot answer."""


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
    """A question about an expression, and the answer for which a rendering holds; `bool` asks for its truth."""

    of: Expression
    question: str
    arguments: tuple[Any, ...]
    answer: bool


def ask(text: str, question: str, arguments: tuple[Any, ...]) -> bool:
    """What a text answers."""
    return bool(text) if question == "bool" else bool(getattr(str, question)(text, *arguments))


def applied(text: str, expression: Applied) -> str:
    """What an expression makes of the text that it is applied to."""
    made = getattr(str, expression.method)(text, *expression.arguments)
    return str(made if expression.item is None else made[expression.item])


# --- symbols -------------------------------------------------------------------------------------------------


class Symbol:
    """A text that is known by an expression; `_text` is what the expression makes of the example's contents."""

    __slots__ = ("_expression", "_guards", "_text")

    def __init__(self, expression: Expression, text: str, guards: dict[Guard, None]) -> None:
        self._expression, self._text, self._guards = expression, text, guards

    def asked(self, question: str, *arguments: Any) -> bool:
        """The example's answer, which becomes a guard."""
        _require_plain(arguments)
        answer = ask(self._text, question, arguments)
        self._guards[Guard(self._expression, question, arguments, answer)] = None
        return answer

    def made(self, method: str, arguments: tuple[Any, ...], item: int | None = None) -> "Symbol":
        """The text that a string's method makes of this one."""
        _require_plain(arguments)
        expression = Applied(self._expression, method, arguments, item)
        return Symbol(expression, applied(self._text, expression), self._guards)

    def __add__(self, other: Any) -> Any:
        return joined([self, other])

    def __radd__(self, other: Any) -> Any:
        return joined([other, self])

    def __contains__(self, part: Any) -> bool:
        return self.asked("__contains__", part)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Symbol):
            if self._expression == other._expression:
                return True
            raise NotUnderstoodError("a comparison of two contents")
        return isinstance(other, str) and self.asked("__eq__", other)

    def __bool__(self) -> bool:
        return self.asked("bool")

    def _not_understood(self, *_: Any) -> Any:
        raise NotUnderstoodError("a content where only a text will do")

    # A key of a dict would be asked without a trace, and a printed symbol would be a text that nobody knows.
    __hash__ = __iter__ = __reversed__ = __str__ = __repr__ = __format__ = _not_understood


class Length:
    """The length of a symbol. Whether it is 0 is understood, its number is not."""

    __slots__ = ("_symbol",)

    def __init__(self, symbol: Symbol) -> None:
        self._symbol = symbol

    def __bool__(self) -> bool:
        return bool(self._symbol)

    def __gt__(self, other: object) -> bool:
        return bool(self._symbol) if _is_zero(other) else self._not_understood()

    def __eq__(self, other: object) -> bool:
        return not self._symbol if _is_zero(other) else self._not_understood()

    def _not_understood(self, *_: Any) -> Any:
        raise NotUnderstoodError("the length of a content")

    __hash__ = __str__ = __repr__ = __format__ = _not_understood


def _is_zero(value: object) -> bool:
    return type(value) is int and value == 0


class Parts:
    """What `split` makes of a symbol: its first and last part are symbols, and so is the whole where nothing splits."""

    __slots__ = ("_arguments", "_symbol")

    def __init__(self, symbol: Symbol, *arguments: Any) -> None:
        if not arguments or not arguments[0]:  # without a separator there may be no part at all
            raise NotUnderstoodError("a content split at white space")
        self._symbol, self._arguments = symbol, arguments

    def item(self, index: Any) -> Symbol:
        """The first part (0) or the last (-1)."""
        if type(index) is not int or index not in (0, -1):
            raise NotUnderstoodError("a part of a split content other than the first and the last")
        return self._symbol.made("split", self._arguments, index)

    def __iter__(self) -> Iterator[Symbol]:
        if self._symbol.asked("__contains__", self._arguments[0]):
            raise NotUnderstoodError("a loop over a content that is split")
        return iter([self._symbol])

    def _not_understood(self, *_: Any) -> Any:
        raise NotUnderstoodError("a split content as a list")

    __eq__ = __hash__ = __reversed__ = __contains__ = __bool__ = _not_understood
    __str__ = __repr__ = __format__ = _not_understood


def _require_plain(arguments: Iterable[Any]) -> None:
    for argument in arguments:
        if isinstance(argument, tuple):
            _require_plain(argument)
        elif argument is not None and type(argument) not in (str, int):
            raise NotUnderstoodError(f"a {type(argument).__name__} as an argument")


def joined(parts: Sequence[Any]) -> Any:
    """Texts and symbols, joined: a symbol if there is one among them."""
    symbols = [part for part in parts if isinstance(part, Symbol)]
    if not symbols:
        return "".join(parts)
    flat: list[str | Expression] = []
    for part in parts:
        if isinstance(part, Symbol):
            flat += part._expression.parts if isinstance(part._expression, Joined) else (part._expression,)
        elif type(part) is str:
            flat.append(part)
        else:
            raise NotUnderstoodError(f"a content joined to a {type(part).__name__}")
    text = "".join(part._text if isinstance(part, Symbol) else part for part in parts)
    return Symbol(Joined(tuple(flat)), text, symbols[0]._guards)


def interleaved(texts: list[Any], separator: str = "") -> Any:
    """Texts and symbols, joined with a separator between them."""
    _require_plain([separator])
    return joined([part for text in texts for part in (separator, text)][1:])


def expression_of(value: Symbol | str) -> Joined:
    """What was written, as literals and expressions."""
    parts = value._expression if isinstance(value, Symbol) else value
    return parts if isinstance(parts, Joined) else Joined((parts,))
