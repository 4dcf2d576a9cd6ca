"""Files of JSON that are named otherwise, and lists of rows, which are streamed element by element."""

import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support import age, plain_row, rejects, rows, silent, violations, write_lines

from rm_assets.data.sources import json_lists
from rm_assets.data.sources.blocks import Piece, SkippedLine
from rm_assets.data.sources.json_lists import list_begin, list_rows
from rm_assets.data.sources.opened_file import RejectedFileError, zstd
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.storage.snapshots import REJECTS, Snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

ROWS = [plain_row(number, chosen='A "quoted" [reply] {with} a \\ and\n é.') for number in range(12)]


def elements(content: bytes, *, max_line_bytes: int = 1000) -> list[Piece]:
    stream = io.BufferedReader(io.BytesIO(content))
    begin = list_begin(content)
    assert begin
    return list(list_rows(stream, begin, max_line_bytes))


def first_stages(settings: Settings) -> dict[Stage, Snapshot]:
    raw = publish_raw(settings, silent)
    return {Stage.RAW: raw, Stage.VALIDATED: publish_validated(settings, raw, silent)}


def lines_of(rows: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


# --- files named otherwise -----------------------------------------------------------------------------------

NAMES: dict[str, Callable[[bytes], bytes]] = {
    "a.json": bytes,
    "a.ndjson": bytes,
    "a.jsonlines": bytes,
    "A.JSONL": bytes,
    "a.json.gz": gzip.compress,
    "a.ndjson.gz": gzip.compress,
    "a.jsonlines.zst": zstd.compress,
    "A.JSON.GZ": gzip.compress,
}


@pytest.mark.parametrize("name", NAMES)
def test_lines_of_json_are_read_whatever_their_file_is_called(settings: Settings, name: str) -> None:
    content = b"\n" + lines_of(ROWS)
    (Path(settings.annotations_path) / name).write_bytes(NAMES[name](content))
    raw = publish_raw(settings, silent)
    assert [row["line"] for row in rows(raw)] == [*range(2, 14)]
    assert [json.loads(row["text"]) for row in rows(raw)] == ROWS
    assert raw.manifest.total("num_bytes") == len(content)
    assert set(violations({Stage.RAW: raw}).values()) == {0}


def test_what_the_datasets_library_writes_beside_the_rows_is_not_read(settings: Settings) -> None:
    directory = Path(settings.annotations_path)
    write_lines(directory / "a.json", [plain_row(1)])
    for name in ("dataset_info.json", "state.json"):
        (directory / name).write_text("{}")
    raw = publish_raw(settings, silent)
    assert raw.manifest.facts["ignored_files"] == ["dataset_info.json", "state.json"]
    assert raw.manifest.num_rows() == 1


# --- lists ---------------------------------------------------------------------------------------------------

WRITTEN: dict[str, bytes] = {
    "on one line": json.dumps(ROWS).encode(),
    "over many lines": json.dumps(ROWS, indent=2).encode() + b"\n",
    "with the line ends of Windows": json.dumps(ROWS, indent="\t").encode().replace(b"\n", b"\r\n"),
    "a row a line": b"[\n" + b",\n".join(json.dumps(row).encode() for row in ROWS) + b"\n]\n",
    "behind a byte order mark and blank lines": b"\xef\xbb\xbf \n\n" + json.dumps(ROWS).encode(),
    "under a name": json.dumps({"data": ROWS}, indent=1).encode(),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_a_list_gives_the_pairs_of_the_same_rows_as_lines(settings: Settings, written: str) -> None:
    path = Path(settings.annotations_path) / "a.jsonl"
    path.write_bytes(lines_of(ROWS))
    expected = rows(first_stages(settings)[Stage.VALIDATED])
    path.unlink()
    (path.parent / "a.json").write_bytes(WRITTEN[written])
    stages = first_stages(settings.model_copy(update={"shard_bytes": 700}))
    found = rows(stages[Stage.VALIDATED])
    assert [row | {"source": ""} for row in found] == [row | {"source": ""} for row in expected]
    assert [row["line"] for row in rows(stages[Stage.RAW])] == [*range(1, 13)]
    assert len(stages[Stage.RAW].manifest.shards) > 2
    assert set(violations(stages).values()) == {0}


def test_the_text_of_an_element_is_kept_as_it_is(settings: Settings) -> None:
    elements = ['{"b": 1.50, "a": "\\u00e9"}', '{"chosen": "x", "chosen": "y"}', '{"a" :\n\t[1 , 2]}', '"]"', "-0.0"]
    (Path(settings.annotations_path) / "a.json").write_text(f"[{' , '.join(elements)} ]")
    settings = settings.model_copy(update={"max_malformed_fraction": 1.0})
    raw = publish_raw(settings, silent)
    assert [row["text"] for row in rows(raw)] == [element.replace("\n", "\r") for element in elements]


def test_what_is_wrong_inside_an_element_is_the_reject_of_that_row(settings: Settings) -> None:
    nested = f'{{"prompt": {"[" * 100}{"]" * 100}}}'.encode()
    (Path(settings.annotations_path) / "a.json").write_bytes(
        b'[1, null, {\'a\': 1}, %s, {"chosen": "a", "chosen": "b"}, {"a": "raw \n line"}, [], "\xff", %s, %s]'
        % (nested, b'{"prompt": "%s"}' % (b"x" * 500), json.dumps(plain_row(1)).encode())
    )
    stages = first_stages(settings.model_copy(update={"max_malformed_fraction": 1.0, "max_line_bytes": 400}))
    assert rejects(stages[Stage.RAW]) == [("a.json", 8, "not_utf8"), ("a.json", 9, "line_too_long")]
    assert rejects(stages[Stage.VALIDATED]) == [
        ("a.json", 1, "not_an_object"),
        ("a.json", 2, "not_an_object"),
        ("a.json", 3, "not_json"),
        ("a.json", 4, "not_json"),
        ("a.json", 5, "repeated_field"),
        ("a.json", 6, "not_json"),
        ("a.json", 7, "not_an_object"),
    ]
    assert [row["line"] for row in rows(stages[Stage.VALIDATED])] == [10]
    assert set(violations(stages).values()) == {0}


DAMAGES = {
    b'[{"a": 1}, {"b": 2}': "the list is not closed (row 2, byte 20)",
    b'[{"a": 1}, {"b": "2]': "the list is not closed (row 2, byte 21)",
    b"[": "the list is not closed (row 1, byte 2)",
    b'[{"a": 1},]': "a comma without a row (row 2, byte 11)",
    b'[, {"a": 1}]': "a comma without a row (row 1, byte 2)",
    b'[{"a": 1} {"b": 2}]': "no comma between two rows (row 1, byte 11)",
    b'[{"a": 1} 5]': "no comma between two rows (row 1, byte 12)",
    b'[{"a": 1}}]': "an unmatched closing bracket (row 1, byte 10)",
    b'[{"a": 1}]\n[{"a": 1}]': "text after the end of the list (row 2, byte 12)",
    b'[{"a": 1}] x': "text after the end of the list (row 2, byte 13)",
    b'[{"a": 1}]}': "text after the end of the list (row 2, byte 11)",
    b'{"data": [{"a": 1}]': "the list is not closed (row 2, byte 20)",
    b'{"data": [{"a": 1}], "other": []}': "text after the end of the list (row 2, byte 20)",
    b'{\n  "prompt": "p",\n  "chosen": "c"\n}': "one object over several lines, instead of a list of rows, "
    '{"data": [...]} or one row per line: convert it with `jq -c .`',
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_list_is_never_half_used(settings: Settings, damage: bytes) -> None:
    directory = Path(settings.annotations_path)
    write_lines(directory / "good.jsonl", [plain_row(1)])
    (directory / "a.json").write_bytes(damage)
    raw = publish_raw(settings.model_copy(update={"shard_bytes": 1}), silent)
    [reject] = rows(raw, REJECTS)
    place = (reject["source"], reject["line"], reject["reason"], reject["detail"])
    assert place == ("a.json", 0, "damaged_file", DAMAGES[damage])
    assert [row["source"] for row in rows(raw)] == ["good.jsonl"]
    assert set(violations({Stage.RAW: raw}).values()) == {0}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_json_of_another_encoding_is_one_reject_that_says_so(settings: Settings, encoding: str) -> None:
    (Path(settings.annotations_path) / "a.json").write_bytes(json.dumps(ROWS).encode(encoding))
    [reject] = rows(publish_raw(settings, silent), REJECTS)
    told = (reject["line"], reject["reason"], reject["detail"])
    assert told == (0, "not_utf8", "it is UTF-16 or UTF-32: save it as UTF-8")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"[]", b" [ ]\n", b'{"data": []}'])
def test_json_without_rows_gives_none(settings: Settings, content: bytes) -> None:
    (Path(settings.annotations_path) / "a.json").write_bytes(content)
    raw = publish_raw(settings, silent)
    assert (rows(raw), rows(raw, REJECTS)) == ([], [])
    assert set(violations({Stage.RAW: raw}).values()) == {0}


def test_a_list_whose_file_is_a_line_file_stays_one_line(settings: Settings) -> None:
    (Path(settings.annotations_path) / "a.jsonl").write_text("[1, 2]\n")
    assert [row["text"] for row in rows(publish_raw(settings, silent))] == ["[1, 2]"]


def test_a_list_that_got_longer_is_read_as_a_whole(settings: Settings) -> None:
    path = Path(settings.annotations_path) / "a.json"
    settings = settings.model_copy(update={"shard_bytes": 500})
    for number in (4, 8):
        path.write_text(json.dumps(ROWS[:number]))
        age(path.parent)
        raw = publish_raw(settings, silent)
        assert [json.loads(row["text"]) for row in rows(raw)] == ROWS[:number]
        assert publish_raw(settings, silent).num_new_shards == 0


def test_a_file_of_two_lines_a_pair_is_no_list(settings: Settings) -> None:
    (Path(settings.annotations_path) / "a.json").write_text(json.dumps(ROWS))
    raw = publish_raw(settings.model_copy(update={"two_line_files": True}), silent)
    [reject] = rows(raw, REJECTS)
    assert reject["reason"] == "unreadable_file"
    assert reject["detail"] == "two_line_files is set, and it reads only JSON lines (.jsonl)"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab"\\,:[]{} \n\té', max_size=6),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(alphabet='a"\\[,', max_size=2), values),
    max_leaves=8,
)


@examples(max_examples=200, derandomize=True)
@given(
    values=st.lists(VALUES, max_size=4),
    indent=st.sampled_from([None, 1]),
    is_escaped=st.booleans(),
    chunk_bytes=st.integers(1, 9),
    at=st.floats(0, 1, exclude_max=True),
)
def test_any_list_gives_its_elements_and_none_of_it_when_it_is_cut(
    values: list[object], indent: int | None, is_escaped: bool, chunk_bytes: int, at: float
) -> None:
    content = json.dumps(values, indent=indent, ensure_ascii=is_escaped).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lists, "_CHUNK_BYTES", chunk_bytes)
        found = elements(content)
        assert all(isinstance(line, bytes) and line.count(b"\n") == 1 for line in found)
        assert [json.loads(line) for line in found if isinstance(line, bytes)] == values
        if cut := content[: int(at * len(content))]:
            with pytest.raises(RejectedFileError, match="the list is not closed"):
                elements(cut)


def test_a_long_element_is_hashed_in_passing_whatever_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as written:
        written.write(b'[{"a": 1}, "')
        for _ in range(40):
            written.write(b'long \\" text ' * 2**16)
        written.write(b'", {"b": 2}]')
    tracemalloc.start()
    try:
        with path.open("rb") as stream:
            begin = list_begin(stream.peek(1))
            assert begin
            first, second, third = list_rows(stream, begin, 2**21)
        assert tracemalloc.get_traced_memory()[1] < 12 * 2**20
    finally:
        tracemalloc.stop()
    assert (first, third) == (b'{"a": 1}\n', b'{"b": 2}\n')
    assert isinstance(second, SkippedLine)
    assert second.num_bytes == 2 + 13 * 2**16 * 40
