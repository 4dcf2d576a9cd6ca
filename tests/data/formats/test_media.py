"""Rows about pictures, videos and sounds are rejects: a reward model of texts would learn from what it cannot see."""

import json
from typing import Any

import pytest
from parsed_rows import parse_row

from rm_assets.data.formats.fast_path import simple_pair
from rm_assets.data.formats.preferences import ParsingRules, PreferenceError
from rm_assets.data.formats.two_lines import parse_two_lines
from rm_assets.data.tables.reasons import Reason

PLAIN = {"prompt": "What is this?", "chosen": "A boat.", "rejected": "A goat."}
MESSAGES = {
    "prompt": [{"role": "user", "content": "What is this?"}],
    "chosen": [{"role": "assistant", "content": "A boat."}],
    "rejected": [{"role": "assistant", "content": "A goat."}],
}
COMPARISON = {"prompt": "What is this?", "response_a": "A boat.", "response_b": "A goat.", "label": "A"}
RANKING = {"prompt": "What is this?", "responses": [{"text": "A boat.", "rank": 1}, {"text": "A goat.", "rank": 2}]}
FILLED = [
    {"images": ["zebra.png"]},
    {"image": "zebra.png"},
    {"image": {"bytes": "aGk=", "path": None}},
    {"images": [None, {"bytes": None, "path": "zebra.png"}]},
    {"videos": [["zebra.mp4"]]},
    {"video": 7},
    {"audio": {"array": [0.5], "sampling_rate": 16000}},
    {"audios": ["zebra.wav"]},
    {"image_path": "zebra.png"},
    {"image_urls": ["https://a.example/zebra.png"]},
    {"img": "zebra.png"},
    {"image_0": "zebra.png"},
    {"pixel_values": [0.5]},
    {"video_path": "zebra.mp4"},
    {"audio_file": "zebra.wav"},
    {"images": "['zebra.png']"},
]
EMPTY = [
    "[]",
    "nan",
    "[None]",
    None,
    [],
    "",
    {},
    [None],
    [[]],
    {"bytes": None, "path": None},
    [{"bytes": None, "path": None}],
    False,
]


@pytest.mark.parametrize("row", [PLAIN, MESSAGES, COMPARISON, RANKING])
@pytest.mark.parametrize("media", FILLED, ids=str)
def test_a_row_with_media_is_not_text(row: dict[str, Any], media: dict[str, Any]) -> None:
    with pytest.raises(PreferenceError, match=f"the field `{next(iter(media))}` is not empty") as error:
        parse_row(json.dumps(row | media))
    assert error.value.reason == Reason.NOT_TEXT
    assert "zebra" not in error.value.detail
    assert simple_pair(json.dumps(row | media).encode()) is None


@pytest.mark.parametrize("value", EMPTY, ids=str)
def test_an_empty_field_of_media_changes_nothing(value: Any) -> None:
    for row in (PLAIN, MESSAGES, COMPARISON, RANKING):
        [expected] = parse_row(json.dumps(row))
        assert parse_row(json.dumps(row | {"images": value, "audio": value})) == [expected]
    with pytest.raises(PreferenceError, match="not_text: a text contains the placeholder `<image>`, but the field"):
        parse_row(json.dumps(PLAIN | {"prompt": "<image>What is this?", "images": value}))


@pytest.mark.parametrize("place", ["prompt", "chosen", "rejected"])
def test_a_message_with_media_is_not_text(place: str) -> None:
    [message] = MESSAGES[place]
    row = MESSAGES | {place: [message | {"images": ["aGk="]}]}
    with pytest.raises(PreferenceError, match="not_text: the field `images` of a message is not empty"):
        parse_row(json.dumps(row))
    assert simple_pair(json.dumps(row).encode()) is None
    assert parse_row(json.dumps(MESSAGES | {place: [message | {"images": None}]})) == parse_row(json.dumps(MESSAGES))


def test_a_placeholder_is_a_word_where_no_field_is_for_it() -> None:
    asked = "How does the <image> element differ from <video>?"
    for others in ({}, {"margin": 1}, {"audio": None}):
        [preference] = parse_row(json.dumps(PLAIN | others | {"prompt": asked}))
        assert preference.prompt[0].content == asked


def test_an_argument_of_a_tool_and_a_field_of_unread_facts_are_no_media() -> None:
    call = {"function": {"name": "show", "arguments": {"image": "a.png"}}}
    prompt = [
        {"role": "user", "content": "Show it."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "done"},
    ]
    tools = [{"function": {"name": "show", "parameters": {"properties": {"image": {"type": "string"}}}}}]
    row = MESSAGES | {"prompt": prompt, "tools": tools, "facts": {"image": "a.png"}}
    [preference] = parse_row(json.dumps(row))
    assert preference.prompt[-1].content == "done"


def test_a_column_that_the_user_names_is_a_text_whatever_its_name() -> None:
    row = {"image": "What is this?", "chosen": "A boat.", "rejected": "A goat."}
    [preference] = parse_row(json.dumps(row), ParsingRules(columns={"prompt": "image"}))
    assert preference.prompt[0].content == "What is this?"


def test_one_of_two_lines_with_media_is_not_text() -> None:
    lines = [{"text": f"\n\nHuman: q\n\nAssistant: {reply}", "images": ["a.png"]} for reply in "ab"]
    with pytest.raises(PreferenceError, match="not_text: the field `images` is not empty"):
        parse_two_lines(*((number, json.dumps(line)) for number, line in enumerate(lines, start=1)))
