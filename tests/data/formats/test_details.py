"""What a reject says: what was found, where, and the next step, but never the row's own text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsed_rows import parse_row

from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason

PYTHON = "is Python, not JSON: write the line with json.dumps(), not str()"

NUL = "NUL bytes, as an interrupted write or copy leaves them: deliver the file again"
LIST = "a file that is a single list of rows must end in .json"


def refused(line: str | dict[str, Any]) -> PreferenceError:
    with pytest.raises(PreferenceError) as error:
        parse_row(line if isinstance(line, str) else json.dumps(line))
    return error.value


# --- what is not JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"margin": NaN}', "NaN is not JSON: write null (byte 11)"),
        ('{"margin": -Infinity, "a": 1}', "-Infinity is not JSON: write null (byte 12)"),
        ('{"margin": inf}', "inf is not JSON: write null (byte 11)"),
        ('{"margin": nan}', "nan is not JSON: write null (byte 15)"),
        ('{"margin": undefined}', "undefined is not JSON: write null (byte 11)"),
        ('{"tie": False}', f"False {PYTHON} (byte 8)"),
        ('{"tie": None}', f"None {PYTHON} (byte 8)"),
        ("{'prompt': 'zebra'}", "single quotes are not JSON: write the line with json.dumps(), not str() (byte 1)"),
        ("{“prompt”: 1}", "typographic quotes are not JSON: use straight ones (byte 1)"),
        ('{"a": 1,}', "trailing comma in object (byte 8)"),
        ('{"a": [1,]}', "trailing comma in array (byte 9)"),
        ('{"a": 1}{"a": 2}', "a second value after the first: write one object per line (byte 9)"),
        ('{"a": 1}, {"a": 2}', "a second value after the first: write one object per line (byte 9)"),
        ('{"a": 1} // zebra', "text after the value (byte 10)"),
        ('{"a": 1', "the line ends inside the value: write one object per line"),
        ('{"a": "zebra', "the line ends inside the value: write one object per line"),
        ('{"a": "\\ud800"}', "an escape is half of a surrogate pair"),
        ('{"a": "zebra\tNone"}', "a control character in a string is not escaped (byte 12)"),
        ('{"a": "None\t"}', "a control character in a string is not escaped (byte 11)"),
        ('{"a": 1e999}', "a number is out of range"),
        ('{"a": "\\x"}', "invalid escape character in string (byte 9)"),
        ('{"a": zebra}', "invalid character (byte 6)"),
        ('{"a": "b" "None": 1}', "expected ',' or '}' (byte 10)"),
        ("\ufeff{}", "a byte order mark before the value (byte 0)"),
        ("\0\0", f"{NUL} (byte 0)"),
        ('{"a": 1}\0\0\0', f"{NUL} (byte 9)"),
        ('{"a": "zebra\0"}', f"{NUL} (byte 12)"),
        ('{"a": \0', f"{NUL} (byte 6)"),
        ("[", f"the line ends inside a list: {LIST}"),
        ('  [{"a": 1},', f"the line ends inside a list: {LIST}"),
        ('{"a": 1},', f"a comma after the value: write one object per line; {LIST} (byte 9)"),
        ('{"a": [1]} , ', f"a comma after the value: write one object per line; {LIST} (byte 12)"),
        ('  "a": "zebra",', "a field of an object that spans lines: write one object per line (byte 6)"),
        ("  },", f"the end of an object or a list that spans lines: write one object per line; {LIST} (byte 2)"),
        ("]", f"the end of an object or a list that spans lines: write one object per line; {LIST} (byte 0)"),
        ('\u00a0{"a": 1}', "U+00A0 is not white space in JSON: remove it (byte 0)"),
        ('\u200b{"a": 1}', "U+200B is not white space in JSON: remove it (byte 0)"),
        ('{"a": 1}\u3000', "U+3000 is not white space in JSON: remove it (byte 9)"),
        ('{"a":\u20031}', "U+2003 is not white space in JSON: remove it (byte 5)"),
        ("zebra,chosen", "the line does not begin with an object (byte 0)"),
        ("  # zebra", "the line does not begin with an object (byte 2)"),
        ("<<<<<<< HEAD", "the line does not begin with an object (byte 0)"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_line_that_is_not_json_says_where_and_what_to_write(line: str, problem: str) -> None:
    error = refused(line)
    assert (error.reason, error.detail) == (Reason.NOT_JSON, f"not a single JSON value: {problem}")


@given(st.text("{}[]:,\"'\\ \nNaTrue-Inf1/\u201c\u00e9\x01", max_size=24))
def test_any_text_is_told_in_words_that_are_not_its_own(text: str) -> None:
    try:
        parse_row(f'{{"zebra": "{text}')
    except PreferenceError as error:
        assert "\u00e9" not in error.detail
        assert len(error.detail) < 250


@pytest.mark.parametrize(
    ("line", "kind"), [('"zebra"', "string"), ("7", "number"), ("true", "boolean"), ("null", "null")]
)
def test_a_value_that_is_no_object_is_named(line: str, kind: str) -> None:
    assert refused(line).detail == f"the line is a JSON {kind}, not an object"


def test_a_list_in_a_line_is_told_the_name_that_its_file_should_have() -> None:
    told = "the line is a JSON list, not an object; a file that is a single list of rows must end in .json"
    assert refused("[{}]").detail == told


# --- missing and mistyped fields -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason", "found"),
    [
        (
            {"question": "zebra", "good": "a", "bad": "b"},
            Reason.UNKNOWN_FORMAT,
            "`question`, `good`, `bad`; the nearest format is plain, which also needs `chosen` and `rejected`",
        ),
        (
            {"prompt": "zebra", "output_1": "a", "winner": 1},
            Reason.UNKNOWN_FORMAT,
            "`prompt`, `output_1`, `winner`; the nearest format is comparison, which also needs `output_2`",
        ),
        (
            {"prompt": "zebra", "chosen": "a", "y_l": "b"},
            Reason.MISSING_FIELD,
            "`prompt`, `chosen`, `y_l`; the nearest format is plain, which also needs `rejected`",
        ),
        (
            {"chosen": "zebra", "rejected": "a", "ask": "b"},
            Reason.MISSING_FIELD,
            "`chosen`, `rejected`, `ask`; the nearest format is plain, which also needs `prompt`",
        ),
        (
            {"text": "\n\nHuman: zebra\n\nAssistant: a"},
            Reason.UNKNOWN_FORMAT,
            "`text`, as in files of two lines per pair (two_line_files)",
        ),
        ({"text": "zebra", "role": "prompter"}, Reason.UNKNOWN_FORMAT, "`text`, `role`"),
        ({"a": 1, "b": None}, Reason.UNKNOWN_FORMAT, "`a`"),
        ({}, Reason.UNKNOWN_FORMAT, "no field that is not null"),
    ],
)
def test_a_row_that_lacks_a_field_is_told_those_it_has_and_the_setting(
    row: dict[str, Any], reason: Reason, found: str
) -> None:
    error = refused(row)
    assert error.reason == reason
    assert f"; the row has {found}; map your columns to fields in the setting columns" in error.detail
    assert "no field `" in error.detail


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "zebra", "completion": "a", "label": True},  # KTO
        {"prompt": "zebra", "response": "a", "helpfulness": 4},  # HelpSteer
        {"instruction": "zebra", "output": "a"},
        {"messages": [{"role": "user", "content": "zebra"}], "label": True},
    ],
)
def test_a_row_with_one_reply_is_told_that_a_pair_needs_two(row: dict[str, Any]) -> None:
    error = refused(row)
    assert error.reason == Reason.UNKNOWN_FORMAT
    assert "holds one reply, and a pair needs two: write both replies to a prompt in one row" in error.detail


@pytest.mark.parametrize("holder", ["train", "data", "id_17"])
@pytest.mark.parametrize("sides", [("chosen", "rejected"), ("response_a", "response_b"), ("output_1", "output_2")])
def test_rows_inside_a_row_are_told_where_they_belong(holder: str, sides: tuple[str, str]) -> None:
    row = {"prompt": "zebra"} | dict.fromkeys(sides, "yak")
    for value in ([row, row], row):
        error = refused({"version": 1, holder: value})
        assert error.reason == Reason.UNKNOWN_FORMAT
        assert f"`{holder}` holds rows: write one row per line" in error.detail
        assert "holds rows" not in refused({"prompt": "zebra", holder: value}).detail


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"0": "zebra", "1": "yak"}, "`prompt` holds a whole column: write one row per line"),
        ({"num_bytes": 3, "sha256": "ab"}, "`prompt` holds bytes instead of text: write the column as strings"),
    ],
)
def test_a_column_or_bytes_in_place_of_a_text_are_named(value: dict[str, Any], problem: str) -> None:
    row = {"prompt": value, "chosen": value, "rejected": value}
    for error in (refused(row), refused(row | {"chosen": "a", "rejected": "b"})):
        assert (error.reason, problem in error.detail, "zebra" in error.detail) == (Reason.WRONG_TYPE, True, False)


@pytest.mark.parametrize(
    ("chosen", "detail"),
    [
        (3, "Expected `str`, got `int` at `$.chosen`"),
        (
            [{"role": "zebra", "content": "a"}],
            "a value other than system, developer, user, assistant, tool at `$.chosen[0].role`",
        ),
    ],
)
def test_a_field_of_a_wrong_type_is_told_with_what_was_expected(chosen: object, detail: str) -> None:
    error = refused({"prompt": "q", "chosen": chosen, "rejected": "zebra"})
    assert (error.reason, error.detail) == (Reason.WRONG_TYPE, detail)


def test_names_of_fields_are_few_on_one_line_and_those_that_are_sentences_are_not_told() -> None:
    detail = refused({f"{'x' * 30}{number}": 1 for number in range(100)}).detail
    assert len(detail) < 600
    assert "and 92 more" in detail
    assert "\n" not in refused({"a\nb`c": 1}).detail
    assert "the row has `Answer of A` and 1 more;" in refused({"Answer of A": 1, "where did I put the zebra": 1}).detail
    assert "the row has only fields with very long names (1);" in refused({"zebra" * 9: 1}).detail


def test_a_row_without_a_verdict_is_told_its_fields_and_what_helps() -> None:
    for names in (("response_0", "response_1"), ("response_1", "response_2"), ("answer_a", "answer_b")):
        row = {"prompt": "q", names[0]: "one", names[1]: "two", "helpfulness": 3}
        with pytest.raises(PreferenceError) as error:
            parse_row(json.dumps(row))
        assert error.value.detail == (
            f"two responses, but no field `label`; the row has `prompt`, `{names[0]}`, `{names[1]}`, `helpfulness`; "
            "the nearest format is comparison, which also needs `label`; "
            "map your columns to fields in the setting columns"
        )
    with pytest.raises(PreferenceError, match="a score nor a rank; name the column of `scores`"):
        parse_row(json.dumps({"prompt": "q", "responses": ["one", "two"], "rewards": [1, 2]}))
