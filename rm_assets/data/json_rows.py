"""One line of JSON to one object: bounded in depth before it is parsed, and no known field given twice in it."""

import json
import re
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import msgspec

from rm_assets.data.preferences import PreferenceError
from rm_assets.data.records import Reason

MAX_DEPTH = 64
# Possessive, and the end quote optional: linear in the length of any text, also one whose strings never end.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


def json_object(text: str | bytes, *known_fields: Iterable[str]) -> dict[str, Any]:
    """The object that a line (text, or its UTF-8) holds; raises PreferenceError where it holds none.

    Of a field given twice a parser keeps the last one, silently; here a known field given twice is a reject. A JSON
    text has one colon per field, besides those inside strings, so that one count tells whether any field of any object
    was lost: `{"a": "b:", "a": [{"c": ":"}]}` has five colons, and what is parsed of it accounts for three.
    """
    is_text = isinstance(text, str)
    brackets = text.count("[") + text.count("{") if is_text else text.count(b"[") + text.count(b"{")  # type: ignore[arg-type]
    if brackets > MAX_DEPTH and _is_too_deep(_without_strings(text)):
        raise PreferenceError(Reason.NOT_JSON, f"nested more than {MAX_DEPTH} deep")
    try:
        row = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise PreferenceError(Reason.NOT_JSON, "not one JSON value") from None
    if not isinstance(row, dict):
        raise PreferenceError(Reason.NOT_AN_OBJECT, "a JSON value, but no object")
    num_colons, escaped = (text.count(":"), "\\u003" in text) if is_text else (text.count(b":"), b"\\u003" in text)  # type: ignore[arg-type,operator]
    if (num_colons != _num_colons(row) or escaped) and _without_strings(text).count(":") != _num_fields(row):
        _require_single(text, set().union(*known_fields))
    return row


def _without_strings(text: str | bytes) -> str:
    return _STRING.sub("", text if isinstance(text, str) else text.decode())


def _is_too_deep(marks: str) -> bool:
    if marks.count("[") + marks.count("{") <= MAX_DEPTH:
        return False
    steps = (1 if mark in "[{" else -1 for mark in marks if mark in "[{]}")
    return any(depth > MAX_DEPTH for depth in accumulate(steps))


def _num_colons(value: Any) -> int:
    """The colons that a text of this value has, if none of them is escaped: one a field, and those in its strings."""
    if isinstance(value, str):
        return value.count(":")
    if isinstance(value, dict):
        return len(value) + sum([name.count(":") + _num_colons(field) for name, field in value.items()])
    return sum(map(_num_colons, value)) if isinstance(value, list) else 0


def _num_fields(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_num_fields, value.values()))
    return sum(map(_num_fields, value)) if isinstance(value, list) else 0


def _require_single(text: str | bytes, known_fields: set[str]) -> None:
    def require(fields: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in fields]
        for name in known_fields.intersection(names):
            if names.count(name) > 1:
                raise PreferenceError(Reason.REPEATED_FIELD, f"an object gives `{name}` {names.count(name)} times")

    # Numbers do not matter here, and Python's own refuses very long ones.
    json.loads(text, object_pairs_hook=require, parse_int=len, parse_float=len)
