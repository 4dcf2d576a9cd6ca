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


def json_object(text: str, *known_fields: Iterable[str]) -> dict[str, Any]:
    """The object that a line holds; raises PreferenceError where it holds none.

    Of a field given twice a parser keeps the last one, silently; here a known field given twice is a reject. Outside
    strings a JSON text has one colon per field, so that one count tells whether any field of any object was lost:
    `{"a": 1, "a": [{"b": ":"}]}` has three colons, and parsed two fields.
    """
    marks = _STRING.sub("", text)
    if _is_too_deep(marks):
        raise PreferenceError(Reason.NOT_JSON, f"nested more than {MAX_DEPTH} deep")
    try:
        row = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise PreferenceError(Reason.NOT_JSON, "not one JSON value") from None
    if not isinstance(row, dict):
        raise PreferenceError(Reason.NOT_AN_OBJECT, "a JSON value, but no object")
    if marks.count(":") != _num_fields(row):
        _require_single(text, set().union(*known_fields))
    return row


def _is_too_deep(marks: str) -> bool:
    if marks.count("[") + marks.count("{") <= MAX_DEPTH:
        return False
    steps = (1 if mark in "[{" else -1 for mark in marks if mark in "[{]}")
    return any(depth > MAX_DEPTH for depth in accumulate(steps))


def _num_fields(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_num_fields, value.values()))
    return sum(map(_num_fields, value)) if isinstance(value, list) else 0


def _require_single(text: str, known_fields: set[str]) -> None:
    def require(fields: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in fields]
        for name in known_fields.intersection(names):
            if names.count(name) > 1:
                raise PreferenceError(Reason.REPEATED_FIELD, f"an object gives `{name}` {names.count(name)} times")

    # Numbers do not matter here, and Python's own refuses very long ones.
    json.loads(text, object_pairs_hook=require, parse_int=len, parse_float=len)
