"""Bytes cut into lines and shards, nothing lost."""

import hashlib
import io
import tracemalloc
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.data.sources import blocks as lines_module
from rm_assets.data.sources.blocks import Block, SkippedLine, blocks_of_lines
from rm_assets.data.sources.lines import read_block
from rm_assets.data.tables.reasons import Reason


@dataclass
class Read:
    """A block with all that is read from it."""

    block: Block
    texts: list[str]
    numbers: list[int]
    rejects: list[tuple[int, Reason, str, str]]
    num_blank: int
    blank_bytes: int
    end_bytes: int
    reject_bytes: int


def read(block: Block, max_line_bytes: int, part_bytes: int) -> Read:
    parts = list(read_block(block, max_line_bytes=max_line_bytes, part_bytes=part_bytes))
    assert sum(part.num_lines for part in parts) == block.num_lines
    return Read(
        block=block,
        texts=[text for part in parts for text in part.texts.to_pylist()],
        numbers=[number for part in parts for number in part.numbers.tolist()],
        rejects=[reject for part in parts for reject in part.rejects],
        **{
            name: sum(getattr(part, name) for part in parts)
            for name in ("num_blank", "blank_bytes", "end_bytes", "reject_bytes")
        },
    )


def unaccounted(shard: Read) -> tuple[int, int]:
    """Bytes and lines that went nowhere: texts, line ends, BOM, blank lines and rejects make up the file."""
    texts = sum(len(text.encode()) for text in shard.texts)
    others = shard.end_bytes + shard.block.bom_bytes + shard.blank_bytes + shard.reject_bytes
    num_lines = shard.block.num_lines - shard.num_blank - len(shard.texts) - len(shard.rejects)
    return shard.block.num_bytes - texts - others, num_lines


def shards(
    content: bytes,
    *,
    shard_bytes: int = 100,
    max_line_bytes: int = 100,
    part_bytes: int = 2**20,
    whole_lines: bool = False,
    in_twos: bool = False,
) -> list[Read]:
    stream = io.BufferedReader(io.BytesIO(content))
    options = {"block_bytes": shard_bytes, "max_line_bytes": max_line_bytes}
    blocks = blocks_of_lines(stream, **options, whole_lines=whole_lines, in_twos=in_twos)
    return [read(block, max_line_bytes, part_bytes) for block in blocks]


def rejects(shard: Read) -> list[tuple[int, Reason, str]]:
    return [(line, reason, detail) for line, reason, detail, _ in shard.rejects]


def test_only_a_line_feed_ends_a_line() -> None:
    [shard] = shards("a\u2028b\rc\x85\x0cd\r\ne\r".encode())
    assert shard.texts == ["a\u2028b\rc\x85\x0cd", "e\r"]
    assert shard.end_bytes == 2


@pytest.mark.parametrize(("content", "kept"), [(b"12345\n", True), (b"12345\r\n", True), (b"123456\n", False)])
@pytest.mark.parametrize("shard_bytes", [1, 100])
def test_a_line_of_the_allowed_length_is_kept_and_a_longer_one_is_not(
    content: bytes, kept: bool, shard_bytes: int
) -> None:
    found = shards(content + b"next", max_line_bytes=5, shard_bytes=shard_bytes)
    assert [text for shard in found for text in shard.texts] == [*([content.strip().decode()] * kept), "next"]
    assert [reject for shard in found for reject in rejects(shard)] == [(1, Reason.LINE_TOO_LONG, "6 bytes")] * (
        not kept
    )


def test_a_line_that_is_too_long_is_a_reject_with_the_hash_of_its_bytes() -> None:
    long_line = b"x" * 3_000_000
    [shard] = shards(b"one\n" + long_line + b"\ntwo\n", shard_bytes=10_000_000)
    assert shard.texts == ["one", "two"]
    assert shard.numbers == [1, 3]
    assert shard.rejects == [(2, Reason.LINE_TOO_LONG, "3000000 bytes", hashlib.sha256(long_line).hexdigest())]
    assert unaccounted(shard) == (0, 0)


