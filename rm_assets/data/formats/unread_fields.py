"""Fields that are not read although they change what a row means: such rows are rejects.

These are media, which a reward model of texts never sees, variables of the chat template, and tools, tool calls and
reasoning under names that no format has.
"""

from collections.abc import Iterable
from typing import Any

from rm_assets.data.formats.field_names import KNOWN, MEDIA, Row
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason


def require_only_read_fields(row: Row) -> None:
    """Raise PreferenceError where a row, or a message of it, has content in a field that is not read."""
    require_no_template_kwargs(row)
    _require_no_functions(row)
    require_no_media(row)


# --- tools, tool calls and reasoning -------------------------------------------------------------------------

_READ_AS = {
    "function_call": "tool_calls",
    "functions": "tools",
    "tools": "tools",
    **dict.fromkeys(
        ("thought", "thoughts", "thinking_content", "thinking_blocks", "reasoning_text", "reasoning_details"),
        "reasoning_content",
    ),
}
_UNREAD = frozenset(_READ_AS)
"""`tools` are read of rows and requests, not of messages."""
_REASONING = ("reasoning_content", "reasoning", "thinking")


def _require_read(fields: dict[str, Any]) -> None:
    """Raise PreferenceError where a message or a request has content in a field that is not read.

    Reasoning under a name that is read may be repeated under another one.
    """
    is_message = "role" in fields or "from" in fields
    for name in sorted(_UNREAD.intersection(fields)):
        read_as = _READ_AS[name]
        if not fields[name] or (name == "tools" and not is_message):
            continue
        if read_as == "reasoning_content" and any(fields.get(other) for other in _REASONING):
            continue
        where = "a message" if is_message else "the request"
        place = " of the row" if read_as == "tools" else ""
        problem = f"the field `{name}` of {where} is not read; give it as `{read_as}`{place}"
        raise PreferenceError(Reason.UNSUPPORTED_FIELD, problem)


def _require_no_functions(row: Row) -> None:
    """Raise PreferenceError where a row has tools as `functions`, as OpenAI's requests once had."""
    functions = row.get("functions")
    is_listed = isinstance(functions, list) and any(isinstance(item, dict) and "name" in item for item in functions)
    is_written = isinstance(functions, str) and functions.lstrip().startswith("[{") and '"name"' in functions
    if (is_listed or is_written) and not row.get("tools"):
        problem = 'the field `functions` is not read; if it holds tools, set columns to {"tools": "functions"}'
        raise PreferenceError(Reason.UNSUPPORTED_FIELD, problem)


# --- variables of the chat template --------------------------------------------------------------------------


def require_no_template_kwargs(row: Row) -> None:
    """Raise PreferenceError where a row sets variables of its template, which are not given to it."""
    request = row.get("input")  # in OpenAI's format
    holders = (row, request) if isinstance(request, dict) else (row,)
    if all(map(_sets_nothing, (holder.get("chat_template_kwargs") for holder in holders))):
        return
    problem = "`chat_template_kwargs` is not read; the setting chat_template can name a template that sets them itself"
    raise PreferenceError(Reason.UNSUPPORTED_FIELD, problem)


def _sets_nothing(kwargs: Any) -> bool:
    if isinstance(kwargs, str):
        return kwargs.strip() in ("", "{}", "null")
    return not kwargs or (isinstance(kwargs, dict) and all(value is None for value in kwargs.values()))


# --- media ---------------------------------------------------------------------------------------------------

_NAMES = frozenset(MEDIA)
_SEARCHED = _NAMES | _UNREAD
_NOTHING = frozenset({"", "[]", "{}", "[none]", "[null]", "nan", "none", "null", "<na>"})
"""What tables write where there is nothing."""
_OTHER_OBJECTS = frozenset({"tools", "tool_calls", "arguments"})
"""Fields whose members are not those of messages."""


def require_no_media(row: Row) -> None:
    """Raise PreferenceError where a row, or a message of it, brings media, or a text has a placeholder for them.

    A placeholder counts only if the row has a field for such media, even an empty one: otherwise `<image>` is a word.
    """
    if not _NAMES.isdisjoint(row):
        _require_empty(row, "")
        texts = [value for name, value in row.items() if name not in MEDIA]
        for name in _NAMES.intersection(row):
            if _is_anywhere(MEDIA[name], texts):
                problem = f"a text contains the placeholder `{MEDIA[name]}`, but the field `{name}` is empty"
                raise PreferenceError(Reason.NOT_TEXT, problem)
    for name, value in row.items():
        if (type(value) is list or type(value) is dict) and name in KNOWN and name not in _OTHER_OBJECTS:
            _require_none_within(value)


def _require_none_within(value: list[Any] | dict[str, Any]) -> None:
    """Check messages and responses, and what they hold, except tool calls; called for most lines.

    Other fields that are not read are checked here, too, as one walk costs less than two.
    """
    items: Iterable[Any] = value
    if type(value) is dict:
        if not _SEARCHED.isdisjoint(value):
            _require_empty(value, " of a message")
            _require_read(value)
        items = value.values()
        if not _OTHER_OBJECTS.isdisjoint(value):
            items = [item for name, item in value.items() if name not in _OTHER_OBJECTS]
    for item in items:
        if type(item) is list or type(item) is dict:
            _require_none_within(item)


def _require_empty(fields: dict[str, Any], of: str) -> None:
    for name in sorted(_NAMES.intersection(fields)):
        if _holds_anything(fields[name]):
            raise PreferenceError(Reason.NOT_TEXT, f"the field `{name}`{of} is not empty; only text is read")


def _holds_anything(value: Any) -> bool:
    """Whether a value holds anything: `[]`, also as text, `[null]` and `{"bytes": null, "path": null}` do not."""
    if isinstance(value, dict):
        return any(map(_holds_anything, value.values()))
    if isinstance(value, list):
        return any(map(_holds_anything, value))
    return value not in (None, False) and not (isinstance(value, str) and value.strip().lower() in _NOTHING)


def _is_anywhere(text: str, value: Any) -> bool:
    if isinstance(value, str):
        return text in value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_is_anywhere(text, item) for item in items)
