"""The bytes of a file: archives read to their end or refused, and no more than the file had when it was opened."""

import gzip
import io
import os
import random
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from rm_assets.data.sources.opened_file import (
    EXPANSION_ALLOWANCE,
    Change,
    RejectedFileError,
    open_annotation_file,
    zstd,
)
from rm_assets.data.tables.reasons import Reason

WIDE = {zstd.CompressionParameter.window_log: 28}
CHECKED = {zstd.CompressionParameter.checksum_flag: 1}
TEXT = bytes(random.Random(0).choices(b"abcdefgh \n", k=300_000))


def content(path: Path, max_expansion: int = 200) -> bytes:
    with open_annotation_file(path) as file:
        return file.stream(max_expansion).read()


def refused(path: Path, max_expansion: int = 200) -> tuple[Reason, str]:
    with pytest.raises(RejectedFileError) as error:
        content(path, max_expansion)
    return error.value.reason, error.value.detail


def checked_zstd(data: bytes) -> bytes:
    return zstd.compress(data, options=CHECKED)


# --- archives ------------------------------------------------------------------------------------------------

COMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": checked_zstd}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_an_archive_is_read_whatever_its_members(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](b"one\n") + COMPRESS[suffix](b"") + COMPRESS[suffix](TEXT))
    assert content(path) == b"one\n" + TEXT


def test_gzip_padded_with_zeros_is_whole_as_the_gzip_program_has_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"one\n") + bytes(100))
    assert content(path) == b"one\n"


def test_a_skippable_zstd_frame_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstd.compress(b"one\n") + b"\x50\x2a\x4d\x18\x04\0\0\0note" + zstd.compress(b"two\n"))
    assert content(path) == b"one\ntwo\n"


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


TORN = "it is truncated: its transfer may have been interrupted"
FOREIGN = "its content is not compressed as its name says"
CHANGED = "its content does not match its checksum"
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], set[str]]] = {
    "nothing at all": (lambda data: b"", {"it is empty"}),
    "half a header": (lambda data: data[:3], {TORN}),
    "half the data": (lambda data: data[: len(data) // 2], {TORN}),
    "all but the last byte": (lambda data: data[:-1], {TORN}),
    "no archive": (lambda data: b"no archive", {FOREIGN}),
    "a bit flipped inside": (
        lambda data: flipped(data, len(data) // 2),
        {CHANGED, "its compressed data is damaged"},
    ),
    "a bit of the checksum flipped": (lambda data: flipped(data, len(data) - 3), {CHANGED}),
    "another length": (lambda data: flipped(data, len(data) - 1), {CHANGED}),
    "text after it": (lambda data: data + b"junk after the end", {FOREIGN}),
    "a torn second member": (lambda data: data + data[:-20], {TORN}),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_damaged_archive_is_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    spoil, details = DAMAGES[damage]
    path.write_bytes(spoil(COMPRESS[suffix](TEXT)))
    reason, detail = refused(path)
    assert reason is Reason.DAMAGED_ARCHIVE and detail in details


def test_a_zstd_frame_that_wants_too_large_a_window_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    compressor = zstd.ZstdCompressor(options=WIDE)
    path.write_bytes(compressor.compress(TEXT) + compressor.flush())
    assert refused(path) == (Reason.DAMAGED_ARCHIVE, "it needs more than 128 MiB of memory to decompress")


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_bomb_is_refused_at_the_limit_in_little_memory(tmp_path: Path, suffix: str) -> None:
    member = COMPRESS[suffix](bytes(2**23))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(member * (EXPANSION_ALLOWANCE // 2**23))
    assert path.stat().st_size * 200 < EXPANSION_ALLOWANCE
    with open_annotation_file(path) as file:
        stream = file.stream(200)
        assert sum(map(len, iter(lambda: stream.read(2**20), b""))) == EXPANSION_ALLOWANCE
    with path.open("ab") as stream:
        stream.write(COMPRESS[suffix](b"\n"))
    tracemalloc.start()
    try:
        with open_annotation_file(path) as file, pytest.raises(RejectedFileError, match="decompression_bomb"):
            stream = file.stream(200)
            while stream.read(2**16):
                pass
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_an_archive_above_the_allowance_may_expand_as_far_as_the_setting_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rm_assets.data.sources.opened_file.EXPANSION_ALLOWANCE", 1000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(bytes(100_000)))
    ratio = 100_000 / path.stat().st_size
    assert len(content(path, int(ratio) + 1)) == 100_000
    assert refused(path, int(ratio))[0] is Reason.DECOMPRESSION_BOMB


# --- what is no file -----------------------------------------------------------------------------------------


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's own name must be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


ENTRIES: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a directory that cannot be listed": Path.mkdir,
    "a broken link": lambda path: path.symlink_to("gone"),
    "Too many levels of symbolic links": lambda path: path.symlink_to(path.name),
    "No such file or directory": lambda path: None,
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, entry: str) -> None:
    ENTRIES[entry](tmp_path / "a.jsonl")
    assert refused(tmp_path / "a.jsonl") == (Reason.UNREADABLE_FILE, entry)


def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read everything")
    assert refused(path) == (Reason.UNREADABLE_FILE, "Permission denied")


def test_an_error_of_the_disk_is_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"one\n"))

    class BadDisk(io.FileIO):
        def readinto(self, buffer) -> int:
            raise OSError(5, "Input/output error")

    with open_annotation_file(path) as file, BadDisk(path) as file.file:
        with pytest.raises(RejectedFileError, match="unreadable_file: Input/output error"):
            file.stream(200).read()
        with pytest.raises(RejectedFileError, match="unreadable_file: Input/output error"):
            file.sha256()


# --- files that change ---------------------------------------------------------------------------------------


def test_a_file_that_held_still_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\n")
    with open_annotation_file(path) as file:
        assert file.stream(200).read() == b"one\n"
        assert file.change() is Change.NONE


def test_what_is_appended_after_opening_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\n")
    with open_annotation_file(path) as file:
        with path.open("ab") as stream:
            stream.write(b"half a li")
        assert file.stream(200).read() == b"one\n"
        assert file.change() is Change.GREW


@pytest.mark.parametrize("change", ["overwritten", "cut", "replaced", "relinked", "removed"])
def test_any_other_change_is_seen(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.jsonl"
    path.symlink_to("old")
    path.write_bytes(b"one\n")
    os.utime(path, (1_600_000_000, 1_600_000_000))
    with open_annotation_file(path) as file:
        if change == "overwritten":
            path.write_bytes(b"two\n")
        elif change == "cut":
            os.truncate(path, 1)
        elif change == "replaced":
            (tmp_path / "new").write_bytes(b"one\ntwo\n")
            (tmp_path / "new").replace(tmp_path / "old")
        elif change == "relinked":
            path.unlink()
            path.symlink_to("new")
            path.write_bytes(b"one\n")
        else:
            path.unlink()
        assert file.change() is Change.OTHER


def test_a_growing_archive_has_no_part_that_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"one\n"))
    with open_annotation_file(path) as file:
        with path.open("ab") as stream:
            stream.write(gzip.compress(b"two\n"))
        assert file.change() is Change.OTHER
