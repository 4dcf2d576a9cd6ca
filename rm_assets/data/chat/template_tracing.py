"""Chat templates run on symbols instead of texts, to learn what they do with the contents of messages.

This is symbolic execution along the path of an example (K. Sen, D. Marinov, G. Agha, "CUTE: a concolic unit testing
engine for C", 2005). A `Symbol` replaces a content: methods that make a new text of it (`strip`, `replace`, ...) extend
an expression, and each question about it (`in`, `startswith`, truth, ...) becomes a guard with the example's answer.
All conversations that pass the guards are rendered by the same expression. A symbol is not a string, so any operation
not listed here raises NotTraceableError instead of losing track; then transformers renders the conversation.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rm_assets.data.chat.bounded_templates import syntax_of

# --- expressions over contents -------------------------------------------------------------------------------


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
    """Literals and expressions in sequence."""

    parts: tuple["str | Expression", ...]


Expression = Content | Applied | Joined
Part = str | Expression


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


# --- symbols -------------------------------------------------------------------------------------------------


class NotTraceableError(Exception):
    """The template asked something of a content that a symbol cannot answer."""


class Symbol:
    """A text known by an expression; `_text` is its value for the example's contents."""

    __slots__ = ("_expression", "_guards", "_text")

    def __init__(self, expression: Expression, text: str, guards: dict[Guard, None]) -> None:
        self._expression, self._text, self._guards = expression, text, guards

    def ask(self, question: str, *arguments: Any) -> bool:
        """The example's answer, which becomes a guard."""
        _require_plain(arguments)
        found = answer(self._text, question, arguments)
        self._guards[Guard(self._expression, question, arguments, found)] = None
        return found

    def apply(self, method: str, arguments: tuple[Any, ...], item: int | None = None) -> "Symbol":
        """The result of a string's method on this text."""
        _require_plain(arguments)
        expression = Applied(self._expression, method, arguments, item)
        return Symbol(expression, apply(expression, self._text), self._guards)

    def __add__(self, other: Any) -> Any:
        return join([self, other])

    def __radd__(self, other: Any) -> Any:
        return join([other, self])

    def __contains__(self, part: Any) -> bool:
        return self.ask("__contains__", part)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Symbol):
            if self._expression == other._expression:
                return True
            raise NotTraceableError("a comparison of two contents")
        return isinstance(other, str) and self.ask("__eq__", other)

    def __bool__(self) -> bool:
        return self.ask("bool")

    def _not_understood(self, *_: Any) -> Any:
        raise NotTraceableError("a content where only a text will do")

    # Looking up a symbol in a dict would ask it without a guard, and printing it would lose its expression.
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
        raise NotTraceableError("the length of a content")

    __hash__ = __str__ = __repr__ = __format__ = _not_understood


def _is_zero(value: object) -> bool:
    return type(value) is int and value == 0


class Parts:
    """The result of `split` on a symbol, whose first and last parts are symbols, as is its only part."""

    __slots__ = ("_arguments", "_symbol")

    def __init__(self, symbol: Symbol, *arguments: Any) -> None:
        if not arguments or not arguments[0]:  # without a separator there may be no part at all
            raise NotTraceableError("a content split at white space")
        self._symbol, self._arguments = symbol, arguments

    def item(self, index: Any) -> Symbol:
        """The first part (0) or the last (-1)."""
        if type(index) is not int or index not in (0, -1):
            raise NotTraceableError("a part of a split content other than the first and the last")
        return self._symbol.apply("split", self._arguments, index)

    def __iter__(self) -> Iterator[Symbol]:
        if self._symbol.ask("__contains__", self._arguments[0]):
            raise NotTraceableError("a loop over a content that is split")
        return iter([self._symbol])

    def _not_understood(self, *_: Any) -> Any:
        raise NotTraceableError("a split content as a list")

    __eq__ = __hash__ = __reversed__ = __contains__ = __bool__ = _not_understood
    __str__ = __repr__ = __format__ = _not_understood


def _require_plain(arguments: Iterable[Any]) -> None:
    for argument in arguments:
        if isinstance(argument, tuple):
            _require_plain(argument)
        elif argument is not None and type(argument) not in (str, int):
            raise NotTraceableError(f"a {type(argument).__name__} as an argument")


def join(parts: Sequence[Any], separator: str = "") -> Any:
    """Texts and symbols, joined: a symbol if there is one among them."""
    _require_plain([separator])
    if separator != "":
        parts = [item for part in parts for item in (separator, part)][1:]
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
            raise NotTraceableError(f"a content joined to a {type(part).__name__}")
    text = "".join(part._text if isinstance(part, Symbol) else part for part in parts)
    return Symbol(Joined(tuple(flat)), text, symbols[0]._guards)


def expression_of(value: Symbol | str) -> Joined:
    """A rendering as literals and expressions."""
    parts = value._expression if isinstance(value, Symbol) else value
    return parts if isinstance(parts, Joined) else Joined((parts,))