def test_a_small_file_takes_little_memory_however_large_a_block_may_be() -> None:
    """Thousands of small files would each have a block's memory cleared."""
    content = io.BufferedReader(io.BytesIO(b"{}\n" * 100))
    tracemalloc.start()
    try:
        [block] = blocks_of_lines(content, block_bytes=2**25, max_line_bytes=2**20)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert block.num_lines == 100


def test_a_line_that_is_too_long_is_never_held_whole() -> None:
    class Zeros(io.RawIOBase):
        """A line of 64 MiB that lies nowhere."""

        left = 64 * 2**20

        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:
            count = min(len(buffer), self.left)
            buffer[:count] = bytes(count)
            self.left -= count
            return count

    tracemalloc.start()
    try:
        [block] = blocks_of_lines(io.BufferedReader(Zeros()), block_bytes=2**16, max_line_bytes=2**16)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    [line] = block.pieces
    assert isinstance(line, SkippedLine)
    assert (line.num_bytes, line.end_bytes) == (64 * 2**20, 0)


def test_a_line_that_holds_the_hash_of_a_longer_one_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "_SKIP_BYTES", 10)
    long_line = b"x" * 300
    [skipped] = shards(long_line + b"\n", max_line_bytes=100)
    assert isinstance(skipped.block.pieces[0], SkippedLine)
    fields = f"skipped 300 1 {hashlib.sha256(long_line).hexdigest()}".encode()
    [text] = shards(b"\n" + fields, shard_bytes=200, max_line_bytes=200)
    assert text.block.sha256 != skipped.block.sha256


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"t\xffo", 2),
        (b"\xed\xa0\xbd\xed\xb8\x80", 1),  # a surrogate pair as CESU-8 writes it
        (b'"\xed\xa0\xbd"', 2),  # a lone surrogate
        (b"\xc0\xaf", 1),  # a slash, longer than it need be
        (b"\xf4\x90\x80\x80", 1),  # above U+10FFFF
        (b"cut \xe2\x82", 5),
    ],
)
def test_bytes_that_are_no_text_are_a_reject_and_the_lines_around_them_stay(content: bytes, place: int) -> None:
    [shard] = shards(b"one\n" + content + b"\nthree")
    assert shard.texts == ["one", "three"]
    assert rejects(shard) == [(2, Reason.NOT_UTF8, f"byte {place} of the line is not UTF-8: save the file as UTF-8")]


def test_a_null_byte_and_every_other_control_character_are_text() -> None:
    content = bytes(set(range(32)) - {10}) + b"\x7f"
    [shard] = shards(content + b"\nnext")
    assert [text.encode() for text in shard.texts] == [content, b"next"]


