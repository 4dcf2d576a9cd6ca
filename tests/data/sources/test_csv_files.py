"""CSV and TSV files: texts as they stand, rows with their numbers, and no quote that swallows others."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support import age, plain_row, rejects, rows, silent, violations, write_lines

from rm_assets.data.sources.csv_rows import csv_rows
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.storage.snapshots import REJECTS, Snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings


def raw_of(settings: Settings, content: bytes, name: str = "a.csv") -> Snapshot:
    (Path(settings.annotations_path) / name).write_bytes(content)
    raw = publish_raw(settings, silent)
    assert set(violations({Stage.RAW: raw}).values()) == {0}
    return raw


def values(raw: Snapshot) -> list[tuple[int, Any]]:
    return [(row["line"], json.loads(row["text"])) for row in rows(raw)]


# --- sound files ---------------------------------------------------------------------------------------------

FILES: dict[str, tuple[str, bytes, list[tuple[int, object]]]] = {
    "texts stay as they stand": (
        "a.csv",
        b"prompt,chosen\n007,4\nNA,1e5\nnull, x \n",
        [
            (1, {"prompt": "007", "chosen": "4"}),
            (2, {"prompt": "NA", "chosen": "1e5"}),
            (3, {"prompt": "null", "chosen": " x "}),
        ],
    ),
    "empty fields are null": ("a.csv", b'a,b\n,1\n"",2\n', [(1, {"a": None, "b": "1"}), (2, {"a": None, "b": "2"})]),
    "quoted fields": (
        "a.csv",
        b'a,b\n"one\ntwo, ""three""","x\r\ny"\n5" nail,b\n',
        [(1, {"a": 'one\ntwo, "three"', "b": "x\r\ny"}), (2, {"a": '5" nail', "b": "b"})],
    ),
    "blank rows count": ("a.csv", b"\na,b\n1,2\n\n,\n  \n3,4", [(1, {"a": "1", "b": "2"}), (5, {"a": "3", "b": "4"})]),
    "Excel": ("a.csv", "\ufeffa;b\r\n1,5;é\r\n".encode(), [(1, {"a": "1,5", "b": "é"})]),
    "Excel with its delimiter declared": ("a.csv", b"sep=;\r\na,b;c\r\n1;2\r\n", [(1, {"a,b": "1", "c": "2"})]),
    "Excel with line feeds in its header": (
        "a.csv",
        b'\xef\xbb\xbf"a\n(one, two)";"b\r\n;";c\r\n1,5;2;3\r\n',
        [(1, {"a\n(one, two)": "1,5", "b\r\n;": "2", "c": "3"})],
    ),
    "a comma in a header of semicolons": ("a.csv", b"a;b;c, d\n1,2;3;4\n", [(1, {"a": "1,2", "b": "3", "c, d": "4"})]),
    "commas in a header of tabs": ("a.tsv", b"a, b, c\td\n1\t2\n", [(1, {"a, b, c": "1", "d": "2"})]),
    "a lone quote in a header": (
        "a.csv",
        b'5" nail;b\n' + b"1;2\n" * 150,
        [(line, {'5" nail': "1", "b": "2"}) for line in range(1, 151)],
    ),
    "the line ends of old Macs": ("a.csv", b"a,b\r1,2\r3,4\r", [(1, {"a": "1", "b": "2"}), (2, {"a": "3", "b": "4"})]),
    "spaces behind commas": ("a.csv", b'a, b\n1, "x, y"\n', [(1, {"a": "1", "b": "x, y"})]),
    "the index of pandas": ("a.csv", b",a\n0,x\n", [(1, {"": "0", "a": "x"})]),
    "tabs": ("a.tsv", b'a\tb\n1,2\t"x\ty"\n', [(1, {"a": "1,2", "b": "x\ty"})]),
    "tabs in a file of another name": ("a.csv", b"a\tb\n1,2\tx\n", [(1, {"a": "1,2", "b": "x"})]),
    "commas in a file of another name": ("a.tsv", b"a,b\n1,2\n", [(1, {"a": "1", "b": "2"})]),
    "compressed": ("a.CSV.gz", gzip.compress(b"a,b\n1,2\n"), [(1, {"a": "1", "b": "2"})]),
    "a header alone": ("a.csv", b"a,b\n", []),
}


@pytest.mark.parametrize("kind", FILES)
def test_each_row_is_a_line_of_texts_with_its_number(settings: Settings, kind: str) -> None:
    name, content, expected = FILES[kind]
    raw = raw_of(settings, content, name)
    assert (values(raw), rows(raw, REJECTS)) == (expected, [])


