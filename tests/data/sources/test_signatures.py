"""Files that are not what their names say: one reject each, which tells what the file is."""

import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import plain_row, rejects, rows, silent, violations, write_lines

from rm_assets.data.sources.opened_file import zstd
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.storage.snapshots import REJECTS
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

LINES = b'{"prompt": "p", "chosen": "c", "rejected": "r"}\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
PULL = "it is a Git LFS pointer: run `git lfs pull` to get the file itself"
PAGE = "it is a web page, perhaps an error page: download the file again"
NOT_PARQUET = "not a readable Parquet file: "


def parquet() -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([plain_row(1)]), content)
    return content.getvalue()


def spreadsheet() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("xl/workbook.xml", b"<x/>")
    return content.getvalue()


FILES: dict[str, tuple[str, bytes, str]] = {
    "Parquet as lines": ("a.jsonl", parquet(), "it is Parquet: rename it to end in .parquet"),
    "Parquet as JSON": ("a.json", parquet(), "it is Parquet: rename it to end in .parquet"),
    "Parquet as CSV": ("a.csv", parquet(), "it is Parquet: rename it to end in .parquet"),
    "gzip without its suffix": ("a.csv", gzip.compress(LINES), "it is compressed with gzip: rename it to end in .gz"),
    "gzip as JSON": ("a.json", gzip.compress(LINES), "it is compressed with gzip: rename it to end in .gz"),
    "Zstandard as gzip": (
        "a.jsonl.gz",
        zstd.compress(LINES),
        "it is compressed with Zstandard: rename it to end in .zst",
    ),
    "bzip2": ("a.jsonl", bz2.compress(LINES), "it is compressed with bzip2: unpack it"),
    "xz": ("a.tsv", lzma.compress(LINES), "it is compressed with xz: unpack it"),
    "a spreadsheet": (
        "a.csv",
        spreadsheet(),
        "it is a ZIP archive, to be unpacked, or a spreadsheet: save it as CSV in UTF-8",
    ),
    "a spreadsheet as Parquet": (
        "a.parquet",
        spreadsheet(),
        f"{NOT_PARQUET}it is a ZIP archive, to be unpacked, or a spreadsheet: save it as CSV in UTF-8",
    ),
    "lines of JSON as CSV": ("a.csv", LINES, "it is JSON: rename it to end in .jsonl"),
    "one field a line as TSV": ("a.tsv", b'{"text": "x"}\n' * 2, "it is JSON: rename it to end in .jsonl"),
    "a JSON list as CSV": ("a.csv", b'[\n  {"a": 1},\n  {"a": 2}\n]', "it is JSON: rename it to end in .json"),
    "a pointer as lines": ("a.jsonl", POINTER, PULL),
    "a pointer as CSV": ("a.csv", POINTER, PULL),
    "a pointer as an archive": ("a.jsonl.gz", POINTER, PULL),
    "a pointer as Parquet": ("a.parquet", POINTER, NOT_PARQUET + PULL),
    "a web page": ("a.csv", b"\n<!DOCTYPE html>\n<title>Sign in</title>\n", PAGE),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_not_what_its_name_says_is_one_reject_that_tells_so(settings: Settings, kind: str) -> None:
    directory = Path(settings.annotations_path)
    write_lines(directory / "good.jsonl", [plain_row(1)])
    name, content, told = FILES[kind]
    (directory / name).write_bytes(content)
    raw = publish_raw(settings, silent)
    assert rejects(raw) == [(name, 0, "damaged_file")]
    assert [row["detail"] for row in rows(raw, REJECTS)] == [told]
    assert [row["source"] for row in rows(raw)] == ["good.jsonl"]
    assert set(violations({Stage.RAW: raw}).values()) == {0}


def test_names_of_columns_are_no_signatures(settings: Settings) -> None:
    directory = Path(settings.annotations_path)
    tables = [b"PAR1,PAR2\n1,2", b"PK,BZh\n1,2", b"<htmlish>\n1", b"version\n1", b"{a},[b]\n1,2", b"PAR1\tb\n1\t2"]
    for number, table in enumerate(tables):
        (directory / f"{number}.csv").write_bytes(table)
    raw = publish_raw(settings, silent)
    assert (len(rows(raw)), rejects(raw)) == (len(tables), [])