def test_a_byte_order_mark_is_taken_off_the_first_line_only() -> None:
    [shard] = shards(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n")
    assert shard.texts == ["one", "\ufefftwo"]
    assert shard.block.bom_bytes == 3


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_every_line_of_a_file_in_another_encoding_is_rejected_as_such(encoding: str) -> None:
    found = shards("\ufeffone\ntwo\nthree\n".encode(encoding), shard_bytes=8)
    reasons = {(reason, detail) for shard in found for _, reason, detail in rejects(shard)}
    assert reasons == {(Reason.NOT_UTF8, "the file is UTF-16 or UTF-32: save it as UTF-8")}
    assert sum(len(shard.rejects) for shard in found) >= 3
    assert all(shard.texts == [] and unaccounted(shard) == (0, 0) for shard in found)


def test_blank_lines_are_counted_but_are_no_rows() -> None:
    [shard] = shards(b"one\n\n  \t\r\ntwo\n")
    assert (shard.numbers, shard.num_blank, shard.blank_bytes) == ([1, 4], 2, 3)


@pytest.mark.parametrize(
    ("content", "num_lines", "num_blank"), [(b"", 0, 0), (b"\n\r\n \n", 3, 3), (b"\xef\xbb\xbf", 0, 0), (b"a", 1, 0)]
)
def test_a_file_without_rows_or_without_a_last_line_end_is_counted_too(
    content: bytes, num_lines: int, num_blank: int
) -> None:
    found = shards(content)
    assert sum(shard.block.num_lines for shard in found) == num_lines
    assert sum(shard.num_blank for shard in found) == num_blank
    assert sum(shard.block.num_bytes for shard in found) == len(content)
    assert all(unaccounted(shard) == (0, 0) for shard in found)


def test_a_last_line_that_is_still_being_written_can_be_left_out() -> None:
    [shard] = shards(b"one\ntwo\nthr", whole_lines=True)
    assert shard.texts == ["one", "two"]
    assert shards(b"thr", whole_lines=True) == []


def test_a_shard_of_tiny_lines_is_cut_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINES", 3)
    content = b"a\n\xff\n\n\nb\nc\nd\ne\n"
    assert [shard.block.first_line for shard in shards(content)] == [1, 4, 7]
    monkeypatch.setattr(lines_module, "MAX_LINES", 1)
    assert [shard.block.first_line for shard in shards(content, in_twos=True)] == [1, 3, 4, 5, 7]


def test_bytes_that_are_text_only_across_a_line_end_are_rejects() -> None:
    [shard] = shards(b"one \xe2\x82\n\xac two\n")
    assert [line for line, *_ in rejects(shard)] == [1, 2]


@given(
    lines=st.lists(st.sampled_from([b"a\n", b"\n", b"c" * 9 + b"\n", b"d" * 30 + b"\n", b" \r\n"]), max_size=20),
    shard_bytes=st.integers(1, 30),
)
def test_lines_that_come_in_twos_stay_together(lines: list[bytes], shard_bytes: int) -> None:
    found = shards(b"".join(lines), shard_bytes=shard_bytes, max_line_bytes=12, in_twos=True)
    assert all(len(shard.texts + shard.rejects) % 2 == 0 for shard in found[:-1])
    assert sum(shard.block.num_bytes for shard in found) == len(b"".join(lines))
    assert all(unaccounted(shard) == (0, 0) for shard in found)


@given(
    content=st.lists(
        st.sampled_from([b"a", b"bb", b"\n", b"\r\n", b"\xff", b" ", b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"c" * 9]),
        max_size=40,
    ),
    shard_bytes=st.integers(1, 30),
    max_line_bytes=st.integers(1, 12),
    part_bytes=st.integers(1, 30),
)
def test_every_byte_of_any_file_is_accounted_for(
    content: list[bytes], shard_bytes: int, max_line_bytes: int, part_bytes: int
) -> None:
    found = shards(b"".join(content), shard_bytes=shard_bytes, max_line_bytes=max_line_bytes, part_bytes=part_bytes)
    assert sum(shard.block.num_bytes for shard in found) == len(b"".join(content))
    assert all(unaccounted(shard) == (0, 0) for shard in found)
    assert all(
        shard.block.num_bytes <= shard_bytes or shard.block.num_lines == 1 or shard.block.bom_bytes for shard in found
    )
    assert [shard.block.first_line for shard in found[1:]] == [
        s.block.first_line + s.block.num_lines for s in found[:-1]
    ]


@given(
    lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), min_size=1, max_size=20),
    appended=st.binary(min_size=1, max_size=30),
)
def test_appending_leaves_all_but_the_last_shard_alone(lines: list[bytes], appended: bytes) -> None:
    whole = b"".join(line + b"\n" for line in lines)
    before, after = shards(whole, shard_bytes=20), shards(whole + appended, shard_bytes=20)
    assert [shard.block.sha256 for shard in after[: len(before) - 1]] == [shard.block.sha256 for shard in before[:-1]]
