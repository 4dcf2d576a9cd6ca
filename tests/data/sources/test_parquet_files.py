"""Parquet files that others wrote: rows as lines of JSON, in little memory, or one reject where one is damaged."""

import datetime
import hashlib
import io
import json
import random
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import age, plain_row, rejects, rows, silent, violations, write_lines

from rm_assets.data.sources import parquet_batches
from rm_assets.data.sources import parquet_rows as reader
from rm_assets.data.sources.opened_file import RejectedFileError
from rm_assets.data.sources.parquet_rows import parquet_rows
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.storage.snapshots import REJECTS, Snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

SIDES = ("prompt", "chosen", "rejected")
MESSAGES = [
    {
        "prompt": [{"role": "user", "content": f"What is {number}?"}],
        "chosen": [{"role": "assistant", "content": f"It is {number}, é."}],
        "rejected": [{"role": "assistant", "content": "No\nidea."}],
        "margin": None if number % 3 else 0.5,
    }
    for number in range(50)
]


def written(table: pa.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def lines(content: bytes, *, max_line_bytes: int = 10_000, most_bytes: int = 10**7) -> list[Any]:
    return list(parquet_rows(io.BytesIO(content), max_line_bytes, most_bytes))


def raw_of(settings: Settings, content: bytes, name: str = "a.parquet") -> Snapshot:
    (Path(settings.annotations_path) / name).write_bytes(content)
    return publish_raw(settings, silent)


# --- values --------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, dict[str, Any]] = {
    "one row group": {},
    "many row groups": {"row_group_size": 7},
    "without dictionaries": {"use_dictionary": False, "compression": "zstd"},
    "dictionaries that overflow": {"dictionary_pagesize_limit": 100, "data_page_size": 200, "write_batch_size": 5},
    "pages of the second version": {"data_page_version": "2.0", "compression": "gzip"},
    "without Arrow's schema": {"store_schema": False},
    "texts by their lengths": {
        "use_dictionary": False,
        "column_encoding": {
            f"{side}.list.element.{field}": "DELTA_LENGTH_BYTE_ARRAY" for side in SIDES for field in ("role", "content")
        },
    },
    "texts by their lengths beside dictionaries": {
        "row_group_size": 20,
        "use_dictionary": [f"{side}.list.element.role" for side in SIDES],
        "column_encoding": {f"{side}.list.element.content": "DELTA_LENGTH_BYTE_ARRAY" for side in SIDES},
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_row_is_a_line_with_its_number_however_it_is_laid_out(settings: Settings, layout: str) -> None:
    raw = raw_of(settings.model_copy(update={"shard_bytes": 1000}), written(pa.table(_columns()), **LAYOUTS[layout]))
    assert [json.loads(row["text"]) for row in rows(raw)] == MESSAGES
    assert [row["line"] for row in rows(raw)] == [*range(1, 51)]
    assert len(raw.manifest.shards) > 5
    assert raw.manifest.total("num_lines") == 50
    assert set(violations({Stage.RAW: raw}).values()) == {0}


def _columns() -> dict[str, list[Any]]:
    return {name: [row[name] for row in MESSAGES] for name in MESSAGES[0]}


SECOND = datetime.datetime(2024, 2, 29, 12, 30, 1)
NOTED = {"num_bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
VALUES: dict[str, tuple[pa.Array, Any]] = {
    "texts like numbers": (pa.array(["007", "4", "NA", ""]), ["007", "4", "NA", ""]),
    "long texts": (pa.array(["é", None], pa.large_string()), ["é", None]),
    "views of texts": (pa.array(["v"], pa.string_view()), ["v"]),
    "a dictionary": (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
    "whole numbers": (pa.array([2**63, None], pa.uint64()), [2**63, None]),
    "floats": (pa.array([0.1, float("nan"), None]), [0.1, None, None]),
    "truths": (pa.array([True, None, False]), [True, None, False]),
    "only nulls": (pa.nulls(2), [None, None]),
    "decimals": (pa.array([Decimal("1.50"), Decimal("-2.00")]), [1.5, -2.0]),
    "dates": (pa.array([SECOND.date()]), ["2024-02-29"]),
    "times": (pa.array([SECOND], pa.timestamp("ns", "UTC")), ["2024-02-29 12:30:01.000000000Z"]),
    "durations": (pa.array([5], pa.duration("s")), [5]),
    "nested lists": (pa.array([[[1], []], [], None]), [[[1], []], [], None]),
    "lists of one size": (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), [[1, 2]]),
    "times in lists": (pa.array([[SECOND]], pa.list_(pa.timestamp("ms"))), [["2024-02-29 12:30:01.000"]]),
    "maps": (pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())), [{"k": 1}, None]),
    "bytes": (pa.array([b"abc", None]), [NOTED, None]),
    "images": (pa.array([[{"bytes": b"abc", "path": None}]]), [[{"bytes": NOTED, "path": None}]]),
    "a type of a library": (pa.array(['{"a": 1}'], pa.json_()), ['{"a": 1}']),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_stay_what_the_file_says(kind: str) -> None:
    column, expected = VALUES[kind]
    found = lines(written(pa.table({"value": column})))
    assert [json.loads(line) for line in found] == [{"value": value} for value in expected]


def test_infinity_is_no_finite_number_and_no_null() -> None:
    assert lines(written(pa.table({"margin": [float("inf"), float("-inf")], "n": [1, 2]}))) == [
        b'{"margin":1e999,"n":1}\n',
        b'{"margin":-1e999,"n":2}\n',
    ]


def test_columns_of_one_name_stay_two_fields() -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["chosen", "chosen"])
    assert lines(written(table)) == [b'{"chosen":"a","chosen":"b"}\n']


def test_a_text_that_is_not_utf8_is_the_reject_of_its_row(settings: Settings) -> None:
    texts = pa.array([b"sound", b"\xff", b"sound"]).view(pa.string())
    raw = raw_of(settings, written(pa.table({"prompt": texts, "n": [1, 2, 3]})))
    assert [(row["line"], row["text"]) for row in rows(raw)] == [
        (1, '{"prompt":"sound","n":1}'),
        (3, '{"prompt":"sound","n":3}'),
    ]
    assert rejects(raw) == [("a.parquet", 2, "not_utf8")]
    assert set(violations({Stage.RAW: raw}).values()) == {0}


def test_a_row_longer_than_a_line_may_be_is_the_reject_of_that_row(settings: Settings) -> None:
    table = pa.table({"prompt": ["short", "x" * 500, "y" * 10_000, "z" * 10_000, "y" * 10_000, "short"]})
    raw = raw_of(settings.model_copy(update={"max_line_bytes": 400}), written(table))
    assert [row["line"] for row in rows(raw)] == [1, 6]
    assert rejects(raw) == [("a.parquet", line, "line_too_long") for line in (2, 3, 4, 5)]
    hashes = [row["line_sha256"] for row in rows(raw, REJECTS)]
    assert (len({*hashes}), hashes[1]) == (3, hashes[3])
    assert set(violations({Stage.RAW: raw}).values()) == {0}


@pytest.mark.parametrize("table", [pa.table({"prompt": pa.array([], pa.string())}), pa.table({})])
def test_a_table_without_rows_gives_none(settings: Settings, table: pa.Table) -> None:
    raw = raw_of(settings, written(table))
    assert (rows(raw), rows(raw, REJECTS)) == ([], [])


def test_a_table_that_was_written_anew_is_read_again(settings: Settings) -> None:
    for number in (20, 50):
        raw = raw_of(settings, written(pa.table({"n": range(number)}), row_group_size=6))
        age(Path(settings.annotations_path))
        assert [json.loads(row["text"])["n"] for row in rows(raw)] == [*range(number)]
    assert publish_raw(settings, silent).num_new_shards == 0


def test_a_table_is_no_file_of_two_lines_a_pair(settings: Settings) -> None:
    raw = raw_of(settings.model_copy(update={"two_line_files": True}), written(pa.table({"text": ["a", "b"]})))
    assert rejects(raw) == [("a.parquet", 0, "unreadable_file")]


# --- damage --------------------------------------------------------------------------------------------------

SOUND = written(pa.table(_columns()), row_group_size=20)


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.parquet", SOUND)
    return stream.getvalue()


DAMAGES: dict[str, bytes] = {
    "nothing at all": b"",
    "half of it": SOUND[: len(SOUND) // 2],
    "without the footer": SOUND[:-8],
    "a zip": zipped(),
    "text": b'{"prompt": "p"}\n' * 100,
    "its footer alone": SOUND[-200:],
    "another length of the footer": SOUND[:-8] + b"\xff\xff\xff\x7fPAR1",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_never_half_used(settings: Settings, damage: str) -> None:
    write_lines(Path(settings.annotations_path) / "good.jsonl", [plain_row(1)])
    raw = raw_of(settings, DAMAGES[damage])
    [reject] = rows(raw, REJECTS)
    assert (reject["source"], reject["line"], reject["reason"]) == ("a.parquet", 0, "damaged_file")
    assert reject["detail"].startswith("not a readable Parquet file: ")
    assert [row["source"] for row in rows(raw)] == ["good.jsonl"]
    assert set(violations({Stage.RAW: raw}).values()) == {0}


def test_a_damaged_page_rejects_the_rows_before_it_too(settings: Settings) -> None:
    content = written(pa.table(_columns()), row_group_size=10, compression="zstd", write_page_checksum=True)
    place = len(content) // 2
    raw = raw_of(settings.model_copy(update={"shard_bytes": 1}), content[:place] + b"\0\0\0" + content[place + 3 :])
    assert rejects(raw) == [("a.parquet", 0, "damaged_file")]


def test_whatever_bytes_are_wrong_nothing_but_a_reject_comes_of_it() -> None:
    chance = random.Random(0)
    for _ in range(300):
        content = bytearray(SOUND)
        content[chance.randrange(len(content) // 2, len(content))] = chance.randrange(256)
        try:
            found = lines(bytes(content))
        except RejectedFileError:
            continue
        assert len(found) == 50


# --- bombs ---------------------------------------------------------------------------------------------------

LONG = "x" * 10**6
BOMBS: dict[str, Callable[[], bytes]] = {
    "pages": lambda: written(pa.table({"a": [LONG] * 70}), use_dictionary=False, compression="zstd"),
    "a dictionary": lambda: written(pa.table({"a": _many(pa.array([0] * 10**6, pa.int32()))})),
    "a dictionary in one row": lambda: written(pa.table({"a": _one_list(_many(pa.array([0] * 10**5, pa.int32())))})),
    "bytes": lambda: written(pa.table({"a": [LONG.encode()] * 70}), use_dictionary=False, compression="zstd"),
}


def _many(indices: pa.Array) -> pa.Array:
    return pa.DictionaryArray.from_arrays(indices, [LONG])


def _one_list(values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_before_its_values_are_made(
    settings: Settings, bomb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = BOMBS[bomb]()
    assert len(content) < 2**26 // 200
    monkeypatch.setattr(reader, "_encoded", lambda column: pytest.fail(f"{len(column)} values were made"))
    assert rejects(raw_of(settings, content)) == [("a.parquet", 0, "decompression_bomb")]


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_is_decoded_counts_whatever_the_footer_says(
    settings: Settings, bomb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_footer_bytes", lambda group: 0)
    assert rejects(raw_of(settings, BOMBS[bomb]())) == [("a.parquet", 0, "decompression_bomb")]


def test_a_dictionary_beside_other_texts_is_read_in_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_batches, "_BATCH_BYTES", 2500)
    texts = ["x" * 1000] * 9 + [f"{number}" * 900 for number in range(9)]
    content = written(pa.table({"a": texts}), dictionary_pagesize_limit=1, write_batch_size=9)
    sizes = [batch.num_rows for _, batches in parquet_batches.row_groups(io.BytesIO(content)) for batch in batches]
    assert (max(sizes), sum(sizes)) == (2, 18)


def test_texts_by_their_differences_are_read_one_row_at_a_time() -> None:
    texts = [f"{'x' * 1000}{number}" for number in range(50)]
    content = written(pa.table({"a": texts}), use_dictionary=False, column_encoding={"a": "DELTA_BYTE_ARRAY"})
    assert [json.loads(line)["a"] for line in lines(content)] == texts
    sizes = [batch.num_rows for _, batches in parquet_batches.row_groups(io.BytesIO(content)) for batch in batches]
    assert sizes == [1] * 50


def test_texts_by_their_differences_in_a_list_are_refused_as_one_row_may_have_any_number() -> None:
    table = pa.table({"a": _one_list(pa.array([LONG] * 70))})
    content = written(table, use_dictionary=False, column_encoding={"a.list.element": "DELTA_BYTE_ARRAY"})
    with pytest.raises(RejectedFileError, match="strings in lists use the encoding DELTA_BYTE_ARRAY: write the file"):
        lines(content)


def test_many_values_of_a_dictionary_become_texts_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_PART_BYTES", 3000)
    made: list[int] = []
    encoded = reader._encoded

    def counted(column: pa.Array) -> list[bytes]:
        made.append(len(column))
        return encoded(column)

    monkeypatch.setattr(reader, "_encoded", counted)
    content = written(pa.table({"a": ["x" * 1000] * 100}))
    assert len(lines(content)) == 100
    assert max(made) <= 3
