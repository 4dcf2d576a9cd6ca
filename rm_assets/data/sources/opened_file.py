"""The bytes of one annotation file: as many as it had when it was opened, decompressed within limits.

A file may be written, replaced or removed while it is read. What is read therefore ends where the file ended when it
was opened, and afterwards the file tells whether it held still meanwhile. Nothing blocks: a FIFO, a socket or a
device is refused before it is opened. A remote file that is not there, or may not be read, is refused like one of this
machine; where the network fails, the run does (StorageError), as nobody knows what the file holds.
"""

import contextlib
import errno
import gzip
import hashlib
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote_from_bytes

from rm_assets.data.sources.file_kinds import archive_suffix, grows_by_lines
from rm_assets.data.sources.remote import RemoteStatus, open_remote, remote_status
from rm_assets.data.storage.files import StorageError, describe_error, is_remote
from rm_assets.data.tables.reasons import Reason

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

EXPANSION_ALLOWANCE = 64 * 2**20
"""Any compressed file may expand to this many bytes; above it, its size times `max_expansion` is the limit."""
BEYOND_LIMIT = "expands beyond the limit"
_ZSTD_WINDOW_LOG = 27  # 128 MiB, what the zstd program allows too; a frame that needs more is refused
_BUFFER_BYTES = 2**18
_PART_BYTES = 2**20
_ARCHIVE_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError)
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory that cannot be listed",
}


class RejectedFileError(ValueError):
    """A file none of whose lines may be used. The detail never holds its path or its content."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Change(StrEnum):
    """What became of a file while it was read."""

    NONE = "none"
    GREW = "grew"  # bytes came after those that were read, which may be as they were
    OTHER = "other"  # written over, cut, replaced or removed


Status = os.stat_result | RemoteStatus
"""What a file system tells of a file."""


def file_status(path: Path) -> Status:
    """The status of what a path names now; raises OSError."""
    return remote_status(path) if is_remote(path) else path.stat()


def file_stamp(path: Path, status: Status) -> list[Any]:
    """What is equal as long as nothing about a file changed, as plain values."""
    if isinstance(status, RemoteStatus):
        return [str(path), status.st_size, status.version]
    place = quote_from_bytes(os.fsencode(path.resolve()))
    # the time of the last change of the status moves also where someone puts the old time of writing back
    return [place, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


@dataclass(kw_only=True)
class OpenedFile:
    """A regular file being read; `num_bytes` of it count, by default all that it had when it was opened."""

    path: Path
    file: BinaryIO
    status: Status
    num_bytes: int

    @property
    def is_archive(self) -> bool:
        """Whether the name says that the bytes are compressed."""
        return bool(archive_suffix(self.path.name))

    def stream(self, max_expansion: int, start: int = 0) -> io.BufferedReader:
        """The file's text as bytes, of a file that is no archive from `start` on.

        Raises RejectedFileError, possibly after some of it was read.
        """
        self.file.seek(start)
        stored: io.BufferedReader = io.BufferedReader(_Stored(self, self.num_bytes - start), _BUFFER_BYTES)
        if not self.is_archive:
            return stored
        if not self.num_bytes:
            raise RejectedFileError(Reason.DAMAGED_ARCHIVE, EOFError.__name__)  # where gzip sees nothing wrong
        limit = max(EXPANSION_ALLOWANCE, max_expansion * self.num_bytes)
        archive = _DECOMPRESSORS[archive_suffix(self.path.name)](stored)
        expanded: io.BufferedReader = io.BufferedReader(_Expanded(archive, limit), _BUFFER_BYTES)
        return expanded

    def random_access(self) -> io.BufferedReader:
        """The bytes as they are stored, for readers that go back and forth in them."""
        self.file.seek(0)
        return io.BufferedReader(_Stored(self, self.num_bytes), _BUFFER_BYTES)

    def sha256(self) -> str:
        """The hash of the bytes as they are stored."""
        self.file.seek(0)
        with io.BufferedReader(_Stored(self, self.num_bytes), _BUFFER_BYTES) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def parts(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to `end` as they are stored, or as many as there are, in parts of a megabyte.

        Of a file of this machine, and for any number of threads at a time. Raises OSError.
        """
        end = min(end, self.num_bytes)
        while start < end and (part := os.pread(self.file.fileno(), min(end - start, _PART_BYTES), start)):
            yield part
            start += len(part)

    def change(self) -> Change:
        """What became of the file since it was opened, by its status: of the open file, and of what its path names."""
        try:
            named = file_status(self.path)
        except OSError:
            return Change.OTHER
        if isinstance(named, RemoteStatus) or isinstance(self.status, RemoteStatus):  # written whole, never appended to
            return Change.NONE if named == self.status else Change.OTHER
        if not is_same_file(named, self.status):
            return Change.OTHER
        now = os.fstat(self.file.fileno())
        if _version(now) == _version(self.status):
            return Change.NONE
        grew = now.st_size > self.status.st_size and grows_by_lines(self.path.name)
        return Change.GREW if grew else Change.OTHER


