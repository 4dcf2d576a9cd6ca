"""The content version of the annotations: a hash of each file's source, size and content, independent of its times.

Hashes are cached by file stamp in `<storage>/annotation_files/listing.json`: files that did not change are not opened
again. A remote file is identified by the version its file system reports, such as an ETag.

Large files are hashed in blocks; a scan that runs out of time leaves the remaining blocks to the next one.
"""

import contextlib
import functools
import hashlib
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from rm_assets.data.compute.workers import pause_gc
from rm_assets.data.sources.discovery import AnnotationFile
from rm_assets.data.sources.opened_file import (
    Change,
    OpenedFile,
    RejectedFileError,
    Status,
    file_stamp,
    is_recent,
    open_annotation_file,
)
from rm_assets.data.sources.remote import RemoteStatus
from rm_assets.data.storage.files import read_file
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.locks import hold_lock, local_working_directory
from rm_assets.data.storage.ownership import claim_storage, remove_own_temporary_files
from rm_assets.data.storage.writing import write_json

ASSET = "annotation_files"
CONTENT = "content_version"
"""The fact of a raw snapshot that holds the content version it was read from."""
FILES = "files"
"""The fact of a raw snapshot that holds the size and hash of each file it was read from."""
LONGEST_WAIT_SECONDS = 600.0
"""Changing files delay a version this long, or twice `settled_seconds`; then all are taken as they are."""
_FILE = "listing.json"
_BLOCK_BYTES = 64 * 2**20
_NUM_THREADS = 2
"""Blocks of a file hashed at a time."""


Content = list[Any]
"""The size of a file in bytes and a hash of its content; a list, as JSON has no tuples."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The result of one scan; `version` is None while some files are changing or not hashed yet.

    `stamps` are those of all files, by source; `contents` are their sizes in bytes and their hashes, and `blocks` the
    hashes of their blocks.
    """

    version: str | None
    num_files: int
    num_bytes: int
    changing: tuple[str, ...]
    unread: tuple[str, ...]
    stamps: Mapping[str, list[Any]] = field(default_factory=dict, repr=False, compare=False)
    contents: Mapping[str, Content] = field(default_factory=dict, repr=False, compare=False)
    blocks: Mapping[str, list[str]] = field(default_factory=dict, repr=False, compare=False)

    def num_equal_bytes(self, source: str, blocks: Sequence[str]) -> int:
        """How many bytes at the start of a local file are those of an earlier listing that had these blocks."""
        pairs = zip(blocks, self.blocks[source], strict=False)
        return _BLOCK_BYTES * sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


class _Seen(msgspec.Struct):
    """One file: its stamp, when that was first seen (Unix time), and the hashes of its blocks so far."""

    stamp: list[Any]
    since: float
    num_bytes: int = 0
    blocks: list[str] = []
    is_whole: bool = False

    def content(self) -> Content:
        blocks = "\0".join(self.blocks).encode("utf-8", "surrogatepass")
        return [self.num_bytes, hashlib.sha256(blocks).hexdigest()[:16]]


class _Cache(msgspec.Struct):
    """All files by source, and since when (Unix time) changing files have delayed a version."""

    seen: dict[str, _Seen] = {}
    waiting_since: float | None = None


@pause_gc()
def content_listing(
    files: Sequence[AnnotationFile],
    storage: Path,
    *,
    settled_seconds: float = 0.0,
    seconds: float = math.inf,
    trusts_stamps: bool = True,
) -> Listing:
    """Scan the files, hashing those that changed.

    A file counts as changing until it has been unchanged for `settled_seconds`, by its mtime or since an earlier scan;
    with 0, and after the longest wait, each is taken as it is. Hashing stops after `seconds`, but always completes
    at least the first blocks.
    """
    home = local_working_directory(storage / ASSET)
    before = _read(home / _FILE) if trusts_stamps else _Cache()
    scan = _Scan(known=before, settled_seconds=settled_seconds)
    for file in files:
        scan.add(file)
    unread = [] if scan.changing else scan.hash_until(time.monotonic() + seconds)
    version = None if scan.changing or unread else scan.version()
    listing = Listing(
        version=version,
        num_files=len(files),
        num_bytes=sum(seen.num_bytes for seen in scan.found.seen.values()),
        changing=tuple(scan.changing),
        unread=tuple(unread),
        stamps={source: seen.stamp for source, seen in scan.found.seen.items()},
        contents={source: seen.content() for source, seen in scan.found.seen.items()},
        blocks={source: seen.blocks for source, seen in scan.found.seen.items()},
    )
    if (kept := scan.to_keep(is_waiting=version is None)) != before:
        claim_storage(storage)
        _write(home, kept)
    return listing


def file_changes(before: Mapping[str, Content], now: Mapping[str, Content]) -> dict[str, str]:
    """The files that differ between two listings, by source: `new`, `changed` or `gone`."""
    changes = {source: "changed" if source in before else "new" for source in now if before.get(source) != now[source]}
    return changes | {source: "gone" for source in before if source not in now}


def _read(path: Path) -> _Cache:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(read_file(path), type=_Cache)
    return _Cache()


def _write(home: Path, cache: _Cache) -> None:
    """Locked, since the sensor and a run may scan at once; removes what a killed process left unfinished."""
    with hold_lock(home / "writer.lock", ASSET, lambda _: None):
        remove_own_temporary_files(home)
        write_json(home / _FILE, cache)


