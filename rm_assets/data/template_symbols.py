"""What a chat template does with contents, learnt by running it on symbols instead of texts.

A symbol stands for the content of one message. It is no string, so whatever it does not understand fails instead of
losing track. What it does understand is written down: methods that make a new text of it become part of an expression,
and every question about it (`in`, `startswith`, truth, ...) becomes a guard with the answer that the content at hand
gives. Contents that answer all guards alike are rendered alike, so the text is the written literals and expressions.
This is symbolic execution along the path of an example (K. Sen, D. Marinov, G. Agha, "CUTE", 2005).
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

_TEXT_METHODS = ("strip", "lstrip", "rstrip", "replace", "removeprefix", "removesuffix", "lower", "upper")
_QUESTIONS = ("startswith", "endswith")


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


def _ask(text: str, question: str, arguments: tuple[Any, ...]) -> bool:
    return bool(text) if question == "bool" else bool(getattr(str, question)(text, *arguments))


def _apply(text: str, method: str, arguments: tuple[Any, ...], item: int | None) -> str:
    made = getattr(str, method)(text, *arguments)
    return str(made if item is None else made[item])


def column(expression: Expression, contents: Sequence[Sequence[str]]) -> list[str] | Sequence[str]:
    """An expression's text in every row; `contents` are the columns, [messages][rows]."""
    match expression:
        case Content(index):
            return contents[index]
        case Applied(of, method, arguments, None):
            function = getattr(str, method)
            return [function(text, *arguments) for text in column(of, contents)]
        case Applied(of, method, arguments, item):
            return [_apply(text, method, arguments, item) for text in column(of, contents)]
        case Joined(parts):
            columns = [
                _repeated(part, len(contents[0])) if isinstance(part, str) else column(part, contents) for part in parts
            ]
            return list(map("".join, zip(*columns, strict=True)))


def _repeated(text: str, count: int) -> list[str]:
    return [text] * count


def failures(guard: Guard, contents: Sequence[Sequence[str]]) -> list[int]:
    """The rows that answer a guard otherwise."""
    texts = column(guard.of, contents)
    if guard.question == "bool":
        return [row for row, text in enumerate(texts) if bool(text) != guard.answer]
    if guard.question == "__contains__":
        [part] = guard.arguments
        return [row for row, text in enumerate(texts) if (part in text) != guard.answer]
    return [row for row, text in enumerate(texts) if _ask(text, guard.question, guard.arguments) != guard.answer]


# --- symbols -------------------------------------------------------------------------------------------------


class Symbol:
    """A text that is known by an expression; `_text` is what the expression makes of the example's contents."""

    __slots__ = ("_expression", "_guards", "_text")

    def __init__(self, expression: Expression, text: str, guards: dict[Guard, None]) -> None:
        self._expression, self._text, self._guards = expression, text, guards

    def asked(self, question: str, *arguments: Any) -> bool:
        """The example's answer, which becomes a guard."""
        _require_plain(arguments)
        answer = _ask(self._text, question, arguments)
        self._guards[Guard(self._expression, question, arguments, answer)] = None
        return answer

    def made(self, method: str, arguments: tuple[Any, ...], item: int | None = None) -> "Symbol":
        """The text that a string's method makes of this one."""
        _require_plain(arguments)
        text = _apply(self._text, method, arguments, item)
        return Symbol(Applied(self._expression, method, arguments, item), text, self._guards)

    def __add__(self, other: Any) -> Any:
        return _joined([self, other])

    def __radd__(self, other: Any) -> Any:
        return _joined([other, self])

    def __contains__(self, part: Any) -> bool:
        return self.asked("__contains__", part)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Symbol):
            raise NotUnderstoodError("a comparison of two contents")
        return isinstance(other, str) and self.asked("__eq__", other)

    def __bool__(self) -> bool:
        return self.asked("bool")

    def _not_understood(self, *_: Any) -> Any:
        raise NotUnderstoodError("a content where only a text will do")

    # A key of a dict would be asked without a trace, and a printed symbol would be a text that nobody knows.
    __hash__ = __iter__ = __reversed__ = __str__ = __repr__ = __format__ = _not_understood


class Parts:
    """What `split` makes of a symbol. Its first and last part are symbols; everything else is not understood."""

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

    def _not_understood(self, *_: Any) -> Any:
        raise NotUnderstoodError("a split content as a list")

    __eq__ = __hash__ = __iter__ = __reversed__ = __contains__ = __bool__ = _not_understood
    __str__ = __repr__ = __format__ = _not_understood


def _require_plain(arguments: Iterable[Any]) -> None:
    for argument in arguments:
        if isinstance(argument, tuple):
            _require_plain(argument)
        elif argument is not None and type(argument) not in (str, int):
            raise NotUnderstoodError(f"a {type(argument).__name__} as an argument")


def _joined(parts: Sequence[Any]) -> Any:
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


