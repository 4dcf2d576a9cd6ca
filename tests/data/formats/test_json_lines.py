"""One line to one object: no field lost, no depth too great, and time in proportion to the line."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.data.formats.json_lines import MAX_DEPTH, json_object
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason

KNOWN = {"prompt", "role"}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='{}[]:,"\\ \n\u2028é\x00'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='a:"\\{'), inner, max_size=3),
)


@given(row=st.dictionaries(st.text(), VALUES), escaped=st.booleans())
def test_an_object_without_repetition_is_read_as_it_is(row: dict, escaped: bool) -> None:
    assert json_object(json.dumps(row, ensure_ascii=escaped), KNOWN | {"a"}) == row


@pytest.mark.parametrize(
    "text",
    [
        '{"prompt": 1, "prompt": 1}',
        '{"prompt": 1, "\\u0070rompt": 2}',
        '{"prompt" : "a\\":", "b": {"c": ":"}, "prompt"\t:2}',
        '{"chosen": [{"role": "user", "role": "assistant"}]}',
        '{"prompt": 1, "number": ' + "9" * 4000 + ', "prompt": 2}',
    ],
)
def test_a_known_field_given_twice_in_one_object_is_a_reject(text: str) -> None:
    with pytest.raises(PreferenceError, match="2 times") as error:
        json_object(text, KNOWN)
    assert error.value.reason == Reason.REPEATED_FIELD


def test_a_field_that_nobody_reads_may_be_given_twice_and_a_known_one_in_two_objects() -> None:
    assert json_object('{"note": 1, "note": 2, "prompt": 3}', KNOWN) == {"note": 2, "prompt": 3}
    assert json_object('{"a": {"role": 1}, "b": {"role": 2}}', KNOWN) == {"a": {"role": 1}, "b": {"role": 2}}


@pytest.mark.parametrize("name", ["tools", "tool_calls"])
@pytest.mark.parametrize(
    "repeating",
    [
        '{"function": 1, "function": 1}',
        '{"function": {"arguments": {"q": 1, "\\u0071": 2}}}',
        '{"b": [[{"": 1, "": 2}]]}',
    ],
)
def test_no_field_of_a_tool_or_a_call_may_be_given_twice(name: str, repeating: str) -> None:
    for line in (f'{{"{name}": [1, {repeating}]}}', f'{{"chosen": [{{"role": 1, "{name}": {repeating}}}]}}'):
        with pytest.raises(PreferenceError, match=f"an object in `{name}` repeats a field") as error:
            json_object(line, KNOWN)
        assert error.value.reason == Reason.REPEATED_FIELD
    assert json_object(f'{{"note": {repeating}, "{name}": [{{"a": 1}}, {{"a": 2}}]}}', KNOWN)


def test_depth_is_bounded() -> None:
    def nested(depth: int) -> str:
        return '{"a": ' * (depth - 1) + "[" + "]" + "}" * (depth - 1)

    assert json_object(nested(MAX_DEPTH), KNOWN)
    assert json_object(json.dumps({"a": "[" * 1000, "b": [[]] * 1000}), KNOWN)
    with pytest.raises(PreferenceError, match="nested more than 64 levels deep"):
        json_object(nested(MAX_DEPTH + 1), KNOWN)


@pytest.mark.parametrize("text", ['{"a": "' + '\\"' * 500_000, '"' * 1_000_001, "[" * 1_000_000, "[]" * 500_000])
def test_a_hostile_line_takes_no_longer_than_its_length_asks(text: str) -> None:
    started = time.process_time()
    with pytest.raises(PreferenceError):
        json_object(text, KNOWN)
    assert time.process_time() - started < 5
