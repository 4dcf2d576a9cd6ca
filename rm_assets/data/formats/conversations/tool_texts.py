"""Tools and tool calls as JSON text, in the order of the file: templates write them out as they are given.

Members of objects that are null are dropped, since Arrow gives every row the members of all others. What a line holds
as JSON text never went through Arrow, and keeps its nulls. What counts as equal is compared by `sorted_json`.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from rm_assets.data.formats.json_lines import parse_text
from rm_assets.data.formats.preferences import Message, PreferenceError
from rm_assets.data.tables.reasons import Reason

Listed = list[Any] | str | None
"""A list of objects, a list of JSON texts of objects, or the JSON text of either."""


class CallRecord(Struct, kw_only=True):
    """What the `value` of a `function_call` holds as JSON text, alone or in a list."""

    name: str
    arguments: dict[str, Any] | str


# --- as files write them -------------------------------------------------------------------------------------


def tools_text(tools: Listed) -> str:
    """The tools of a row as JSON text, or empty."""
    return _listed_text(tools, "tools")


def calls_text(calls: Listed) -> str | None:
    """The tool calls of a message as JSON text; None if there are none."""
    return _listed_text(calls, "tool_calls") or None


def function_call_text(text: str) -> str:
    """The tool calls that ShareGPT's `function_call` holds as JSON text."""
    what = "the value of a `function_call`"
    try:
        calls = msgspec.convert(parse_text(text, what), list[CallRecord] | CallRecord)
    except (msgspec.MsgspecError, RecursionError):
        raise PreferenceError(Reason.WRONG_TYPE, f"{what} is not the JSON text of `name` and `arguments`") from None
    listed = calls if isinstance(calls, list) else [calls]
    return _json([{"type": "function", "function": call} for call in listed])


def _listed_text(given: Listed, name: str) -> str:
    items = _list_of_text(given, name) if isinstance(given, str) else [_without_nulls(item) for item in given or []]
    objects = [_object(item, f"item {number} of `{name}`") for number, item in enumerate(items, start=1)]
    return _json(objects) if objects else ""


def _list_of_text(text: str, name: str) -> list[Any]:
    try:
        parsed = parse_text(text, f"`{name}` is a string that") if text.strip() else None
        return msgspec.convert(parsed, list[Any] | None) or []
    except (msgspec.MsgspecError, RecursionError):
        raise PreferenceError(Reason.WRONG_TYPE, f"`{name}` is a string that is not a JSON list") from None


def _object(item: Any, what: str) -> dict[str, Any]:
    if isinstance(item, str):
        try:
            item = parse_text(item, f"{what} is a string that")
        except (msgspec.MsgspecError, RecursionError):
            item = None
        if not isinstance(item, dict):
            raise PreferenceError(Reason.WRONG_TYPE, f"{what} is a string that is not a JSON object")
    if not isinstance(item, dict):
        raise PreferenceError(Reason.WRONG_TYPE, f"{what} is not an object")
    return item


def _without_nulls(value: Any) -> Any:
    """The value without members that are null; items of lists stay, as `[1, null]` has two."""
    if isinstance(value, dict):
        return {name: _without_nulls(member) for name, member in value.items() if member is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


# --- what counts as equal ------------------------------------------------------------------------------------


def sorted_json(text: str) -> str:
    """JSON text that is the same for values that differ only in the order of their members."""
    return msgspec.json.encode(msgspec.json.decode(text), order="sorted").decode()


def same_messages(one: Sequence[Message], other: Sequence[Message]) -> bool:
    """Whether conversations are equal, up to the order of members in their tool calls."""
    return one == other or (
        any(message.tool_calls for message in one) and len(one) == len(other) and all(map(same_message, one, other))
    )


def same_message(one: Message, other: Message) -> bool:
    """Whether messages are equal, up to the order of members in their tool calls."""
    if not one.tool_calls or not other.tool_calls:
        return one == other
    return msgspec.structs.replace(one, tool_calls=sorted_json(one.tool_calls)) == msgspec.structs.replace(
        other, tool_calls=sorted_json(other.tool_calls)
    )
