"""Why a chat template refuses a conversation: in the template's words, never quoting the row."""

import ast
import functools
import re
from contextlib import suppress

from jinja2.exceptions import UndefinedError

from rm_assets.display_text import printable

_MAX_CHARACTERS = 200
_MIN_CHARACTERS = 8
"""Of a literal that is worth showing without what follows it, such as `Unknown role: ` before the role."""
_LITERAL = re.compile(r"""'[^'\\]*+(?:\\.[^'\\]*+)*+'|"[^"\\]*+(?:\\.[^"\\]*+)*+\"""", re.DOTALL)
_QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")
_TYPES = {"str", "int", "float", "bool", "list", "dict", "tuple", "None", "NoneType", "Undefined", "method"}


def refusal(template: str, error: Exception) -> str:
    """The message of an error raised while rendering, as far as it is the template's own text.

    `raise_exception("Unknown role: " + message.role)` is shown as `Unknown role: …`.
    """
    message = str(error)
    if message and message in template:
        return _shown(message)
    if isinstance(error, TypeError | AttributeError | UndefinedError) and _names_only(message, template):
        return f"the template fails: {_shown(message)}"
    for literal in _literals(template):
        if message.startswith(literal):
            return _shown(literal) + " …" * (message != literal)
    return f"the template fails with {type(error).__name__}"


def _shown(text: str) -> str:
    return printable(" ".join(text[:_MAX_CHARACTERS].split()))


def _names_only(message: str, template: str) -> bool:
    """Whether a message quotes only types, and names from the template."""
    quoted = [one or other for one, other in _QUOTED.findall(message)]
    return all(word.removesuffix(" object") in _TYPES or word in template for word in quoted)


@functools.lru_cache(maxsize=16)
def _literals(template: str) -> tuple[str, ...]:
    """The longer string literals of a template, longest first."""
    found = set()
    for literal in _LITERAL.findall(template):
        with suppress(ValueError, SyntaxError):
            found.add(ast.literal_eval(literal.replace("\n", "\\n")))
    return tuple(sorted((text for text in found if len(text) >= _MIN_CHARACTERS), key=lambda text: (-len(text), text)))
