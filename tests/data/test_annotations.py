"""Files found, bytes cut into lines and shards, nothing lost."""

import gzip
import hashlib
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.data.annotations import (
    DamagedArchiveError,
    ShardOfLines,
    find_annotations,
    read_lines,
    shards_of_lines,
)
from rm_assets.data.records import Reason
from rm_assets.settings import SettingsError


def shards(path: Path, content: bytes, *, shard_bytes: int = 100, max_line_bytes: int = 100) -> list[ShardOfLines]:
    path.write_bytes(content)
    return list(shards_of_lines(path, shard_bytes=shard_bytes, max_line_bytes=max_line_bytes))


def test_only_a_line_feed_ends_a_line() -> None:
    content = "a\u2028b\rc\x85\x0cd\r\ne".encode()
    lines = list(read_lines(io.BytesIO(content), 100))
    assert [line.content for line in lines] == ["a\u2028b\rc\x85\x0cd".encode(), b"e"]
    assert [line.end_bytes for line in lines] == [2, 0]


@pytest.mark.parametrize(("content", "kept"), [(b"12345\n", True), (b"12345\r\n", True), (b"123456\n", False)])
def test_a_line_of_the_allowed_length_is_kept_and_a_longer_one_is_not(content: bytes, kept: bool) -> None:
    first, second = read_lines(io.BytesIO(content + b"next"), 5)
    assert (first.content is not None) == kept
    assert second.content == b"next"


def test_a_line_that_is_too_long_is_a_reject_with_the_hash_of_its_bytes(tmp_path: Path) -> None:
    long_line = b"x" * 3_000_000
    [shard] = shards(tmp_path / "a.jsonl", b"one\n" + long_line + b"\ntwo\n", shard_bytes=10_000_000)
    assert shard.texts == ["one", "two"]
    assert shard.numbers == [1, 3]
    assert shard.rejects == [(2, Reason.LINE_TOO_LONG, "3000000 bytes", hashlib.sha256(long_line).hexdigest())]
    assert shard.bytes_unaccounted == 0


def test_bytes_that_are_no_text_are_a_reject_and_the_lines_around_them_stay(tmp_path: Path) -> None:
    [shard] = shards(tmp_path / "a.jsonl", b"one\nt\xffo\nthree")
    assert shard.texts == ["one", "three"]
    assert [(line, reason, detail) for line, reason, detail, _ in shard.rejects] == [
        (2, Reason.NOT_UTF8, "byte 2 of the line")
    ]


def test_a_byte_order_mark_is_taken_off_the_first_line_only(tmp_path: Path) -> None:
    [shard] = shards(tmp_path / "a.jsonl", b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n")
    assert shard.texts == ["one", "\ufefftwo"]
    assert shard.bom_bytes == 3


def test_blank_lines_are_counted_but_are_no_rows(tmp_path: Path) -> None:
    [shard] = shards(tmp_path / "a.jsonl", b"one\n\n  \t\r\ntwo\n")
    assert (shard.numbers, shard.num_blank, shard.blank_bytes) == ([1, 4], 2, 3)


@given(
    content=st.lists(
        st.sampled_from([b"a", b"bb", b"\n", b"\r\n", b"\xff", b" ", b"\xef\xbb\xbf", b"c" * 9]), max_size=40
    ),
    shard_bytes=st.integers(1, 30),
    max_line_bytes=st.integers(1, 12),
)
def test_every_byte_of_any_file_is_accounted_for(
    content: list[bytes], shard_bytes: int, max_line_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    found = shards(path, b"".join(content), shard_bytes=shard_bytes, max_line_bytes=max_line_bytes)
    assert sum(shard.num_bytes for shard in found) == len(b"".join(content))
    assert all(shard.bytes_unaccounted == 0 for shard in found)
    assert all(shard.num_bytes <= shard_bytes or shard.num_lines == 1 or shard.bom_bytes for shard in found)
    assert [shard.first_line for shard in found[1:]] == [s.first_line + s.num_lines for s in found[:-1]]


@given(
    lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), min_size=1, max_size=20),
    appended=st.binary(min_size=1, max_size=30),
)
def test_appending_leaves_all_but_the_last_shard_alone(
    lines: list[bytes], appended: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("append") / "a.jsonl"
    before = shards(path, b"".join(line + b"\n" for line in lines), shard_bytes=20)
    after = shards(path, b"".join(line + b"\n" for line in lines) + appended, shard_bytes=20)
    assert [shard.sha256 for shard in after[: len(before) - 1]] == [shard.sha256 for shard in before[:-1]]


def test_gzip_is_read_whatever_its_members(tmp_path: Path) -> None:
    [shard] = shards(tmp_path / "a.jsonl.gz", gzip.compress(b"one\n") + gzip.compress(b"two\n"))
    assert shard.texts == ["one", "two"]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"no gzip", lambda data: data + b"junk"])
def test_a_damaged_archive_is_an_error(tmp_path: Path, damage) -> None:
    with pytest.raises(DamagedArchiveError):
        shards(tmp_path / "a.jsonl.gz", damage(gzip.compress(b"one\n" * 100)))


# --- which files ---------------------------------------------------------------------------------------------


def test_sources_are_relative_to_the_fixed_part_of_the_setting(tmp_path: Path) -> None:
    for name in ("a/x.jsonl", "a/b/y.jsonl.gz", "a/notes.txt", "a/.hidden.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    whole = find_annotations(str(tmp_path / "a"))
    assert [file.source for file in whole.files] == ["b/y.jsonl.gz", "x.jsonl"]
    assert whole.ignored == ("notes.txt",)
    assert [file.source for file in find_annotations(str(tmp_path / "*/x.jsonl")).files] == ["a/x.jsonl"]
    assert [file.source for file in find_annotations(str(tmp_path / "**/*.gz")).files] == ["a/b/y.jsonl.gz"]
    assert [file.source for file in find_annotations(str(tmp_path / "a/x.jsonl")).files] == ["x.jsonl"]


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("missing.jsonl", "no such file"),
        ("empty", "no file ending in .jsonl"),
        ("*.jsonl", "no file ending in .jsonl"),
        ("table.csv", "'table.csv'"),
        ("broken.jsonl", "not a regular file"),
    ],
)
def test_a_setting_that_names_nothing_to_read_is_one_clear_error(tmp_path: Path, setting: str, complaint: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a,b")
    if setting == "broken.jsonl":
        (tmp_path / "broken.jsonl").symlink_to(tmp_path / "gone")
    with pytest.raises(SettingsError, match=r"annotations \(or RM_ANNOTATIONS\)") as error:
        find_annotations(str(tmp_path / setting))
    assert complaint in str(error.value)
