"""Writes files on local file systems and on remote ones: atomically, durably, by hard links and by copies.

How writes become visible:
- A local file is written under a temporary name, synced and renamed: readers see the old bytes or the new ones, even
  after a power cut. A lock serializes writers.
- An object store has no rename and needs none: an object appears whole or not at all. Writers on other machines are not
  seen by our locks. Concurrent writers are still safe because names are derived from content: two of them write the
  same bytes under the same name, and a manifest is written after everything that it names. Files without a manifest are
  left alone for a day, because someone may still be writing them. A run that was overtaken by one on another machine
  fails (see `latest`). Not guaranteed is that an old snapshot removed by one machine is still there for an unfinished
  run of another, which then fails and succeeds when run again.
"""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from rm_assets.data.storage.files import fsspec_path, is_remote, wrap_write_errors

_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)


class NewFile(io.RawIOBase):
    """A file being written, which counts and hashes its bytes."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path = path
        self._stream = stream
        self._digest = hashlib.sha256()
        self._footer_digest: Any = None
        self.num_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with wrap_write_errors(self._path):
            self._stream.write(data)
        self._digest.update(data)
        if self._footer_digest is not None:
            self._footer_digest.update(data)
        self.num_bytes += len(memoryview(data).cast("B"))
        return len(data)

    def tell(self) -> int:
        return self.num_bytes

    @property
    def sha256(self) -> str:
        """The hash of all bytes so far, as 64 hexadecimal digits."""
        return self._digest.hexdigest()

    def begin_footer(self) -> None:
        """Start a second hash, of the footer: what is written from now on."""
        self._footer_digest = hashlib.sha256()

    @property
    def footer_sha256(self) -> str:
        """The hash of the bytes since `begin_footer`."""
        return str(self._footer_digest.hexdigest())


@contextlib.contextmanager
def create_file(path: Path) -> Iterator[NewFile]:
    """Create a file and its directory, durable on exit. Not atomic: for files that nobody reads until then."""
    make_directory(path.parent)
    with wrap_write_errors(path):
        stream = cast(BinaryIO, path.open("wb"))
    try:
        yield NewFile(path, stream)
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to report
            stream.close()
        raise
    with wrap_write_errors(path), stream:
        stream.flush()
        if not is_remote(path):
            os.fsync(stream.fileno())


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Replace a JSON file atomically: readers see the old bytes or the new ones, even after a power cut.

    Without `sync`, a power cut may also leave an empty file or none.
    """
    write_file(path, json_bytes(value), sync=sync)


def json_bytes(value: Any) -> bytes:
    """A value as the JSON that all our files have."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1)


def write_file(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Replace a small file atomically; `sync` as for `write_json`. Hard links to the old one keep its bytes."""
    make_directory(path.parent)
    with wrap_write_errors(path):
        if is_remote(path):
            path.write_bytes(content)
            return
        with _temporary_name(path) as temporary, temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        if sync:
            fsync_directory(path.parent)


@contextlib.contextmanager
def _temporary_name(path: Path) -> Iterator[Path]:
    """A name beside a local file, to write its new content to; renamed to it on success, removed on failure."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        temporary.replace(path)
    finally:  # renaming a link onto another link of the same file leaves both
        temporary.unlink(missing_ok=True)


def make_directory(directory: Path) -> None:
    """Create a local directory and its parents; remote file systems need none."""
    if not is_remote(directory):
        with wrap_write_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)


def fsync_directory(directory: Path, *, recursive: bool = False) -> None:
    """Make a local directory's entries durable; remote ones already are."""
    if is_remote(directory):
        return
    below = [path for path in directory.rglob("*") if path.is_dir()] if recursive else []
    for folder in (directory, *below):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with wrap_write_errors(folder):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def link_files(files: dict[Path, Path]) -> None:
    """Hard-link each origin to its target, {target: origin}; copy where the file system has no links.

    A remote file system copies them itself; the bytes do not pass through this machine.
    """
    if not files:
        return
    first = next(iter(files))
    with wrap_write_errors(first):
        if is_remote(first):
            system, _ = fsspec_path(first)
            system.copy(
                [fsspec_path(origin)[1] for origin in files.values()], [fsspec_path(target)[1] for target in files]
            )
            return
        for directory in {target.parent for target in files}:
            directory.mkdir(parents=True, exist_ok=True)
        for target, origin in files.items():
            try:
                os.link(origin, target)
            except OSError:  # the target exists, there are no links here, or there is no origin
                _link(origin, target)


def _link(origin: Path, target: Path) -> None:
    with _temporary_name(target) as temporary:
        try:
            os.link(origin, temporary)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            copy_file(origin, temporary)


def copy_file(origin: Path, target: Path) -> None:
    """Copy a file between any two file systems."""
    with origin.open("rb") as source, create_file(target) as stream:
        shutil.copyfileobj(source, stream, 2**20)


def upload(origin: Path, target: Path, names: Iterable[str] | None = None) -> None:
    """Copy a local directory, or only these files of it, to any file system; its `manifest.json` comes last."""
    if names is None:
        names = (path.relative_to(origin).as_posix() for path in origin.rglob("*") if path.is_file())
    for name in sorted(names, key=lambda name: (name == "manifest.json", name)):
        copy_file(origin / name, target / name)


def download(origin: Path, target: Path) -> None:
    """Copy a file of any file system to a local one, unless it is already there with the same size."""
    if not target.is_file() or target.stat().st_size != origin.stat().st_size:
        with _temporary_name(target) as temporary:
            copy_file(origin, temporary)
