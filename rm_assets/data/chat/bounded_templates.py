"""Chat templates rendered within bounds of work and time, as a template may come from anyone.

Jinja's sandbox bounds neither time nor memory, and an operating system's limits hold for the whole process, in which
other libraries abort for want of memory. So the template runs in transformers' own environment with a budget of work.
Whatever may give more than the size of its operands is charged before it runs: repeated and formatted texts, widths,
joined and replaced texts, lists of lists, JSON. Each round of a loop and call of a macro is charged, and checks the
time limit. Anything else is refused by name. The budget grows with the conversation; honest templates use little of it.
"""

import builtins
import re
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, Template, nodes, pass_context
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

_BASE_WORK = 2**24
_WORK_PER_CHARACTER = 256
"""The budget of a conversation, in characters written."""
_BASE_SECONDS = 5.0
_SECONDS_PER_CHARACTER = 4e-6
_ROUND, _ITEM = 100, 8
"""The cost of a round of a loop and of an item of a list."""
_MAX_NUMBER = 10_000
"""The widest field, the largest count of repetitions of a list's items, the most bits of a number."""
_MAX_TEMPLATE = 2**20


class TemplateLimitError(Exception):
    """The template exceeds a bound, which the message names."""


class _Budget:
    """The budget of a rendering. A bound once exceeded stays exceeded, as Jinja swallows some exceptions."""

    def __init__(self) -> None:
        self.open(0)

    def open(self, num_characters: int) -> None:
        """Start again, for a conversation of this size."""
        self.exceeded = ""
        self.work = self.left = _BASE_WORK + _WORK_PER_CHARACTER * num_characters
        self.seconds = _BASE_SECONDS + _SECONDS_PER_CHARACTER * num_characters
        self.end = time.thread_time() + self.seconds

    def require(self, holds: bool, limit: str) -> None:
        if not holds or self.exceeded:
            self.exceeded = self.exceeded or limit
            raise TemplateLimitError(self.exceeded)

    def charge(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            self.require(False, f"more work than writing {self.work} characters")

    def charge_round(self) -> None:
        self.charge(_ROUND)
        if time.thread_time() > self.end:
            self.require(False, f"more than {self.seconds:.0f} s of computing")

    def charge_for(self, value: Any, factor: int = 1) -> None:
        """Charge for all that a value holds, as often as it holds it."""
        if isinstance(value, str | bytes | range):
            self.charge((len(value) + 1) * factor)
        elif isinstance(value, list | tuple | set | frozenset):
            self.charge(_ITEM * factor)
            for item in value:
                self.charge_for(item, factor)
        elif isinstance(value, Mapping):
            self.charge_for([*value, *value.values()], factor)
        elif isinstance(value, Namespace):
            self.charge_for(value._Namespace__attrs, factor)
        else:
            self.charge(_ITEM * factor)


# --- operators -----------------------------------------------------------------------------------------------

_SEQUENCES = (str, list, tuple)
_WIDE_FIELD = re.compile(r"%[^%a-zA-Z]*(?:\d{4}|\*)")
_WIDE_NAMED_FIELD = re.compile(r"\)[#0\- +]*(?:\d{4}|\*|\d*\.(?:\d{4}|\*))")
"""The width of a field with a name in parentheses, which may be nested."""
_WIDE_FORMAT = re.compile(r"[:.][^{}]*(?:\d{4}|\{)")


def _charge_operator(budget: _Budget, operator: str, left: Any, right: Any) -> None:
    if operator == "+":
        if isinstance(left, str):
            budget.charge(len(left) + len(right) if isinstance(right, str) else 0)
        elif isinstance(left, _SEQUENCES):
            budget.charge(len(left))
            budget.charge_for(right)
    elif operator == "%" and isinstance(left, str):
        _charge_format(budget, left, right)
    elif isinstance(left, _SEQUENCES) or isinstance(right, _SEQUENCES):
        sequence, times = (left, right) if isinstance(left, _SEQUENCES) else (right, left)
        budget.charge(max(0, int(times)) if isinstance(times, int) else 0)
        budget.charge_for(sequence, max(1, int(times)) if isinstance(times, int) else 1)
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        budget.require(bits <= _MAX_NUMBER, f"a number of more than {_MAX_NUMBER} bits")


def _charge_format(budget: _Budget, text: str, values: Any) -> None:
    is_wide = _WIDE_FIELD.search(text) or ("%(" in text and _WIDE_NAMED_FIELD.search(text))
    budget.require(not is_wide, "a formatted field of a thousand characters or more")
    budget.charge(len(text) + 1000 * text.count("%"))
    budget.charge_for(values, 1 + text.count("%"))


# --- filters -------------------------------------------------------------------------------------------------

_PLAIN_FILTERS = frozenset(
    {
        *("abs", "attr", "capitalize", "count", "d", "default", "e", "escape", "filesizeformat", "first", "float"),
        *("forceescape", "int", "items", "last", "length", "lower", "map", "reject", "rejectattr", "reverse", "safe"),
        *("select", "selectattr", "title", "trim", "upper"),
    }
)
"""Filters that read a text, or pass on the items of a list."""
_OTHER_FILTERS = frozenset(
    {
        *("batch", "center", "dictsort", "format", "groupby", "indent", "join", "list", "max", "min", "replace"),
        *("round", "slice", "sort", "string", "sum", "tojson", "truncate", "unique", "urlencode", "wordcount"),
    }
)
"""Filters that are charged before they run; a filter in neither set is refused."""


def _bounded_filter(budget: _Budget, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passes_first = int(hasattr(function, "jinja_pass_arg"))

    def plain(*arguments: Any, **options: Any) -> Any:
        value = arguments[passes_first] if len(arguments) > passes_first else None
        budget.charge(len(value) if isinstance(value, str) else _ITEM)
        return function(*arguments, **options)

    def other(*arguments: Any, **options: Any) -> Any:
        passed, given = arguments[:passes_first], [_as_list(argument) for argument in arguments[passes_first:]]
        _charge_filter(budget, name, [*given, *options.values()])
        result = function(*passed, *given, **options)
        budget.charge(len(result) if isinstance(result, str) else _ITEM)
        return result

    def refused(*arguments: Any, **options: Any) -> Any:
        why = "which makes renderings differ" if name == "random" else "whose work is unbounded"
        budget.require(False, f"the filter {name!r}, {why}")

    bounded = plain if name in _PLAIN_FILTERS else other if name in _OTHER_FILTERS else refused
    if passes_first:
        bounded.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return bounded


def _as_list(value: Any) -> Any:
    """A list of what can be read only once."""
    return list(value) if isinstance(value, Iterator | types.GeneratorType) else value


def _charge_filter(budget: _Budget, name: str, arguments: Sequence[Any]) -> None:
    value, others = arguments[0], arguments[1:]
    if name == "format":
        _charge_format(budget, str(value), others)
        return
    numbers = [abs(number) for number in others if isinstance(number, int)]
    budget.require(max(numbers, default=0) <= _MAX_NUMBER, f"a number above {_MAX_NUMBER} for the filter {name!r}")
    texts = [len(text) for text in others if isinstance(text, str)]
    if name == "replace":
        budget.charge((len(str(value)) + 1) * (1 + max(texts[1:], default=0)))
        return
    # sorting compares each item some times; JSON is indented at every depth
    factor = 32 if name in ("sort", "unique", "groupby", "dictsort", "list") else 4
    budget.charge_for(value, factor + 8 * max(numbers, default=0) * (name == "tojson"))
    budget.charge_for(others)
    # indenting and joining write a text for each line or item
    is_list = isinstance(value, Sequence) and (name == "join" or not isinstance(value, str))
    items = len(value) if is_list else str(value).count("\n") + 1 if name == "indent" else 1
    budget.charge(items * (sum(texts) + sum(numbers)))
    if name == "sum" and any(isinstance(start, list | tuple) for start in others):
        budget.charge_for(value, items)


# --- calls ---------------------------------------------------------------------------------------------------

_FREE = frozenset(("get", "items", "keys", "values", "startswith", "endswith"))
_METHODS = {
    str: frozenset(
        {
            *("capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "format", "format_map"),
            *("index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower"),
            *("isnumeric", "isprintable", "isspace", "istitle", "isupper", "join", "ljust", "lower", "lstrip"),
            *("partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition"),
            *("rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper"),
            *("zfill",),
        }
    ),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    range: frozenset(("count", "index")),
    float: frozenset(("is_integer",)),
}
_WIDENING = frozenset(("center", "expandtabs", "ljust", "rjust", "zfill"))


def _charge_call(
    budget: _Budget, function: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Any, ...]:
    """Charge for a call, unless of a macro; returns the arguments, as lists where they can be read only once."""
    kind = type(function)
    if kind is Macro or kind is type:
        return arguments
    method = function if kind is types.BuiltinMethodType else getattr(function, "__wrapped__", function)
    if type(method) is not types.BuiltinMethodType:
        name = getattr(function, "__name__", "")
        budget.require(name != "fromkeys", "the method 'fromkeys', whose work is unbounded")
        if kind.__name__ == "TemplateDict":  # transformers' `dict`
            budget.charge_for([*arguments, *options.values()])
        return arguments
    owner, name = method.__self__, method.__name__
    if name in _FREE and type(owner) in (dict, str):
        return arguments
    allowed: frozenset[str] = next((names for kind, names in _METHODS.items() if isinstance(owner, kind)), frozenset())
    budget.require(name in allowed, f"the method {name!r} of a {type(owner).__name__}, whose work is unbounded")
    arguments = tuple(map(_as_list, arguments))
    if not isinstance(owner, str):
        budget.charge_for(owner)
        return arguments
    budget.charge(len(owner))
    numbers = [abs(number) for number in arguments if isinstance(number, int)]
    if name in _WIDENING:
        budget.require(max(numbers, default=8) <= _MAX_NUMBER, f"a width above {_MAX_NUMBER}")
        budget.charge((owner.count("\t") + 1) * max(numbers, default=8))
    elif name == "replace" and len(arguments) > 1:
        budget.charge((len(owner) + 1) * (1 + len(str(arguments[1]))))
    elif name == "join":
        budget.charge_for(arguments)
        budget.charge(len(owner) * max((len(items) for items in arguments if isinstance(items, Sequence)), default=0))
    elif name in ("format", "format_map"):
        budget.require(not _WIDE_FORMAT.search(owner), "a formatted field of a thousand characters or more")
        budget.charge_for([*arguments, *options.values()], 1 + owner.count("{"))
        budget.charge(1000 * owner.count("{"))
    return arguments


# --- the environment -----------------------------------------------------------------------------------------


def syntax_of(own: Environment) -> dict[str, Any]:
    """The options by which another environment reads templates as this one does."""
    names = ("trim_blocks", "lstrip_blocks", "keep_trailing_newline")
    extensions = [type(extension) for extension in own.extensions.values()]
    return {name: getattr(own, name) for name in names} | {"extensions": extensions}


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which whatever may grow is charged."""

    intercepted_binops = frozenset(("+", "*", "%", "**"))

    def __init__(self, own: Environment, budget: _Budget) -> None:
        super().__init__(**syntax_of(own))
        self.budget = budget
        self.globals.update(own.globals)
        self.globals.pop("lipsum", None)
        self.tests.update(own.tests)
        self.filters.update({name: _bounded_filter(budget, name, own.filters[name]) for name in own.filters})
        self.filters["_data"] = pass_context(lambda _, length: budget.charge(length))
        self.filters["_sliced"] = self._sliced
        self.filters["_round"] = pass_context(lambda _, value: budget.charge_round())
        self.filters["_built"] = self._built

    @pass_context
    def _built(self, context: Any, value: Any) -> Any:
        self.budget.charge_for(value)
        return value

    @pass_context
    def _sliced(self, context: Any, value: Any) -> Any:
        if isinstance(value, _SEQUENCES):
            self.budget.charge(len(value) if isinstance(value, str) else _ITEM * len(value))
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator, charged before it runs."""
        _charge_operator(self.budget, operator, left, right)
        return self.binop_table[operator](left, right)

    def call(self, context: Any, function: Any, /, *arguments: Any, **options: Any) -> Any:
        """A call, charged before it runs."""
        self.budget.charge(_ITEM * (len(arguments) + len(options)))
        arguments = _charge_call(self.budget, function, arguments, options)
        result = super().call(context, function, *arguments, **options)
        if type(result) is list:
            self.budget.charge(_ITEM * len(result))
        return result

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Instrumented(self).visit(tree)
        return tree


class _Instrumented(NodeTransformer):
    """Adds charges for rounds, lists, slices and the template's own text; computes constants, charged, at once."""

    def __init__(self, environment: _BoundedEnvironment) -> None:
        self._environment = environment

    def visit(self, node: nodes.Node, *arguments: Any, **options: Any) -> Any:
        """The node with charges inside it, and perhaps one before it."""
        node = self.generic_visit(node)
        if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
            charge = nodes.ExprStmt(self._filtered(nodes.Const(None), "_round"), lineno=node.lineno)
            node.body.insert(0, charge.set_environment(self._environment))
        elif isinstance(node, nodes.List | nodes.Tuple | nodes.Dict):
            is_constant = all(isinstance(item, nodes.Const) for item in node.items)
            if not is_constant and getattr(node, "ctx", "load") == "load":
                return self._filtered(node, "_built")
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return self._filtered(node, "_sliced")
        elif isinstance(node, nodes.Output):
            return self._charged_output(node)
        elif isinstance(node, nodes.BinExpr) and node.operator in self._environment.intercepted_binops:
            return self._computed(node)
        return node

    def _charged_output(self, node: nodes.Output) -> list[nodes.Node]:
        """The template's own text, with a charge before it."""
        if not (num_characters := sum(map(_num_constant_characters, node.nodes))):
            return [node]
        charge = self._filtered(nodes.Const(num_characters), "_data")
        return [nodes.ExprStmt(charge, lineno=node.lineno).set_environment(self._environment), node]

    def _filtered(self, node: nodes.Expr, name: str) -> nodes.Node:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno).set_environment(self._environment)

    def _computed(self, node: nodes.BinExpr) -> nodes.Node:
        """A constant if both operands are constants, as Jinja computes it when it compiles."""
        try:
            left, right = node.left.as_const(), node.right.as_const()
            value = self._environment.call_binop(None, node.operator, left, right)
        except TemplateLimitError:
            raise
        except Exception:  # not constants, or they raise when run
            return node
        return nodes.Const(value, lineno=node.lineno).set_environment(self._environment)


def _num_constant_characters(node: nodes.Expr) -> int:
    try:
        return len(str(node.as_const()))
    except Exception:  # not a constant: charged when it is written
        return 0


class BoundedTemplate:
    """A template that renders as transformers renders it, or raises TemplateLimitError."""

    def __init__(self, source: str, own: Environment) -> None:
        self._budget = budget = _Budget()
        budget.require(len(source) <= _MAX_TEMPLATE, f"{_MAX_TEMPLATE} characters of template")
        self._template: Template = _BoundedEnvironment(own, budget).from_string(source)
        budget.require(True, "")

        def written(value: Any) -> str:
            if type(value) is str:
                budget.charge(len(value))
                return value
            budget.charge_for(value, 1 if isinstance(value, str | int | float) else _ITEM)
            return builtins.str(value)

        def charged(values: Iterable[Any]) -> list[Any]:
            texts = [value if isinstance(value, str) else written(value) for value in values]
            budget.charge(sum(map(len, texts)))
            return texts

        # Compiled templates pass what they write through `str` or `escape`, and what `~` joins through `str_join`.
        names = self._template.root_render_func.__globals__
        escape, markup_join = names["escape"], names["markup_join"]
        names["str"], names["str_join"] = written, lambda values: "".join(charged(values))
        names["escape"] = lambda value: escape(value if hasattr(value, "__html__") else written(value))
        names["markup_join"] = lambda values: markup_join(charged(values))

    def render(self, num_characters: int, **variables: Any) -> str:
        self._budget.open(num_characters)
        try:
            return self._template.render(**variables)
        finally:
            self._budget.require(True, "")
