"""Rows that are about pictures, videos or sounds, which a reward model of texts never gets to see."""

from typing import Any

from rm_assets.data.formats.field_names import KNOWN, MEDIA, Row
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.records import Reason

_OTHER_OBJECTS = frozenset({"tools", "tool_calls", "arguments"})
"""Where a field of such a name is no message's."""


def require_no_media(row: Row) -> None:
    """Raise PreferenceError where a row, or a message of it, brings media, or a text has a placeholder for them.

    A placeholder counts beside a field for such media alone, though that is empty: else `<image>` is a word.
    """
    for name in MEDIA.keys() & row.keys():
        if holds_anything(row[name]):
            raise PreferenceError(Reason.NOT_TEXT, f"the field `{name}` is not empty; only texts are read")
        others = [value for other, value in row.items() if other not in MEDIA]
        if _is_anywhere(MEDIA[name], others):
            problem = f"a text has the placeholder `{MEDIA[name]}` beside the empty field `{name}`"
            raise PreferenceError(Reason.NOT_TEXT, problem)
    for name, value in row.items():
        if isinstance(value, list | dict) and name in KNOWN and name not in _OTHER_OBJECTS:
            _require_none_within(value)


def _require_none_within(value: list[Any] | dict[str, Any]) -> None:
    """Messages and responses are looked at, and what they hold but for tool calls."""
    if isinstance(value, dict):
        for name in MEDIA.keys() & value.keys():
            if holds_anything(value[name]):
                problem = f"the field `{name}` of a message is not empty; only texts are read"
                raise PreferenceError(Reason.NOT_TEXT, problem)
        value = [item for name, item in value.items() if name not in _OTHER_OBJECTS]
    for item in value:
        if isinstance(item, list | dict):
            _require_none_within(item)


def holds_anything(value: Any) -> bool:
    """Whether a value says anything: `[]`, `[null]` and `{"bytes": null, "path": null}` do not."""
    if isinstance(value, dict):
        return any(map(holds_anything, value.values()))
    if isinstance(value, list):
        return any(map(holds_anything, value))
    return value not in (None, False) and value != ""


def _is_anywhere(text: str, value: Any) -> bool:
    if isinstance(value, str):
        return text in value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_is_anywhere(text, item) for item in items)