def test_a_column_given_twice_stays_two_fields(settings: Settings) -> None:
    raw = raw_of(settings, b"prompt,chosen,rejected,chosen\np,c,r,d\n")
    assert [row["text"] for row in rows(raw)] == ['{"prompt":"p","chosen":"c","rejected":"r","chosen":"d"}']
    assert rejects(publish_validated(settings, raw, silent)) == [("a.csv", 1, "repeated_field")]


def test_a_field_may_be_as_long_as_a_line(settings: Settings) -> None:
    long = b"x" * 300_000  # more than Python's module takes by itself
    settings = settings.model_copy(update={"max_line_bytes": 300_100})
    raw = raw_of(settings, b"a,b\n%s,1\n%s,2%s\n3,4\n" % (long, long, long))
    assert [row["line"] for row in rows(raw)] == [1, 3]
    assert rejects(raw) == [("a.csv", 2, "line_too_long")]


def test_the_longest_line_may_be_as_long_as_the_setting_allows(settings: Settings) -> None:
    raw = raw_of(settings.model_copy(update={"max_line_bytes": 2**63 - 1}), b"a,b\n1,2\n")
    assert values(raw) == [(1, {"a": "1", "b": "2"})]


def test_a_table_is_cut_into_shards_of_whole_rows(settings: Settings) -> None:
    content = b"a,b\n" + b"".join(b'%d,"two\nlines"\n' % number for number in range(100))
    raw = raw_of(settings.model_copy(update={"shard_bytes": 300}), content)
    assert values(raw) == [(n + 1, {"a": str(n), "b": "two\nlines"}) for n in range(100)]
    assert len(raw.manifest.shards) > 5


def test_a_table_that_changes_while_it_is_read_is_read_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(settings.annotations_path) / "a.csv"
    path.write_bytes(b"a,b\nold,1\nold,2\nold,")
    age(path.parent)
    times: list[int] = []

    def changing(*arguments: object) -> object:
        for row in csv_rows(*arguments):
            yield row
            if not times:
                with path.open("ab") as stream:
                    stream.write(b"3\nnew,4\n")
            times.append(1)

    monkeypatch.setattr("rm_assets.data.sources.rows.csv_rows", changing)
    monkeypatch.setattr("rm_assets.data.stages.raw._PAUSES", (0.0,) * 4)
    raw = publish_raw(settings, silent)
    assert [value for _, value in values(raw)] == [
        *({"a": "old", "b": str(n)} for n in (1, 2, 3)),
        {"a": "new", "b": "4"},
    ]
    assert len(times) > 4


# --- damage --------------------------------------------------------------------------------------------------


NUL = "NUL bytes, as an interrupted write or copy leaves them: deliver the file again"


def test_a_row_of_other_fields_is_a_reject_of_its_own(settings: Settings) -> None:
    raw = raw_of(settings, b"a,b\n1,2\n3\n\n4,5,6\n\xe9,7\n\0,8\n9,10\n")
    assert [line for line, _ in values(raw)] == [1, 7]
    assert [(row["line"], row["reason"], row["detail"]) for row in rows(raw, REJECTS)] == [
        (2, "malformed_row", "1 instead of 2 fields"),
        (4, "malformed_row", "3 instead of 2 fields"),
        (5, "not_utf8", "a field is not valid UTF-8: save the file as UTF-8"),
        (6, "malformed_row", f"the row contains {NUL}"),
    ]


@pytest.mark.parametrize("end", [b"\0\0\0", b"\0\r\n", b"5,\0\0"])
def test_nul_bytes_at_the_end_of_a_table_are_named(settings: Settings, end: bytes) -> None:
    raw = raw_of(settings, b"a,b\n1,2\n" + end)
    assert [(row["line"], row["detail"]) for row in rows(raw, REJECTS)] == [(2, f"the row contains {NUL}")]


def test_quotes_that_are_plain_text_in_tsv_never_merge_rows_into_a_pair(settings: Settings) -> None:
    content = b'prompt\tchosen\trejected\na\t"Hello\tb\n1\t2\t3\nc\tbye"\td\n4\t5\t6\n'
    code = b'7\t"def f():\n\tif x:\n\t\treturn"\t8\n9\t"\tone\n\t\ttwo\n\tthree"\t10\n'
    raw = raw_of(settings, content + code, "a.tsv")
    assert [(line, value["chosen"]) for line, value in values(raw)] == [
        (2, "5"),
        (3, "def f():\n\tif x:\n\t\treturn"),
        (4, "\tone\n\t\ttwo\n\tthree"),
    ]
    assert [(row["line"], row["reason"], row["detail"]) for row in rows(raw, REJECTS)] == [
        (
            1,
            "malformed_row",
            'a quoted field contains whole rows: write a quote inside a field as "", and quote that field',
        )
    ]


