"""What a chat template does with contents, learnt by running it on symbols instead of texts.

Contents that answer alike whatever the template asks of them are rendered alike: as the same literals and expressions.
This is symbolic execution along the path of an example (K. Sen, D. Marinov, G. Agha, "CUTE: a concolic unit testing
engine for C", 2005). A template that asks anything that a symbol does not understand cannot be told in this way.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rm_assets.data.chat.template_symbols import (
    Content,
    Guard,
    Joined,
    Length,
    NotUnderstoodError,
    Parts,
    Symbol,
    expression_of,
    interleaved,
    joined,
)

_TEXT_METHODS = ("strip", "lstrip", "rstrip", "replace", "removeprefix", "removesuffix", "lower", "upper")
_QUESTIONS = ("startswith", "endswith")
_ANSWERED_TESTS = dict.fromkeys(("defined", "string", "iterable", "sequence"), True) | dict.fromkeys(
    ("undefined", "none", "mapping", "boolean", "true", "false", "number", "integer", "float", "callable"), False
)
_TRACED_TESTS = ("==", "eq", "equalto", "!=", "ne", "in")


class SymbolEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, told what a symbol's attributes are, and to join symbols where it joins texts."""

    @staticmethod
    def concat(parts: Iterable[Any]) -> Any:
        """What a block or the whole template has written."""
        return joined(list(parts))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """An attribute, as `content.strip`."""
        return _attribute(self, obj, attribute) if _is_traced(obj) else super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item, as `content.split("x")[0]`, or an attribute, as `content["strip"]`."""
        if _is_traced(argument):
            raise NotUnderstoodError("a content as a key")
        if isinstance(obj, Parts):
            return obj.item(argument)
        return _attribute(self, obj, argument) if _is_traced(obj) else super().getitem(obj, argument)


def _attribute(environment: SymbolEnvironment, value: Any, name: Any) -> Any:
    if isinstance(value, Symbol) and isinstance(name, str):
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
    return isinstance(value, (Symbol, Parts, Length))


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
        match name, arguments, options:
            case "trim", [Symbol() as symbol, *characters], {}:
                return symbol.made("strip", tuple(characters))
            case "replace", [_, Symbol() as symbol, *texts], {}:
                return symbol.made("replace", tuple(texts))
            case "lower" | "upper", [Symbol() as symbol], {}:
                return symbol.made(name, ())
            case "string", [Symbol() as symbol], {}:
                return symbol
            case "length" | "count", [Symbol() as symbol], {}:
                return Length(symbol)
            case "first", [_, Parts() as parts], {}:
                return parts.item(0)
            case "last", [_, Parts() as parts], {}:
                return parts.item(-1)
            case "join", [_, [*texts], *separator], {} if any(map(_is_traced, texts)) and len(separator) <= 1:
                return interleaved(texts, *separator)
            case "default" | "d", [Symbol(), *other], _ if not any(map(_is_traced, (*other, *options.values()))):
                return function(*arguments, **options)
        if any(map(_is_traced, (*arguments, *options.values()))):
            raise NotUnderstoodError(f"the filter {name!r} of a content")
        return function(*arguments, **options)

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
    names["str_join"] = names["markup_join"] = lambda values: joined([_written(value) for value in values])
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
    return expression_of(written), tuple(guards)