def is_same_file(one: Status, other: Status) -> bool:
    """Whether two statuses are of one file, whatever it holds."""
    if isinstance(one, RemoteStatus) or isinstance(other, RemoteStatus):
        return one == other
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _version(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def open_annotation_file(path: Path) -> Iterator[OpenedFile]:
    """A regular file, open; raises RejectedFileError where the path names none that can be read."""
    if is_remote(path):
        with _opened_remote(path) as file:
            yield file
        return
    try:
        _require_regular(path.stat().st_mode)
        # O_NONBLOCK: should a FIFO have taken the file's place meanwhile, nobody waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        is_broken_link = error.errno == errno.ENOENT and path.is_symlink()
        detail = "a link to nothing" if is_broken_link else _kind(error)
        raise RejectedFileError(Reason.UNREADABLE_FILE, detail) from None
    with io.FileIO(descriptor) as file:
        status = os.fstat(descriptor)
        _require_regular(status.st_mode)
        yield OpenedFile(path=path, file=file, status=status, num_bytes=status.st_size)


@contextlib.contextmanager
def _opened_remote(path: Path) -> Iterator[OpenedFile]:
    try:
        status = remote_status(path)
        stream = open_remote(path)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise RejectedFileError(Reason.UNREADABLE_FILE, _kind(error)) from None
    with stream:
        yield OpenedFile(path=path, file=stream, status=status, num_bytes=status.st_size)


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise RejectedFileError(Reason.UNREADABLE_FILE, _KINDS.get(stat.S_IFMT(mode), "no regular file"))


def _kind(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__


# --- streams -------------------------------------------------------------------------------------------------


class _Stored(io.RawIOBase):
    """The next bytes of a file, and no more of it, however long it is by now."""

    def __init__(self, opened_file: OpenedFile, num_bytes: int) -> None:
        self._opened = opened_file
        self._num_left = num_bytes
        self._end = opened_file.num_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._end - self._num_left, io.SEEK_END: self._end}[whence]
        place = self._opened.file.seek(origin + offset)
        self._num_left = max(self._end - place, 0)
        return place

    def readinto(self, buffer: Any) -> int:
        try:
            num_read = self._opened.file.readinto(memoryview(buffer)[: self._num_left]) or 0  # type: ignore[attr-defined]
            if not num_read and self._num_left and is_remote(self._opened.path):
                raise OSError(f"it ends {self._num_left:,} bytes before the end that its server tells")
        except Exception as error:  # of whatever library reaches a remote file
            raise self._problem(error) from None
        self._num_left -= num_read
        return num_read

    def _problem(self, error: Exception) -> Exception:
        """What a failed reading means: the file is to blame, or the way to it."""
        path = self._opened.path
        if is_remote(path) and self._opened.change() is Change.NONE:
            return StorageError(f"{str(path)!r} cannot be read: {describe_error(error)}")
        return RejectedFileError(Reason.UNREADABLE_FILE, _kind(error)) if isinstance(error, OSError) else error


class _Expanded(io.RawIOBase):
    """What an archive expands to, up to a limit; the archive's own errors become rejects."""

    def __init__(self, archive: BinaryIO, limit: int) -> None:
        self._archive = archive
        self._num_left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._archive.read(len(buffer))
        except _ARCHIVE_ERRORS as error:
            raise RejectedFileError(Reason.DAMAGED_ARCHIVE, type(error).__name__) from None
        self._num_left -= len(piece)
        if self._num_left < 0:
            raise RejectedFileError(Reason.DECOMPRESSION_BOMB, BEYOND_LIMIT)
        buffer[: len(piece)] = piece
        return len(piece)


def _gunzip(stored: io.BufferedReader) -> BinaryIO:
    return gzip.GzipFile(fileobj=stored)  # type: ignore[return-value]


def _unzstd(stored: io.BufferedReader) -> BinaryIO:
    return zstd.ZstdFile(stored, options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})  # type: ignore[return-value]


_DECOMPRESSORS = {".gz": _gunzip, ".zst": _unzstd}
