"""What rows of annotation files state: their sound preferences, or the reason why there are none."""

import json
from typing import Any

import pytest

from rm_assets.data.formats.parsing import parse_line
from rm_assets.data.formats.preferences import ParsingRules, Preference, PreferenceError
from rm_assets.data.formats.validity import require_valid
from rm_assets.data.tables.reasons import Reason


def parse_row(text: str, rules: ParsingRules | None = None) -> list[Preference]:
    """The preferences of one line of JSON, sound or not."""
    return parse_line(text, rules or ParsingRules()).preferences


def read(row: dict[str, Any], **rules: Any) -> list[Preference]:
    """The preferences of a row, all of which must be sound."""
    found = parse_row(json.dumps(row), ParsingRules(**rules))
    for preference in found:
        require_valid(preference)
    return found


def chosen(row: dict[str, Any], **rules: Any) -> str | None:
    """The chosen reply of a row's one pair, whose prompt is `2+2?`."""
    [pair] = read(row, **rules)
    assert [message.content for message in pair.prompt] == ["2+2?"]
    return pair.chosen[0].content


def reason_for(row: dict[str, Any], **rules: Any) -> Reason:
    """Why a row is a reject."""
    with pytest.raises(PreferenceError) as error:
        read(row, **rules)
    return error.value.reason
