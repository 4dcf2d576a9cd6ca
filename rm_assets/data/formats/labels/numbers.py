"""Numbers as files have them: also as text, as exports of tables write them."""

import re
import sys
from collections.abc import Collection
from typing import Any

from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_ABSENT = frozenset({"", "nan", "null", "none", "na", "n/a", "<na>", "nil"})
"""What exports of tables write where there is no number."""


def number_of(value: Any, name: str) -> float | None:
    """A number, also as text, which is read exactly; None where there is none. Raises PreferenceError for the rest."""
    value = read_number(value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        raise PreferenceError(Reason.WRONG_TYPE, f"`{name}` is not a finite number")
    return float(value)


def read_number(value: Any) -> Any:
    """The number that a text writes, None where it says that there is none; every other value as it is."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in _ABSENT:
        return None
    return float(text) if _NUMBER.fullmatch(text) else value


def with_numbers(row: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """The row with the texts of these fields, and of lists in them, as numbers."""
    read = {
        name: list(map(read_number, value)) if isinstance(value, list) else read_number(value)
        for name, value in row.items()
        if name in fields and isinstance(value, str | list)
    }
    return row | read if read else row