UNBALANCED = "has an unbalanced quote or a similar error:"
RULE = '; write a quote inside a quoted field as ""'
DAMAGES: dict[bytes, tuple[str, str]] = {
    b"": ("damaged_file", "it has no header"),
    b"\n \n": ("damaged_file", "it has no header"),
    b'a,b\n1,2\n"x,2\n3,4\n': (
        "damaged_file",
        "the row that begins on line 3 has an unbalanced quote or a similar error: unexpected end of data (line 4)"
        + RULE,
    ),
    b'a,b\n1,2\n\n"x,2\n3,"4"\n5,6\n': (
        "damaged_file",
        "the row that begins on line 4 has an unbalanced quote or a similar error: ',' expected after '\"' (line 5)"
        + RULE,
    ),
    b"a,b\nx\ry,2\n": (
        "damaged_file",
        f"the row that begins on line 2 {UNBALANCED} new-line character seen in unquoted field (line 2)" + RULE,
    ),
    b'a,b\n"x" y,2\n': (
        "damaged_file",
        "the row that begins on line 2 has an unbalanced quote or a similar error: ',' expected after '\"' (line 2)"
        + RULE,
    ),
    b'a,b\n1,2\n3,"' + b"swallowed\n" * 1000: (
        "damaged_file",
        "the row that begins on line 3 has more than 2,200 characters, perhaps because a quote is never closed",
    ),
    b"x" * 300 + b",y\n1,2\n": (
        "damaged_file",
        "its first row is not a header, of names with at most 200 characters: one has 300",
    ),
    "a,b\n1,2\n".encode("utf-16"): ("not_utf8", "it is UTF-16 or UTF-32: save it as UTF-8"),
    "a,b\n1,2\n".encode("utf-16-le"): ("not_utf8", "it is UTF-16 or UTF-32: save it as UTF-8"),
    b"\xe9,b\n1,2\n": ("not_utf8", "its header is not valid UTF-8: save it as UTF-8"),
}


@pytest.mark.parametrize("content", DAMAGES)
def test_a_damaged_table_is_never_half_used(settings: Settings, content: bytes) -> None:
    write_lines(Path(settings.annotations_path) / "good.jsonl", [plain_row(1)])
    raw = raw_of(settings.model_copy(update={"max_line_bytes": 1000, "shard_bytes": 1}), content)
    [reject] = rows(raw, REJECTS)
    found = (reject["source"], reject["line"], reject["reason"], reject["detail"])
    assert found == ("a.csv", 0, *DAMAGES[content])
    assert [row["source"] for row in rows(raw)] == ["good.jsonl"]


def test_names_that_are_written_with_each_value_may_be_a_bomb(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rm_assets.data.sources.rows.EXPANSION_ALLOWANCE", 1000)
    content = b",".join(b"%s%d" % (b"n" * 190, number) for number in range(100)) + b"\n" + (b"," * 99 + b"1\n") * 300
    raw = raw_of(settings.model_copy(update={"max_expansion": 50}), content)
    assert rejects(raw) == [("a.csv", 0, "decompression_bomb")]


# --- all kinds alike -----------------------------------------------------------------------------------------

TEXTS = st.text(alphabet="ab \"',;\t\r\n\\é{[", min_size=1, max_size=5)


@examples(max_examples=60, derandomize=True)
@given(
    table=st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=5),
    delimiter=st.sampled_from([",", "\t", ";"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    line_end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_pythons_writer_wrote_comes_back(
    table: list[tuple[str, ...]], delimiter: str, quoting: int, line_end: str
) -> None:
    if quoting == csv.QUOTE_MINIMAL:  # which leaves a lone carriage return unquoted
        table = [tuple(field.replace("\r", "x") for field in row) for row in table]
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=delimiter, quoting=quoting, lineterminator=line_end)
    writer.writerows([("a", "b", "c"), *table])
    found = csv_rows(io.BufferedReader(io.BytesIO(written.getvalue().encode())), ",", 1000)
    assert [json.loads(line) for line in found if isinstance(line, bytes)] == [
        dict(zip("abc", row, strict=True)) for row in table
    ]
