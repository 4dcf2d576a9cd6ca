"""Hostile lines: what is JSON, what is none, and that one never harms another."""

import hashlib
import io
import random
from pathlib import Path

import pytest
from parsed_rows import parse_row
from support import plain_row, rows, silent, violations, write_lines

from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.sources.blocks import blocks_of_lines
from rm_assets.data.sources.lines import read_block
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.storage.snapshots import REJECTS
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

SUITE = Path(__file__).parents[3].parent / "shared" / "json_test_suite"
"""JSONTestSuite, where it lies beside the checkout: `y_` must be accepted, `n_` refused, `i_` is ours to decide."""
REFUSED = {"blank", "not_utf8", "not_json"}


def verdict(line: bytes) -> str:
    """What becomes of a line that stands second in a file: a reason, `blank`, or `sound`."""
    stream = io.BufferedReader(io.BytesIO(b"{}\n" + line))
    [block] = blocks_of_lines(stream, block_bytes=2**22, max_line_bytes=2**20)
    [lines] = read_block(block, max_line_bytes=2**20, part_bytes=2**22)
    if lines.num_lines == 1 or lines.num_blank:
        return "blank"
    if lines.rejects:
        return lines.rejects[0][1]
    try:
        parse_row(lines.texts[1].as_py())
    except PreferenceError as error:
        return error.reason
    return "sound"


DEEP = 100_000
ACCEPTED_LINES = {
    "white space around": b' \t{"a": 1} \r',
    "a text": b'"a"',
    "every escape": rb'{"a": "\"\\\/\b\f\n\r\t\u0041\ud83d\ude00"}',
    "an escaped null": rb'{"a": "\u0000"}',
    "line separators in a string": '{"a": "\u2028\u2029\x85"}'.encode(),
    "brackets in a string": b'{"a": "' + b"[" * DEEP + b'"}',
    "a noncharacter": '{"a": "\uffff"}'.encode(),
    "an unknown field given twice": b'{"b": 1, "b": 2}',
}
REFUSED_LINES = {
    "half a row": b'{"prompt": "p", "chosen":',
    "two rows": b'{"a": 1}{"a": 1}',
    "a comma too many": b'{"a": 1,}',
    "a comment": b'{"a": 1} // one',
    "single quotes": b"{'a': 1}",
    "no quotes": b"{a: 1}",
    "NaN": b'{"margin": NaN}',
    "Infinity": b'{"margin": -Infinity}',
    "a leading zero": b'{"margin": 01}',
    "a raw null": b'{"a": "\0"}',
    "a raw tab in a string": b'{"a": "\t"}',
    "a byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "a no-break space": '\xa0{"a": 1}'.encode(),
    "a surrogate as bytes": b'{"a": "\xed\xa0\xbd"}',
    "an overlong slash": b'{"a": "\xc0\xaf"}',
    "half an escape": rb'{"a": "\u12"}',
    "deep lists": b"[" * DEEP,
    "deep lists that end": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "deep objects that end": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "only a line end": b"\r",
}
DECIDED_LINES = {
    "a number beyond float64": (b'{"margin": 1e999}', "not_json"),
    "a long integer": (b'{"a": ' + b"9" * 300 + b"}", "unknown_format"),
    "a longer integer": (b'{"a": ' + b"9" * 5000 + b"}", "not_json"),
    "a number below float64": (b'{"a": 1e-999}', "unknown_format"),
    "an escaped lone surrogate": (rb'{"a": "\ud800"}', "not_json"),
    "an escaped pair the wrong way round": (rb'{"a": "\ude00\ud83d"}', "not_json"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "not_utf8"),
}


@pytest.mark.parametrize("name", ACCEPTED_LINES)
def test_json_is_accepted_whatever_it_says(name: str) -> None:
    assert verdict(ACCEPTED_LINES[name]) in {"unknown_format", "not_an_object"}


@pytest.mark.parametrize("name", REFUSED_LINES)
def test_what_is_no_json_is_refused(name: str) -> None:
    assert verdict(REFUSED_LINES[name]) in REFUSED


@pytest.mark.parametrize("name", DECIDED_LINES)
def test_what_json_leaves_open_is_decided(name: str) -> None:
    line, reason = DECIDED_LINES[name]
    assert verdict(line) == reason


# --- a suite of others ---------------------------------------------------------------------------------------

