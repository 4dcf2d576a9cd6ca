"""Fields that hold tools, tool calls or reasoning under names that are not read: without them a row says less."""

from typing import Any

from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason

_READ_AS = {
    "function_call": "tool_calls",
    "functions": "tools",
    "tools": "tools",
    **dict.fromkeys(
        ("thought", "thoughts", "thinking_content", "thinking_blocks", "reasoning_text", "reasoning_details"),
        "reasoning_content",
    ),
}
UNREAD = frozenset(_READ_AS)
"""What to look for; `tools` are read of rows and requests, not of messages."""
_REASONING = ("reasoning_content", "reasoning", "thinking")


def require_read(fields: dict[str, Any]) -> None:
    """Raise PreferenceError where a message or a request says something in a field that is not read.

    Reasoning that stands under a name that is read may stand under another one, too.
    """
    is_message = "role" in fields or "from" in fields
    for name in sorted(UNREAD.intersection(fields)):
        read_as = _READ_AS[name]
        if not fields[name] or (name == "tools" and not is_message):
            continue
        if read_as == "reasoning_content" and any(fields.get(other) for other in _REASONING):
            continue
        where = "a message" if is_message else "the request"
        place = " of the row" if read_as == "tools" else ""
        problem = f"the field `{name}` of {where} is not read; give it as `{read_as}`{place}"
        raise PreferenceError(Reason.UNSUPPORTED_FIELD, problem)


def require_no_functions(row: dict[str, Any]) -> None:
    """Raise PreferenceError where a row has tools as `functions`, as OpenAI's requests once had."""
    functions = row.get("functions")
    is_listed = isinstance(functions, list) and any(isinstance(item, dict) and "name" in item for item in functions)
    is_written = isinstance(functions, str) and functions.lstrip().startswith("[{") and '"name"' in functions
    if (is_listed or is_written) and not row.get("tools"):
        problem = (
            'the field `functions` is not read; the setting columns says that it holds tools: {"tools": "functions"}'
        )
        raise PreferenceError(Reason.UNSUPPORTED_FIELD, problem)
