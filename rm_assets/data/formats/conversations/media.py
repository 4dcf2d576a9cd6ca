"""Rows that are about pictures, videos or sounds, which a reward model of texts never gets to see."""

from collections.abc import Iterable
from typing import Any

from rm_assets.data.formats.field_names import KNOWN, MEDIA, Row
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.formats.unread_fields import UNREAD, require_read
from rm_assets.data.tables.reasons import Reason

_NAMES = frozenset(MEDIA)
_LOOKED_FOR = _NAMES | UNREAD
_NOTHING = frozenset({"", "[]", "{}", "[none]", "[null]", "nan", "none", "null", "<na>"})
"""What tables write where there is nothing."""
_OTHER_OBJECTS = frozenset({"tools", "tool_calls", "arguments"})
"""Where a field of such a name is no message's."""


def require_no_media(row: Row) -> None:
    """Raise PreferenceError where a row, or a message of it, brings media, or a text has a placeholder for them.

    A placeholder counts beside a field for such media alone, though that is empty: else `<image>` is a word.
    """
    if not _NAMES.isdisjoint(row):
        _require_empty(row, "")
        texts = [value for name, value in row.items() if name not in MEDIA]
        for name in _NAMES.intersection(row):
            if _is_anywhere(MEDIA[name], texts):
                problem = f"a text has the placeholder `{MEDIA[name]}` beside the empty field `{name}`"
                raise PreferenceError(Reason.NOT_TEXT, problem)
    for name, value in row.items():
        if (type(value) is list or type(value) is dict) and name in KNOWN and name not in _OTHER_OBJECTS:
            _require_none_within(value)


def _require_none_within(value: list[Any] | dict[str, Any]) -> None:
    """Messages and responses are looked at, and what they hold but for tool calls; it is called for most lines.

    Other fields that are not read are looked for here, too, as one walk costs less than two.
    """
    items: Iterable[Any] = value
    if type(value) is dict:
        if not _LOOKED_FOR.isdisjoint(value):
            _require_empty(value, " of a message")
            require_read(value)
        items = value.values() if _OTHER_OBJECTS.isdisjoint(value) else _message_fields(value)
    for item in items:
        if type(item) is list or type(item) is dict:
            _require_none_within(item)


def _message_fields(message: dict[str, Any]) -> list[Any]:
    return [item for name, item in message.items() if name not in _OTHER_OBJECTS]


def _require_empty(fields: dict[str, Any], of: str) -> None:
    for name in sorted(_NAMES.intersection(fields)):
        if holds_anything(fields[name]):
            raise PreferenceError(Reason.NOT_TEXT, f"the field `{name}`{of} is not empty; only texts are read")


def holds_anything(value: Any) -> bool:
    """Whether a value says anything: `[]`, also as text, `[null]` and `{"bytes": null, "path": null}` do not."""
    if isinstance(value, dict):
        return any(map(holds_anything, value.values()))
    if isinstance(value, list):
        return any(map(holds_anything, value))
    return value not in (None, False) and not (isinstance(value, str) and value.strip().lower() in _NOTHING)


def _is_anywhere(text: str, value: Any) -> bool:
    if isinstance(value, str):
        return text in value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_is_anywhere(text, item) for item in items)
