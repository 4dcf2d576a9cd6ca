"""Which files a path, a directory or a glob names, and what each is called."""

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.data.sources.discovery import NothingToReadError, find_annotations, source_name
from rm_assets.settings import SettingsError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def sources(setting: Path) -> list[str]:
    return [file.source for file in find_annotations(str(setting)).files]


def test_sources_are_relative_to_the_fixed_part_of_the_setting(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("a/x.jsonl", "a/b/y.jsonl.gz", "a/z.jsonl.zst", "a/notes.txt", "a/.h.jsonl")))
    assert sources(tmp_path / "a") == ["b/y.jsonl.gz", "x.jsonl", "z.jsonl.zst"]
    assert find_annotations(str(tmp_path / "a")).ignored == ("notes.txt",)
    assert sources(tmp_path / "*/x.jsonl") == ["a/x.jsonl"]
    assert sources(tmp_path / "**/*.gz") == ["a/b/y.jsonl.gz"]
    assert sources(tmp_path / "a/x.jsonl") == ["x.jsonl"]


def test_a_directory_is_searched_whatever_its_name(tmp_path: Path) -> None:
    touch(tmp_path / "parts.jsonl" / "1.jsonl")
    assert sources(tmp_path) == ["parts.jsonl/1.jsonl"]
    assert sources(tmp_path / "parts.jsonl") == ["1.jsonl"]


def test_links_to_files_are_followed_and_links_to_directories_are_listed_as_ignored(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "x.jsonl")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file.jsonl").symlink_to(tmp_path / "elsewhere" / "x.jsonl")
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    assert sources(tmp_path / "a") == ["file.jsonl"]
    assert find_annotations(str(tmp_path / "a")).ignored == ("linked/", "loop/")


def test_a_directory_that_a_glob_names_is_listed_as_ignored(tmp_path: Path) -> None:
    touch(tmp_path / "x.jsonl", tmp_path / "sub" / "y.jsonl")
    found = find_annotations(str(tmp_path / "*"))
    assert ([file.source for file in found.files], found.ignored) == (["x.jsonl"], ("sub/",))


def test_a_table_in_a_directory_of_its_own_is_missed_only_where_none_of_its_files_is_read(tmp_path: Path) -> None:
    touch(tmp_path / "x.parquet" / "part-0.parquet")
    for setting in ("**/*.parquet", "*/*.parquet", "x.parquet"):
        found = find_annotations(str(tmp_path / setting))
        assert ([Path(file.source).name for file in found.files], found.ignored) == (["part-0.parquet"], ())
    told = "'x.parquet/' is not read: a directory found by a glob or a link is not searched; name it in the setting"
    with pytest.raises(NothingToReadError, match=re.escape(told)):
        find_annotations(str(tmp_path / "*.parquet"))


@pytest.mark.parametrize("storage", [None, "storage"])
@pytest.mark.parametrize("setting", [".", "*.jsonl", "**/*.jsonl"])
def test_one_bad_entry_stays_in_the_list_for_reading_to_reject(
    tmp_path: Path, setting: str, storage: str | None
) -> None:
    touch(tmp_path / "good.jsonl")
    os.mkfifo(tmp_path / "fifo.jsonl")
    (tmp_path / "broken.jsonl").symlink_to("gone")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "there.jsonl").symlink_to("back.jsonl")
    (tmp_path / "back.jsonl").symlink_to("there.jsonl")
    files = find_annotations(str(tmp_path / setting), storage and tmp_path / storage).files
    assert [file.source.removesuffix(".jsonl") for file in files] == [
        *("back", "broken", "fifo", "good", "loop", "there")
    ]


@pytest.mark.parametrize("pattern", ["*", "*.jsonl", "**/*.jsonl", "[.x]*.jsonl", "../a/*.jsonl"])
def test_hidden_files_are_not_read_whatever_the_pattern(tmp_path: Path, pattern: str) -> None:
    touch(*(tmp_path / "a" / name for name in ("x.jsonl", ".h.jsonl", "._x.jsonl", ".git/y.jsonl", ".git/b/z.jsonl")))
    assert sources(tmp_path / "a" / pattern) == ["x.jsonl"]
    assert sources(tmp_path / "a" / ".git" / "*.jsonl") == ["y.jsonl"]


