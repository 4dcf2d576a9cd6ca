"""The bytes of one annotation file, up to its size when it was opened, decompressed within limits.

A file may be written, replaced or removed while it is read. Reading therefore ends at the size the file had when it was
opened, and `OpenedFile.change` reports afterwards what happened to it. Reading never blocks: a FIFO, socket or device
is rejected before it is opened. A remote file that is missing or not readable is rejected like a local one; where the
network fails, the run fails (StorageError), since the content is unknown.
"""

import contextlib
import errno
import gzip
import hashlib
import io
import os
import stat
import sys
import time
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
"""Any compressed file may expand to this many bytes; a larger limit is its size times `max_expansion`."""
BEYOND_LIMIT = "expands beyond the limit"
_ZSTD_WINDOW_LOG = 27  # 128 MiB, the limit of the zstd program too; a frame that needs more is rejected
_BUFFER_BYTES = 2**18
_PART_BYTES = 2**20
_RECENT_SECONDS = 2.0
_ARCHIVE_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError)
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory that cannot be listed",
}


class RejectedFileError(ValueError):
    """A file of which no line is used. The detail contains neither its path nor its content."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Change(StrEnum):
    """How a file changed while it was read."""

    NONE = "none"
    GREW = "grew"  # bytes were appended; those before may be unchanged
    OTHER = "other"  # overwritten, truncated, replaced or removed


Status = os.stat_result | RemoteStatus
"""The status of a local or a remote file."""


def file_status(path: Path) -> Status:
    """The present status of the file at a path; raises OSError."""
    return remote_status(path) if is_remote(path) else path.stat()


def file_stamp(path: Path, status: Status, directories: dict[str, str] | None = None) -> list[Any]:
    """Plain values that stay equal as long as a file does not change: path, size, times and inode.

    `directories` keeps the resolved paths of directories from one file of a listing to the next.
    """
    if isinstance(status, RemoteStatus):
        return [str(path), status.st_size, status.version]
    location = quote_from_bytes(os.fsencode(_resolved(path, {} if directories is None else directories)))
    # ctime also changes where a tool restores the old mtime after writing
    return [location, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _resolved(path: Path, directories: dict[str, str]) -> str:
    if path.is_symlink():
        return os.path.realpath(path)
    directory, name = os.path.split(path)
    if directory not in directories:
        directories[directory] = os.path.realpath(directory)
    return f"{directories[directory]}/{name}"


def is_recent(status: Status) -> bool:
    """Whether a file was written so recently that it may change again under an equal stamp.

    Clocks of file systems are coarse. Where someone set the time of writing to the future, ctime counts.
    """
    written = status.st_mtime if isinstance(status, RemoteStatus) else min(status.st_mtime, status.st_ctime)
    return time.time() - written < _RECENT_SECONDS


@dataclass(kw_only=True)
class OpenedFile:
    """A regular file being read, up to `num_bytes`: its size when it was opened, or less."""

    path: Path
    file: BinaryIO
    status: Status
    num_bytes: int

    def stream(self, max_expansion: int, start: int = 0) -> io.BufferedReader:
        """The decompressed bytes; those of a file that is not compressed may begin at `start`.

        Raises RejectedFileError, possibly while reading, where an archive is damaged or expands too far.
        """
        stored = self.random_access(start)
        suffix = archive_suffix(self.path.name)
        if not suffix:
            return stored
        if not self.num_bytes:
            raise RejectedFileError(Reason.DAMAGED_ARCHIVE, "it is empty")  # which the gzip module accepts
        limit = max(EXPANSION_ALLOWANCE, max_expansion * self.num_bytes)
        archive = _DECOMPRESSORS[suffix](stored)
        expanded: io.BufferedReader = io.BufferedReader(_Expanded(archive, limit), _BUFFER_BYTES)
        return expanded

    def random_access(self, start: int = 0) -> io.BufferedReader:
        """The bytes as stored, from `start`, for readers that seek."""
        self.file.seek(start)
        stored: io.BufferedReader = io.BufferedReader(_Stored(self, self.num_bytes - start), _BUFFER_BYTES)
        return stored

    def sha256(self) -> str:
        """The hash of the bytes as stored."""
        with self.random_access() as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def parts(self, start: int, end: int) -> Iterator[bytes]:
        """The stored bytes from `start` to `end`, or to the end of the file, in parts of 1 MiB; raises OSError.

        For local files only. Safe to call from several threads at once.
        """
        end = min(end, self.num_bytes)
        while start < end and (part := os.pread(self.file.fileno(), min(end - start, _PART_BYTES), start)):
            yield part
            start += len(part)

    def change(self) -> Change:
        """How the file changed since it was opened, by the status of the open file and of the file now at its path."""
        try:
            named = file_status(self.path)
        except OSError:
            return Change.OTHER
        if isinstance(named, RemoteStatus) or isinstance(
            self.status, RemoteStatus
        ):  # remote files are replaced, never appended to
            return Change.NONE if named == self.status else Change.OTHER
        if not is_same_file(named, self.status):
            return Change.OTHER
        now = os.fstat(self.file.fileno())
        if _version(now) == _version(self.status):
            return Change.NONE
        grew = now.st_size > self.status.st_size and grows_by_lines(self.path.name)
        return Change.GREW if grew else Change.OTHER


def is_same_file(one: Status, other: Status) -> bool:
    """Whether two statuses belong to one file, even if its content changed."""
    if isinstance(one, RemoteStatus) or isinstance(other, RemoteStatus):
        return one == other
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _version(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def open_annotation_file(path: Path) -> Iterator[OpenedFile]:
    """Open a regular file; raises RejectedFileError where there is none at the path, or it cannot be read."""
    if is_remote(path):
        with _open_remote_file(path) as file:
            yield file
        return
    try:
        _require_regular(path.stat().st_mode)
        # O_NONBLOCK: if a FIFO has replaced the file meanwhile, opening it does not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        is_broken_link = error.errno == errno.ENOENT and path.is_symlink()
        detail = "a broken link" if is_broken_link else _error_name(error)
        raise RejectedFileError(Reason.UNREADABLE_FILE, detail) from None
    with io.FileIO(descriptor) as file:
        status = os.fstat(descriptor)
        _require_regular(status.st_mode)
        yield OpenedFile(path=path, file=file, status=status, num_bytes=status.st_size)


@contextlib.contextmanager
def _open_remote_file(path: Path) -> Iterator[OpenedFile]:
    try:
        status = remote_status(path)
        stream = open_remote(path)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise RejectedFileError(Reason.UNREADABLE_FILE, _error_name(error)) from None
    with stream:
        yield OpenedFile(path=path, file=stream, status=status, num_bytes=status.st_size)


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise RejectedFileError(Reason.UNREADABLE_FILE, _KINDS.get(stat.S_IFMT(mode), "not a regular file"))


def _error_name(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__


# --- streams -------------------------------------------------------------------------------------------------


class _Stored(io.RawIOBase):
    """A raw stream of a file that ends at `num_bytes`, even if the file has grown."""

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
        position = self._opened.file.seek(origin + offset)
        self._num_left = max(self._end - position, 0)
        return position

    def readinto(self, buffer: Any) -> int:
        try:
            num_read = self._opened.file.readinto(memoryview(buffer)[: self._num_left]) or 0  # type: ignore[attr-defined]
            if not num_read and self._num_left and is_remote(self._opened.path):
                raise OSError(f"it ends {self._num_left:,} bytes before the size that its server reports")
        except Exception as error:  # each remote file system has its own errors
            raise self._problem(error) from None
        self._num_left -= num_read
        return num_read

    def _problem(self, error: Exception) -> Exception:
        """The error for a failed read: RejectedFileError if the file is at fault, StorageError if the network is."""
        path = self._opened.path
        if is_remote(path) and self._opened.change() is Change.NONE:
            return StorageError(f"{str(path)!r} cannot be read: {describe_error(error)}")
        return RejectedFileError(Reason.UNREADABLE_FILE, _error_name(error)) if isinstance(error, OSError) else error


class _Expanded(io.RawIOBase):
    """The decompressed bytes, up to a limit; errors of the archive become RejectedFileError."""

    def __init__(self, archive: BinaryIO, limit: int) -> None:
        self._archive = archive
        self._num_left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._archive.read(len(buffer))
        except _ARCHIVE_ERRORS as error:
            raise RejectedFileError(Reason.DAMAGED_ARCHIVE, _archive_problem(error)) from None
        self._num_left -= len(piece)
        if self._num_left < 0:
            raise RejectedFileError(Reason.DECOMPRESSION_BOMB, BEYOND_LIMIT)
        buffer[: len(piece)] = piece
        return len(piece)


def _archive_problem(error: Exception) -> str:
    """What is wrong with an archive, by the error of its decompressor."""
    text = str(error)
    if isinstance(error, EOFError):
        return "it is truncated: its transfer may have been interrupted"
    if text.startswith("Not a gzipped file") or "Unknown frame descriptor" in text:
        return "its content is not compressed as its name says"
    if text.startswith(("CRC check failed", "Incorrect length")) or "checksum" in text:
        return "its content does not match its checksum"
    if "requires too much memory" in text:
        return "it needs more than 128 MiB of memory to decompress"
    return "its compressed data is damaged"


def _gunzip(stored: io.BufferedReader) -> BinaryIO:
    return gzip.GzipFile(fileobj=stored)  # type: ignore[return-value]


def _unzstd(stored: io.BufferedReader) -> BinaryIO:
    return zstd.ZstdFile(stored, options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})  # type: ignore[return-value]


_DECOMPRESSORS = {".gz": _gunzip, ".zst": _unzstd}
