"""Chat templates rendered within bounds: a template is foreign material, and Jinja's sandbox bounds no time or memory.

The template runs in transformers' own environment, with an account of its work. Whatever could take more than its
operands' size is paid for before it is done: repeated and formatted texts, widths, joined and replaced texts, lists of
lists, JSON; every loop and macro pays per round, and has its seconds. What cannot be bounded so is refused by name. A
conversation's account grows with its size, so that no honest template comes near its end.
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
"""What a conversation may cost, in characters written."""
_BASE_SECONDS = 5.0
_SECONDS_PER_CHARACTER = 4e-6
_ROUND, _ITEM = 100, 8
"""What a round of a loop and an item of a list cost."""
_MAX_NUMBER = 10_000
"""The widest field, the largest count of repetitions of a list's items, the most bits of a number."""
_MAX_TEMPLATE = 2**20


class TemplateLimitError(Exception):
    """The template exceeds a bound, which the message names."""


class _Account:
    """What a rendering may still cost. A bound once exceeded stays so: Jinja takes some exceptions for answers."""

    def __init__(self) -> None:
        self.exceeded = ""
        self.open(0)

    def open(self, num_characters: int) -> None:
        """Begin anew, for a conversation of this size."""
        self.exceeded = ""
        self.work = self.left = _BASE_WORK + _WORK_PER_CHARACTER * num_characters
        self.seconds = _BASE_SECONDS + _SECONDS_PER_CHARACTER * num_characters
        self.end = time.thread_time() + self.seconds

    def require(self, holds: bool, limit: str) -> None:
        if not holds or self.exceeded:
            self.exceeded = self.exceeded or limit
            raise TemplateLimitError(self.exceeded)

    def pay(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            self.require(False, f"more work than writing {self.work} characters")

    def pay_round(self) -> None:
        self.left -= _ROUND
        if self.left < 0 or time.thread_time() > self.end:
            self.pay(0)
            self.require(False, f"more than {self.seconds:.0f} s of computing")

    def pay_for(self, value: Any, factor: int = 1) -> None:
        """Pay for all that a value holds, as often as it holds it."""
        if isinstance(value, str | bytes | range):
            self.pay((len(value) + 1) * factor)
        elif isinstance(value, list | tuple | set | frozenset):
            self.pay(_ITEM * factor)
            for item in value:
                self.pay_for(item, factor)
        elif isinstance(value, Mapping):
            self.pay(_ITEM * factor)
            for name, item in value.items():
                self.pay_for(name, factor)
                self.pay_for(item, factor)
        elif isinstance(value, Namespace):
            self.pay_for(value._Namespace__attrs, factor)
        else:
            self.pay(_ITEM * factor)


# --- operators -----------------------------------------------------------------------------------------------

_SEQUENCES = (str, list, tuple)
_WIDE_FIELD = re.compile(r"%[^%a-zA-Z]*(?:\d{4}|\*)")
_WIDE_NAMED_FIELD = re.compile(r"\)[#0\- +]*(?:\d{4}|\*|\d*\.(?:\d{4}|\*))")
"""The width of a field whose name stands in parentheses, which may be nested."""
_WIDE_FORMAT = re.compile(r"[:.][^{}]*(?:\d{4}|\{)")


def _pay_for_operator(account: _Account, operator: str, left: Any, right: Any) -> None:
    if operator == "+":
        if isinstance(left, str):
            account.pay(len(left) + len(right) if isinstance(right, str) else 0)
        elif isinstance(left, _SEQUENCES):
            account.pay(len(left))
            account.pay_for(right)
    elif operator == "%":
        if isinstance(left, str):
            _pay_for_format(account, left, right)
    elif isinstance(left, _SEQUENCES) or isinstance(right, _SEQUENCES):
        sequence, times = (left, right) if isinstance(left, _SEQUENCES) else (right, left)
        account.pay(max(0, int(times)) if isinstance(times, int) else 0)
        account.pay_for(sequence, max(1, int(times)) if isinstance(times, int) else 1)
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        account.require(bits <= _MAX_NUMBER, f"a number of more than {_MAX_NUMBER} bits")


def _pay_for_format(account: _Account, text: str, values: Any) -> None:
    is_wide = _WIDE_FIELD.search(text) or ("%(" in text and _WIDE_NAMED_FIELD.search(text))
    account.require(not is_wide, "a formatted field of a thousand characters or more")
    account.pay(len(text))
    account.pay_for(values, 1 + text.count("%"))
    account.pay(1000 * text.count("%"))


# --- filters -------------------------------------------------------------------------------------------------

_PLAIN_FILTERS = frozenset(
    {
        *("abs", "attr", "capitalize", "count", "d", "default", "e", "escape", "first", "float", "forceescape", "int"),
        *("items", "last", "length", "lower", "map", "reject", "rejectattr", "reverse", "safe", "select"),
        *("selectattr", "title", "trim", "upper", "filesizeformat"),
    }
)
"""They read a text, or hand on the items of a list."""
_OTHER_FILTERS = frozenset(
    {
        *("batch", "center", "dictsort", "format", "groupby", "indent", "join", "list", "max", "min", "replace"),
        *("round", "slice", "sort", "string", "sum", "tojson", "truncate", "unique", "urlencode", "wordcount"),
    }
)
"""They are paid for before they work; all that are named in neither are refused."""


def _bounded_filter(account: _Account, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passes_first = int(hasattr(function, "jinja_pass_arg"))

    def plain(*arguments: Any, **options: Any) -> Any:
        value = arguments[passes_first] if len(arguments) > passes_first else None
        account.pay(len(value) if isinstance(value, str) else _ITEM)
        return function(*arguments, **options)

    def other(*arguments: Any, **options: Any) -> Any:
        passed, given = arguments[:passes_first], [_as_list(argument) for argument in arguments[passes_first:]]
        _pay_for_filter(account, name, [*given, *options.values()])
        result = function(*passed, *given, **options)
        account.pay(len(result) if isinstance(result, str) else _ITEM)
        return result

    def refused(*arguments: Any, **options: Any) -> Any:
        why = "by which no two renderings are alike" if name == "random" else "whose work nothing bounds"
        account.require(False, f"the filter {name!r}, {why}")

    bounded = plain if name in _PLAIN_FILTERS else other if name in _OTHER_FILTERS else refused
    if passes_first:
        bounded.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return bounded


def _as_list(value: Any) -> Any:
    """What can be read once only, as a list."""
    return list(value) if isinstance(value, Iterator | types.GeneratorType) else value


def _pay_for_filter(account: _Account, name: str, arguments: Sequence[Any]) -> None:
    value, others = arguments[0], arguments[1:]
    if name == "format":
        _pay_for_format(account, str(value), others)
        return
    numbers = [abs(number) for number in others if isinstance(number, int)]
    account.require(max(numbers, default=0) <= _MAX_NUMBER, f"a number above {_MAX_NUMBER} for the filter {name!r}")
    texts = [len(text) for text in others if isinstance(text, str)]
    if name == "replace":
        account.pay((len(str(value)) + 1) * (1 + max(texts[1:], default=0)))
        return
    # what sorts compares each item some times; JSON is indented at every depth
    factor = 32 if name in ("sort", "unique", "groupby", "dictsort", "list") else 4
    account.pay_for(value, factor + 8 * max(numbers, default=0) * (name == "tojson"))
    account.pay_for(others)
    # what indents or joins writes a text for each line or item
    is_list = isinstance(value, Sequence) and (name == "join" or not isinstance(value, str))
    items = len(value) if is_list else str(value).count("\n") + 1 if name == "indent" else 1
    account.pay(items * (sum(texts) + sum(numbers)))
    if name == "sum" and any(isinstance(start, list | tuple) for start in others):
        account.pay_for(value, items)


# --- calls ---------------------------------------------------------------------------------------------------

_FREE = frozenset(("get", "items", "keys", "values", "startswith", "endswith"))
_METHODS = {
    str: frozenset(
        {
            *(
                "capitalize",
                "casefold",
                "count",
                "endswith",
                "find",
                "index",
                "isalnum",
                "isalpha",
                "isascii",
                "isdecimal",
            ),
            *(
                "isdigit",
                "isidentifier",
                "islower",
                "isnumeric",
                "isprintable",
                "isspace",
                "istitle",
                "isupper",
                "lower",
            ),
            *(
                "lstrip",
                "partition",
                "removeprefix",
                "removesuffix",
                "rfind",
                "rindex",
                "rpartition",
                "rsplit",
                "rstrip",
            ),
            *("split", "splitlines", "startswith", "strip", "swapcase", "title", "upper"),
            *("center", "expandtabs", "ljust", "rjust", "zfill", "join", "replace", "format", "format_map"),
        }
    ),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    range: frozenset(("count", "index")),
    float: frozenset(("is_integer",)),
}
_WIDENING = frozenset(("center", "expandtabs", "ljust", "rjust", "zfill"))


def _pay_for_call(
    account: _Account, function: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Any, ...]:
    """Pay for a call of what is not a macro; gives the arguments back, those that are read once as lists."""
    kind = type(function)
    if kind is Macro or kind is type:
        return arguments
    method = function if kind is types.BuiltinMethodType else getattr(function, "__wrapped__", function)
    if type(method) is not types.BuiltinMethodType:
        name = getattr(function, "__name__", "")
        account.require(name != "fromkeys", "the method 'fromkeys', whose work nothing bounds")
        if kind.__name__ == "TemplateDict":  # transformers' `dict`
            account.pay_for([*arguments, *options.values()])
        return arguments
    owner, name = method.__self__, method.__name__
    if name in _FREE and type(owner) in (dict, str):
        return arguments
    allowed: frozenset[str] = next((names for kind, names in _METHODS.items() if isinstance(owner, kind)), frozenset())
    account.require(name in allowed, f"the method {name!r} of a {type(owner).__name__}, whose work nothing bounds")
    arguments = tuple(map(_as_list, arguments))
    if not isinstance(owner, str):
        account.pay_for(owner)
        return arguments
    account.pay(len(owner))
    numbers = [abs(number) for number in arguments if isinstance(number, int)]
    if name in _WIDENING:
        account.require(max(numbers, default=8) <= _MAX_NUMBER, f"a width above {_MAX_NUMBER}")
        account.pay((owner.count("\t") + 1) * max(numbers, default=8))
    elif name == "replace" and len(arguments) > 1:
        account.pay((len(owner) + 1) * (1 + len(str(arguments[1]))))
    elif name == "join":
        account.pay_for(arguments)
        account.pay(len(owner) * max((len(items) for items in arguments if isinstance(items, Sequence)), default=0))
    elif name in ("format", "format_map"):
        account.require(not _WIDE_FORMAT.search(owner), "a formatted field of a thousand characters or more")
        account.pay_for([*arguments, *options.values()], 1 + owner.count("{"))
        account.pay(1000 * owner.count("{"))
    return arguments


# --- the environment -----------------------------------------------------------------------------------------


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which what may grow is paid for."""

    intercepted_binops = frozenset(("+", "*", "%", "**"))

    def __init__(self, own: Environment, account: _Account) -> None:
        super().__init__(
            trim_blocks=own.trim_blocks,
            lstrip_blocks=own.lstrip_blocks,
            keep_trailing_newline=own.keep_trailing_newline,
            extensions=[type(extension) for extension in own.extensions.values()],
        )
        self.account = account
        self.globals.update(own.globals)
        self.globals.pop("lipsum", None)
        self.tests.update(own.tests)
        self.filters.update({name: _bounded_filter(account, name, own.filters[name]) for name in own.filters})
        self.filters["_data"] = pass_context(lambda _, length: account.pay(length))
        self.filters["_sliced"] = self._sliced
        self.filters["_round"] = pass_context(lambda _, value: account.pay_round())
        self.filters["_built"] = self._built

    @pass_context
    def _built(self, context: Any, value: Any) -> Any:
        self.account.pay_for(value)
        return value

    @pass_context
    def _sliced(self, context: Any, value: Any) -> Any:
        if isinstance(value, _SEQUENCES):
            self.account.pay(len(value) if isinstance(value, str) else _ITEM * len(value))
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator, paid for."""
        _pay_for_operator(self.account, operator, left, right)
        return self.binop_table[operator](left, right)

    def call(self, context: Any, function: Any, /, *arguments: Any, **options: Any) -> Any:
        """A call, paid for."""
        self.account.pay(_ITEM * (len(arguments) + len(options)))
        arguments = _pay_for_call(self.account, function, arguments, options)
        result = super().call(context, function, *arguments, **options)
        if type(result) is list:
            self.account.pay(_ITEM * len(result))
        return result

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Instrumented(self).visit(tree)
        return tree


class _Instrumented(NodeTransformer):
    """Lets rounds, lists, slices and a template's own text be paid for, and constants be computed where they are."""

    def __init__(self, environment: _BoundedEnvironment) -> None:
        self._environment = environment

    def visit(self, node: nodes.Node, *arguments: Any, **options: Any) -> Any:
        """The node with what it holds, and with what pays for it, maybe before it."""
        node = self.generic_visit(node)
        if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
            paid = nodes.ExprStmt(self._filtered(nodes.Const(None), "_round"), lineno=node.lineno)
            node.body.insert(0, paid.set_environment(self._environment))
        elif isinstance(node, nodes.List | nodes.Tuple | nodes.Dict):
            is_constant = all(isinstance(item, nodes.Const) for item in node.items)
            if not is_constant and getattr(node, "ctx", "load") == "load":
                return self._filtered(node, "_built")
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return self._filtered(node, "_sliced")
        elif isinstance(node, nodes.Output):
            return self._paid_output(node)
        elif isinstance(node, nodes.BinExpr) and node.operator in self._environment.intercepted_binops:
            return self._computed(node)
        return node

    def _paid_output(self, node: nodes.Output) -> list[nodes.Node]:
        """What the template itself writes there is written as it is, and so paid for before it."""
        if not (num_characters := sum(map(_num_constant_characters, node.nodes))):
            return [node]
        paid = self._filtered(nodes.Const(num_characters), "_data")
        return [nodes.ExprStmt(paid, lineno=node.lineno).set_environment(self._environment), node]

    def _filtered(self, node: nodes.Expr, name: str) -> nodes.Node:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno).set_environment(self._environment)

    def _computed(self, node: nodes.BinExpr) -> nodes.Node:
        """A constant where both operands are, which other environments compute when they compile."""
        try:
            left, right = node.left.as_const(), node.right.as_const()
            value = self._environment.call_binop(None, node.operator, left, right)
        except TemplateLimitError:
            raise
        except Exception:  # no constants, or what raises where it is run
            return node
        return nodes.Const(value, lineno=node.lineno).set_environment(self._environment)


def _num_constant_characters(node: nodes.Expr) -> int:
    try:
        return len(str(node.as_const()))
    except Exception:  # no constant, which pays where it is written, or what raises there
        return 0


class BoundedTemplate:
    """A template that renders as transformers renders it, or raises TemplateLimitError."""

    def __init__(self, source: str, own: Environment) -> None:
        self._account = account = _Account()
        account.require(len(source) <= _MAX_TEMPLATE, f"{_MAX_TEMPLATE} characters of template")
        self._template: Template = _BoundedEnvironment(own, account).from_string(source)
        account.require(True, "")

        def written(value: Any) -> str:
            if type(value) is str:
                account.pay(len(value))
                return value
            account.pay_for(value, 1 if isinstance(value, str | int | float) else _ITEM)
            return builtins.str(value)

        def paid(values: Iterable[Any]) -> list[Any]:
            texts = [value if isinstance(value, str) else written(value) for value in values]
            account.pay(sum(map(len, texts)))
            return texts

        # Compiled templates pass what they write through `str` or `escape`, and what `~` joins through `str_join`.
        names = self._template.root_render_func.__globals__
        escape, markup_join = names["escape"], names["markup_join"]
        names["str"], names["str_join"] = written, lambda values: "".join(paid(values))
        names["escape"] = lambda value: escape(value if hasattr(value, "__html__") else written(value))
        names["markup_join"] = lambda values: markup_join(paid(values))

    def render(self, num_characters: int, **variables: Any) -> str:
        """A conversation of this size as the template writes it."""
        self._account.open(num_characters)
        try:
            text = self._template.render(**variables)
        finally:
            self._account.require(True, "")
        return text