# --- Jinja on symbols ----------------------------------------------------------------------------------------

_TEXT_METHODS = ("strip", "lstrip", "rstrip", "replace", "removeprefix", "removesuffix", "lower", "upper")
_QUESTIONS = ("startswith", "endswith")
_ANSWERED_TESTS = dict.fromkeys(("defined", "string", "iterable", "sequence"), True) | dict.fromkeys(
    ("undefined", "none", "mapping", "boolean", "true", "false", "number", "integer", "float", "callable"), False
)
_TESTS_OF_TEXTS = ("==", "eq", "equalto", "!=", "ne", "in")


class SymbolEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the attributes, items and joins of symbols."""

    @staticmethod
    def concat(parts: Iterable[Any]) -> Any:
        """The output of a block or of the whole template."""
        return join(list(parts))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """An attribute, as `content.strip`."""
        return _attribute(self, obj, attribute) if _is_symbolic(obj) else super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item, as `content.split("x")[0]`, or an attribute, as `content["strip"]`."""
        if _is_symbolic(argument):
            raise NotTraceableError("a content as a key")
        if isinstance(obj, Parts):
            return obj.item(argument)
        return _attribute(self, obj, argument) if _is_symbolic(obj) else super().getitem(obj, argument)


def _attribute(environment: SymbolEnvironment, value: Any, name: Any) -> Any:
    if isinstance(value, Symbol) and isinstance(name, str):
        if name in _TEXT_METHODS:
            return lambda *arguments: value.apply(name, arguments)
        if name in _QUESTIONS:
            return lambda *arguments: value.ask(name, *arguments)
        if name == "split":
            return lambda *arguments: Parts(value, *arguments)
        if not hasattr(str, name):
            return environment.undefined(obj="", name=name)
    raise NotTraceableError(f"{name!r} of a content")


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, (Symbol, Parts, Length))


def _test(name: str, function: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def test(*arguments: Any) -> Any:
        if not any(map(_is_symbolic, arguments)) or name in _TESTS_OF_TEXTS:
            return function(*arguments)
        if isinstance(arguments[0], Symbol) and name in _ANSWERED_TESTS:
            return _ANSWERED_TESTS[name]
        raise NotTraceableError(f"the test {name!r} of a content")

    return test


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def on_symbols(*arguments: Any, **options: Any) -> Any:
        match name, arguments, options:
            case "trim", [Symbol() as symbol, *characters], {}:
                return symbol.apply("strip", tuple(characters))
            case "replace", [_, Symbol() as symbol, *texts], {}:
                return symbol.apply("replace", tuple(texts))
            case "lower" | "upper", [Symbol() as symbol], {}:
                return symbol.apply(name, ())
            case "string", [Symbol() as symbol], {}:
                return symbol
            case "length" | "count", [Symbol() as symbol], {}:
                return Length(symbol)
            case "first", [_, Parts() as parts], {}:
                return parts.item(0)
            case "last", [_, Parts() as parts], {}:
                return parts.item(-1)
            case "join", [_, [*texts], *separator], {} if any(map(_is_symbolic, texts)) and len(separator) <= 1:
                return join(texts, *separator)
            case "default" | "d", [Symbol(), *other], _ if not any(map(_is_symbolic, (*other, *options.values()))):
                return function(*arguments, **options)
        if any(map(_is_symbolic, (*arguments, *options.values()))):
            raise NotTraceableError(f"the filter {name!r} of a content")
        return function(*arguments, **options)

    return on_symbols


def on_symbols(template: Template, source: str) -> Template:
    """The same template, compiled to run on symbols."""
    own = template.environment
    environment = SymbolEnvironment(**syntax_of(own))
    environment.globals.update(own.globals)
    environment.filters.update({name: _filter(name, function) for name, function in own.filters.items()})
    environment.tests.update({name: _test(name, function) for name, function in own.tests.items()})
    compiled = environment.from_string(source)
    # Compiled templates pass what they write through `str`, and what `~` joins through `str_join`.
    names = compiled.root_render_func.__globals__
    names["str"] = _written
    names["str_join"] = names["markup_join"] = lambda values: join([_written(value) for value in values])
    return compiled


def _written(value: Any) -> Any:
    return value if isinstance(value, Symbol) else str(value)


def trace(
    template: Template, roles: Sequence[str], contents: Sequence[str], **variables: Any
) -> tuple[Joined, tuple[Guard, ...]]:
    """What a template on symbols writes for these contents, and the guards under which it writes the same for others.

    Raises NotTraceableError, or what Jinja raises, where the template cannot be traced.
    """
    guards: dict[Guard, None] = {}
    symbols = [Symbol(Content(index), text, guards) for index, text in enumerate(contents)]
    messages = [{"role": role, "content": symbol} for role, symbol in zip(roles, symbols, strict=True)]
    written: Any = template.render(messages=messages, **variables)
    return expression_of(written), tuple(guards)
