"""Tools, tool calls and reasoning under names that are not read are rejects, as a pair without them says less."""

import json
from typing import Any

import pytest
from parsed_rows import parse_row

from rm_assets.data.formats.fast_path import simple_pair
from rm_assets.data.formats.preferences import ParsingRules, PreferenceError

ASKED = {"role": "user", "content": "Is it cold in Oslo?"}
REPLY = {"role": "assistant", "content": "It is."}
ROW = {"prompt": [ASKED], "chosen": [REPLY], "rejected": [{"role": "assistant", "content": "No."}]}
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize(
    ("field", "value", "read_as"),
    [
        ("function_call", {"name": "weather", "arguments": "{}"}, "tool_calls"),
        ("thought", "Oslo lies in the north.", "reasoning_content"),
        ("thoughts", "Oslo lies in the north.", "reasoning_content"),
        ("thinking_content", "Oslo lies in the north.", "reasoning_content"),
        ("reasoning_text", "Oslo lies in the north.", "reasoning_content"),
        ("thinking_blocks", [{"type": "thinking", "thinking": "Oslo lies in the north."}], "reasoning_content"),
        ("reasoning_details", [{"type": "reasoning.text", "text": "Oslo lies in the north."}], "reasoning_content"),
        ("tools", [WEATHER], "tools` of the row"),
        ("functions", [WEATHER], "tools` of the row"),
    ],
)
def test_a_message_that_says_something_in_a_field_that_is_not_read_is_a_reject(
    field: str, value: Any, read_as: str
) -> None:
    row = ROW | {"chosen": [REPLY | {field: value}]}
    with pytest.raises(PreferenceError, match=f"unsupported_field: the field `{field}` of a message .* `{read_as}"):
        parse_row(json.dumps(row))
    assert simple_pair(json.dumps(row).encode()) is None
    for empty in (None, "", [], {}):
        assert parse_row(json.dumps(ROW | {"chosen": [REPLY | {field: empty}]})) == parse_row(json.dumps(ROW))


def test_reasoning_that_is_read_may_stand_under_another_name_too() -> None:
    reply = REPLY | {"reasoning": "North.", "reasoning_details": [{"type": "reasoning.text", "text": "North."}]}
    [read] = parse_row(json.dumps(ROW | {"chosen": [reply]}))
    assert read.chosen[0].reasoning_content == "North."


def test_functions_of_a_row_are_tools_by_the_setting_alone() -> None:
    for functions in ([WEATHER], json.dumps([WEATHER])):
        with pytest.raises(PreferenceError, match="unsupported_field: the field `functions` is not read"):
            parse_row(json.dumps(ROW | {"functions": functions}))
        [read] = parse_row(json.dumps(ROW | {"functions": functions}), ParsingRules(columns={"tools": "functions"}))
        assert json.loads(read.tools) == [WEATHER]
    assert parse_row(json.dumps(ROW | {"functions": ["sort", "search"]})) == parse_row(json.dumps(ROW))


def test_functions_of_a_request_are_a_reject() -> None:
    row = {"preferred_output": ROW["chosen"], "non_preferred_output": ROW["rejected"]}
    request = {"messages": ROW["prompt"], "tools": [WEATHER]}
    [read] = parse_row(json.dumps(row | {"input": request}))
    assert json.loads(read.tools) == [WEATHER]
    with pytest.raises(PreferenceError, match="unsupported_field: the field `functions` of the request is not read"):
        parse_row(json.dumps(row | {"input": request | {"functions": [WEATHER]}}))