# --- a template that runs on symbols -------------------------------------------------------------------------

_ANSWERED_TESTS = dict.fromkeys(("defined", "string", "iterable", "sequence"), True) | dict.fromkeys(
    ("undefined", "none", "mapping", "boolean", "true", "false", "number", "integer", "float", "callable"), False
)
_TRACED_TESTS = ("==", "eq", "equalto", "!=", "ne", "in")


class SymbolEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, told what a symbol's attributes are, and to join symbols where it joins texts."""

    @staticmethod
    def concat(parts: Iterable[Any]) -> Any:
        """What a block or the whole template has written."""
        return _joined(list(parts))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """An attribute, as `content.strip`."""
        return _attribute(self, obj, attribute) if isinstance(obj, (Symbol, Parts)) else super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item, as `content.split("x")[0]`, or an attribute, as `content["strip"]`."""
        if isinstance(argument, (Symbol, Parts)):
            raise NotUnderstoodError("a content as a key")
        if isinstance(obj, Parts):
            return obj.item(argument)
        if isinstance(obj, Symbol) and not isinstance(argument, str):
            raise NotUnderstoodError("a part of a content")
        return _attribute(self, obj, argument) if isinstance(obj, Symbol) else super().getitem(obj, argument)


def _attribute(environment: SymbolEnvironment, value: Symbol | Parts, name: str) -> Any:
    if isinstance(value, Symbol):
        if name in _TEXT_METHODS:
            return lambda *arguments: value.made(name, arguments)
        if name in _QUESTIONS:
            return lambda *arguments: value.asked(name, *arguments)
        if name == "split":
            return lambda *arguments: Parts(value, *arguments)
        if not hasattr(str, name):
            return environment.undefined(obj="", name=name)
    raise NotUnderstoodError(f"{name!r} of a content")


def _is_traced(value: Any) -> bool:
    return isinstance(value, (Symbol, Parts))


def _test(name: str, function: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def test(*arguments: Any) -> Any:
        if not any(map(_is_traced, arguments)) or name in _TRACED_TESTS:
            return function(*arguments)
        if isinstance(arguments[0], Symbol) and name in _ANSWERED_TESTS:
            return _ANSWERED_TESTS[name]
        raise NotUnderstoodError(f"the test {name!r} of a content")

    return test


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def on_symbols(*arguments: Any, **options: Any) -> Any:
        if not any(map(_is_traced, (*arguments, *options.values()))):
            return function(*arguments, **options)
        match name, [argument for argument in arguments if _is_traced(argument)], options:
            case "trim", [Symbol() as symbol], {}:
                return symbol.made("strip", arguments[1:])
            case "string", [Symbol() as symbol], {}:
                return symbol
            case (("default" | "d"), [Symbol()], _) if isinstance(arguments[0], Symbol):
                return function(*arguments, **options)
            case "first", [Parts() as parts], {}:
                return parts.item(0)
            case "last", [Parts() as parts], {}:
                return parts.item(-1)
        raise NotUnderstoodError(f"the filter {name!r} of a content")

    return on_symbols


def on_symbols(template: Template, source: str) -> Template:
    """The same template, compiled to run on symbols."""
    own = template.environment
    environment = SymbolEnvironment(
        trim_blocks=own.trim_blocks,
        lstrip_blocks=own.lstrip_blocks,
        keep_trailing_newline=own.keep_trailing_newline,
        extensions=[type(extension) for extension in own.extensions.values()],
    )
    environment.globals.update(own.globals)
    environment.filters.update({name: _filter(name, function) for name, function in own.filters.items()})
    environment.tests.update({name: _test(name, function) for name, function in own.tests.items()})
    compiled = environment.from_string(source)
    # Compiled templates pass what they write through `str`, and what `~` joins through `str_join`.
    names = compiled.root_render_func.__globals__
    names["str"] = _written
    names["str_join"] = names["markup_join"] = lambda values: _joined([_written(value) for value in values])
    return compiled


def _written(value: Any) -> Any:
    return value if isinstance(value, Symbol) else str(value)


def traced(
    template: Template, roles: Sequence[str], contents: Sequence[str], **variables: Any
) -> tuple[Joined, tuple[Guard, ...]]:
    """What a template on symbols writes for these contents, and for which others it does so.

    Raises NotUnderstoodError, or what Jinja raises, where that cannot be told.
    """
    guards: dict[Guard, None] = {}
    symbols = [Symbol(Content(index), text, guards) for index, text in enumerate(contents)]
    messages = [{"role": role, "content": symbol} for role, symbol in zip(roles, symbols, strict=True)]
    written: Any = template.render(messages=messages, **variables)
    if not isinstance(written, Symbol):
        return Joined((written,)), tuple(guards)
    expression = written._expression
    return expression if isinstance(expression, Joined) else Joined((expression,)), tuple(guards)