# --- one scan ------------------------------------------------------------------------------------------------


class _Scan:
    """One pass over the files, and what it found."""

    def __init__(self, *, known: _Cache, settled_seconds: float) -> None:
        self.found = _Cache()
        self.changing: list[str] = []
        self._known = known
        self._settled_seconds = settled_seconds
        self._now = time.time()
        # a time in the future was noted before the clock was set back, and counts as now
        self._waiting_since = None if known.waiting_since is None else min(known.waiting_since, self._now)
        longest_wait = max(LONGEST_WAIT_SECONDS, 2 * settled_seconds)
        self._takes_all = self._waiting_since is not None and self._now - self._waiting_since >= longest_wait
        self._unread: list[AnnotationFile] = []
        self._not_to_keep: set[str] = set()
        self._directories: dict[str, str] = {}

    def add(self, file: AnnotationFile) -> None:
        """Add a file by its status, without opening it."""
        try:
            status = file.status()
        except OSError as error:
            self.found.seen[file.source] = _unreadable(type(error).__name__)
            return
        stamp, known = file_stamp(file.path, status, self._directories), self._known.seen.get(file.source)
        if known and known.stamp == stamp:
            seen = msgspec.structs.replace(known, since=min(known.since, self._now), blocks=list(known.blocks))
        else:
            seen = _Seen(stamp, time.time(), status.st_size)
        self.found.seen[file.source] = seen
        if self._is_changing(seen, status):
            self.changing.append(file.source)
        elif isinstance(status, RemoteStatus):
            seen.blocks, seen.is_whole = [status.version], True
        elif not seen.is_whole:
            self._unread.append(file)

    def _is_changing(self, seen: _Seen, status: Status) -> bool:
        """Whether a file was written recently, and no earlier scan found it unchanged for `settled_seconds`."""
        unchanged_seconds = time.time() - min(seen.since, status.st_mtime)
        return not (seen.is_whole or self._takes_all or unchanged_seconds >= self._settled_seconds)

    def hash_until(self, deadline: float) -> list[str]:
        """Hash the files that are not cached; returns the sources left when time ran out."""
        while self._unread:
            if not self._hash(self._unread[0], deadline):
                break
            del self._unread[0]
            if self._unread and time.monotonic() > deadline:
                break
        return [file.source for file in self._unread]

    def _hash(self, file: AnnotationFile, deadline: float) -> bool:
        """Hash a file, continuing where an earlier scan stopped; returns whether it is finished."""
        try:
            with open_annotation_file(file.path) as now:
                stamp = file_stamp(file.path, now.status, self._directories)
                seen = self.found.seen[file.source]
                if seen.stamp != stamp:
                    seen = self.found.seen[file.source] = _Seen(stamp, time.time(), now.num_bytes)
                    self._note_change(file.source)
                if not self._hash_blocks(now, seen, deadline):
                    return False
                if now.change() is not Change.NONE:
                    self._note_change(file.source)
                elif is_recent(now.status):
                    self._not_to_keep.add(file.source)
                seen.is_whole = True
        except RejectedFileError as error:
            self.found.seen[file.source] = _unreadable(error.detail)
        return True

    def _hash_blocks(self, now: OpenedFile, seen: _Seen, deadline: float) -> bool:
        """Hash the remaining blocks, a few at a time; returns whether all are hashed."""
        starts = range(len(seen.blocks) * _BLOCK_BYTES, now.num_bytes, _BLOCK_BYTES)
        if len(starts) <= 1:  # as nearly always: threads would take longer to start
            seen.blocks += [_block_hash(now, start) for start in starts]
            return True
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            for number in range(0, len(starts), _NUM_THREADS):
                if number and time.monotonic() > deadline:
                    return False
                together = starts[number : number + _NUM_THREADS]
                hashes = threads.map if len(together) > 1 else map
                seen.blocks += hashes(functools.partial(_block_hash, now), together)
        return True

    def _note_change(self, source: str) -> None:
        """Note that a file changed during this scan: its hashes are not cached."""
        self._not_to_keep.add(source)
        if self._settled_seconds and not self._takes_all:
            self.changing.append(source)

    def version(self) -> str:
        """A hash of all files, in the order of their sources."""
        contents = [[source, seen.num_bytes, seen.blocks] for source, seen in sorted(self.found.seen.items())]
        return fingerprint(contents)[:32]

    def to_keep(self, *, is_waiting: bool) -> _Cache:
        """The cache for the next scan. The wait ends with a version, not with the file that began it."""
        if is_waiting:
            self.found.waiting_since = self._waiting_since or (self._now if self.changing else None)
        for source in self._not_to_keep:
            seen = self.found.seen[source]
            seen.blocks, seen.is_whole = [], False
        return self.found


def _unreadable(detail: str) -> _Seen:
    """A file that cannot be read: the reason takes the place of its content."""
    return _Seen(stamp=[detail], since=0.0, blocks=[detail], is_whole=True)


def _block_hash(now: OpenedFile, start: int) -> str:
    """The hash of the block at `start`, up to the size the file had when it was opened."""
    digest = hashlib.sha256()
    for part in now.parts(start, start + _BLOCK_BYTES):
        digest.update(part)
    return digest.hexdigest()