OPEN_CASES = {
    "i_number_double_huge_neg_exp": "not_an_object",
    "i_number_huge_exp": "not_json",
    "i_number_neg_int_huge_exp": "not_json",
    "i_number_pos_double_huge_exp": "not_json",
    "i_number_real_neg_overflow": "not_json",
    "i_number_real_pos_overflow": "not_json",
    "i_number_real_underflow": "not_an_object",
    "i_number_too_big_neg_int": "not_an_object",
    "i_number_too_big_pos_int": "not_an_object",
    "i_number_very_big_negative_int": "not_an_object",
    "i_object_key_lone_2nd_surrogate": "not_json",
    "i_string_1st_surrogate_but_2nd_missing": "not_json",
    "i_string_1st_valid_surrogate_2nd_invalid": "not_json",
    "i_string_UTF-16LE_with_BOM": "not_utf8",
    "i_string_UTF-8_invalid_sequence": "not_utf8",
    "i_string_UTF8_surrogate_U+D800": "not_utf8",
    "i_string_incomplete_surrogate_and_escape_valid": "not_json",
    "i_string_incomplete_surrogate_pair": "not_json",
    "i_string_incomplete_surrogates_escape_valid": "not_json",
    "i_string_invalid_lonely_surrogate": "not_json",
    "i_string_invalid_surrogate": "not_json",
    "i_string_invalid_utf-8": "not_utf8",
    "i_string_inverted_surrogates_U+1D11E": "not_json",
    "i_string_iso_latin_1": "not_utf8",
    "i_string_lone_second_surrogate": "not_json",
    "i_string_lone_utf8_continuation_byte": "not_utf8",
    "i_string_not_in_unicode_range": "not_utf8",
    "i_string_overlong_sequence_2_bytes": "not_utf8",
    "i_string_overlong_sequence_6_bytes": "not_utf8",
    "i_string_overlong_sequence_6_bytes_null": "not_utf8",
    "i_string_truncated-utf-8": "not_utf8",
    "i_string_utf16BE_no_BOM": "not_utf8",
    "i_string_utf16LE_no_BOM": "not_utf8",
    "i_structure_500_nested_arrays": "not_json",
    "i_structure_UTF-8_BOM_empty_object": "not_json",
}


def suite() -> dict[str, bytes]:
    """The suite's files that are one line, by name."""
    contents = {path.stem: path.read_bytes() for path in sorted(SUITE.glob("*.json"))}
    return {name: content for name, content in contents.items() if b"\n" not in content}


needs_suite = pytest.mark.skipif(not SUITE.is_dir(), reason="JSONTestSuite is not beside the checkout")


@needs_suite
def test_the_suite_is_accepted_where_it_must_be_and_refused_where_it_must_be() -> None:
    verdicts = {name: verdict(line) for name, line in suite().items()}
    assert len(verdicts) == 308
    assert [name for name, found in verdicts.items() if name.startswith("y_") and found in REFUSED] == []
    assert [name for name, found in verdicts.items() if name.startswith("n_") and found not in REFUSED] == []
    assert {name: found for name, found in verdicts.items() if name.startswith("i_")} == OPEN_CASES


# --- among good lines ----------------------------------------------------------------------------------------


def assert_only_the_good_come_out(settings: Settings, hostile: list[bytes], num_good: int) -> None:
    lines: list[object] = [*(plain_row(number) for number in range(num_good)), *hostile]
    random.Random(0).shuffle(lines)
    write_lines(Path(settings.annotations_path) / "mixed.jsonl", lines)
    settings = settings.model_copy(update={"max_malformed_fraction": 1.0, "shard_bytes": 200_000})
    raw = publish_raw(settings, silent)
    validated = publish_validated(settings, raw, silent)
    found = {
        row["line"]: [row[side][0]["content"] for side in ("prompt", "chosen", "rejected")] for row in rows(validated)
    }
    assert found == {
        number: [line["prompt"], line["chosen"], line["rejected"]]
        for number, line in enumerate(lines, start=1)
        if isinstance(line, dict)
    }
    refused = {row["line"]: row["line_sha256"] for row in rows(raw, REJECTS) + rows(validated, REJECTS)}
    blank = {number for number, line in enumerate(lines, start=1) if isinstance(line, bytes) and not line.strip()}
    assert refused == {
        number: hashlib.sha256(line.removesuffix(b"\r")).hexdigest()
        for number, line in enumerate(lines, start=1)
        if isinstance(line, bytes) and number not in blank
    }
    assert raw.manifest.total("num_blank") == len(blank)
    assert set(violations({Stage.RAW: raw, Stage.VALIDATED: validated}).values()) == {0}


def test_among_good_lines_exactly_the_good_ones_come_out(settings: Settings) -> None:
    decided = [line for line, _ in DECIDED_LINES.values()]
    assert_only_the_good_come_out(settings, [*ACCEPTED_LINES.values(), *REFUSED_LINES.values(), *decided], 300)


@needs_suite
def test_of_the_suite_among_ten_thousand_good_lines_exactly_the_good_ones_come_out(settings: Settings) -> None:
    assert_only_the_good_come_out(settings, list(suite().values()), 10_000)