def test_a_directory_that_cannot_be_listed_stays_in_the_list_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "good.jsonl", tmp_path / "closed" / "x.jsonl")
    scandir = os.scandir

    def refuse(path: Path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert sources(tmp_path) == ["closed/", "good.jsonl"]
    with pytest.raises(SettingsError, match="cannot be searched: Permission denied"):
        find_annotations(str(tmp_path / "closed"))


# --- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (b"with space.jsonl", "with space.jsonl"),
        ("偏好 é.jsonl".encode(), "偏好 é.jsonl"),
        (b"-rf.jsonl", "-rf.jsonl"),
        (b"two\nlines.jsonl", "two%0Alines.jsonl"),
        (b"50%.jsonl", "50%25.jsonl"),
        (b"latin\xe9.jsonl", "latin%E9.jsonl"),
        ("a\u2028b\x85.jsonl".encode(), "a%E2%80%A8b%C2%85.jsonl"),
        (b"n" * 249 + b".jsonl", "n" * 249 + ".jsonl"),
    ],
)
def test_a_source_is_text_whatever_the_bytes_of_the_name(tmp_path: Path, name: bytes, source: str) -> None:
    (tmp_path / os.fsdecode(name)).write_bytes(b"")
    assert sources(tmp_path) == [source]
    assert source.encode("utf-8").splitlines() == [source.encode("utf-8")]


@given(name=st.binary(min_size=1).filter(lambda name: not set(name) & set(b"/\0") and name not in (b".", b"..")))
def test_the_name_of_a_file_comes_back_from_its_source(name: bytes) -> None:
    source = source_name(Path("base") / os.fsdecode(name), Path("base"))
    assert unquote_to_bytes(source) == name
    assert source.isprintable() or not name.isascii()


# --- settings that name nothing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("missing.jsonl", "no such file"),
        ("empty", "no file ending in .jsonl"),
        ("*.jsonl", "no file ending in .jsonl"),
        ("table.xlsx", "; 'table.xlsx' is not read: save it as CSV in UTF-8"),
        ("many", "; 'b.arrow' and 1 more file are not read: with the datasets library: Dataset.from_file(NAME)"),
        ("docs", "no file ending in .jsonl, .ndjson, .jsonlines, .json, .parquet, .csv, .tsv there"),
        ("broken/b.jsonl", "'b.jsonl' cannot be read: a broken link"),
        ("fifo/f.jsonl", "'f.jsonl' cannot be read: a FIFO"),
        ("loop/l.jsonl", "'l.jsonl' cannot be read: Too many levels of symbolic links"),
        ("n" * 300 + ".jsonl", "cannot be searched: File name too long"),
        ("**bad/*.jsonl", "cannot be searched: Invalid pattern"),
        ("nul\0.jsonl", "no such file"),
    ],
)
def test_a_setting_that_names_nothing_to_read_is_one_clear_error(tmp_path: Path, setting: str, complaint: str) -> None:
    for name in ("empty", "broken", "fifo", "loop", "many", "docs"):
        (tmp_path / name).mkdir()
    touch(
        *(tmp_path / name for name in ("table.xlsx", "many/a.data", "many/b.arrow", "docs/README.md", "docs/LICENSE"))
    )
    (tmp_path / "broken" / "b.jsonl").symlink_to(tmp_path / "gone")
    (tmp_path / "loop" / "l.jsonl").symlink_to("l.jsonl")
    os.mkfifo(tmp_path / "fifo" / "f.jsonl")
    with pytest.raises(SettingsError, match=r"annotations \(or RM_ANNOTATIONS\)") as error:
        find_annotations(str(tmp_path / setting))
    assert complaint in str(error.value)


def test_the_home_of_nobody_is_a_clear_error() -> None:
    with pytest.raises(SettingsError, match="cannot be searched"):
        find_annotations("~nobody-of-this-name/x.jsonl")
