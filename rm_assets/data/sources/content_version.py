"""What the annotations hold, as one version: a hash of each file's source, size and content, whatever its times are.

Content is hashed once per stamp, and what was hashed is kept in `<storage>/annotation_files/listing.json`, so that
looking again at files that did not change opens none of them. A remote file is known by the version that its file
system tells, the ETag of an object store.

Large files are hashed in blocks, so that a look that has no more time leaves its blocks to the next one.
"""

import contextlib
import functools
import hashlib
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from rm_assets.data.sources.discovery import AnnotationFile
from rm_assets.data.sources.opened_file import (
    Change,
    OpenedFile,
    RejectedFileError,
    Status,
    file_stamp,
    open_annotation_file,
)
from rm_assets.data.sources.remote import RemoteStatus
from rm_assets.data.storage.files import read_file, write_json
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.locks import hold_lock, local_working_directory
from rm_assets.data.storage.ownership import claim_storage, remove_own_temporary_files

ASSET = "annotation_files"
CONTENT = "content_version"
"""The fact of a raw snapshot that names the listing it was read from."""
LONGEST_WAIT_SECONDS = 600.0
"""Files that do not hold still keep a version back this long, or twice `settled_seconds`; then all are taken as is."""
_FILE = "listing.json"
_BLOCK_BYTES = 64 * 2**20
_NUM_THREADS = 2
"""Blocks of a file that are hashed at a time."""
_YOUNG_SECONDS = 2.0
"""A file stamped this recently may change again without a new stamp: what it holds is not kept."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files as one look found them; `version` is None where some are still changing or not yet hashed."""

    version: str | None
    num_files: int
    num_bytes: int
    changing: tuple[str, ...]
    unread: tuple[str, ...]


class _Seen(msgspec.Struct):
    """One file: its stamp, when this was first seen (seconds since 1970), and the hashes of its blocks so far."""

    stamp: list[Any]
    since: float
    num_bytes: int = 0
    blocks: list[str] = []
    is_whole: bool = False


class _Cache(msgspec.Struct):
    """What is known of each file by source, and since when changing ones, whichever they were, keep a version back."""

    seen: dict[str, _Seen] = {}
    waiting_since: float | None = None


def content_listing(
    files: Sequence[AnnotationFile],
    storage: Path,
    *,
    settled_seconds: float = 0.0,
    seconds: float = math.inf,
    trusts_stamps: bool = True,
) -> Listing:
    """One look at these files.

    A file counts as changing until it has stood still for `settled_seconds`, by the time it was written or since an
    earlier look; 0 takes each as it is, and so does the look after the longest wait. Hashing ends after `seconds`, but
    not before the first blocks were hashed.
    """
    home = local_working_directory(storage / ASSET)
    before = _read(home / _FILE) if trusts_stamps else _Cache()
    look = _Look(known=before, settled_seconds=settled_seconds)
    for file in files:
        look.at(file)
    unread = [] if look.changing else look.hash_until(time.monotonic() + seconds)
    version = None if look.changing or unread else look.version()
    listing = Listing(
        version=version,
        num_files=len(files),
        num_bytes=sum(seen.num_bytes for seen in look.found.seen.values()),
        changing=tuple(look.changing),
        unread=tuple(unread),
    )
    if (kept := look.to_keep(is_waiting=version is None)) != before:
        claim_storage(storage)
        _write(home, kept)
    return listing


def _read(path: Path) -> _Cache:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(read_file(path), type=_Cache)
    return _Cache()


def _write(home: Path, cache: _Cache) -> None:
    """The sensor and a run may look at the same time, and a killed one leaves what it had begun to write."""
    with hold_lock(home / "writer.lock", ASSET, lambda _: None):
        remove_own_temporary_files(home)
        write_json(home / _FILE, cache)


# --- one look ------------------------------------------------------------------------------------------------


class _Look:
    """A walk over the files, and what was found."""

    def __init__(self, *, known: _Cache, settled_seconds: float) -> None:
        self.found = _Cache()
        self.changing: list[str] = []
        self._known = known
        self._settled_seconds = settled_seconds
        self._now = time.time()
        # what a clock noted that was set back since is taken to be of now, so that nobody waits for it to come back
        self._waiting_since = None if known.waiting_since is None else min(known.waiting_since, self._now)
        longest_wait = max(LONGEST_WAIT_SECONDS, 2 * settled_seconds)
        self._takes_all = self._waiting_since is not None and self._now - self._waiting_since >= longest_wait
        self._unread: list[AnnotationFile] = []
        self._not_to_keep: set[str] = set()

    def at(self, file: AnnotationFile) -> None:
        """Take in a file by its status alone."""
        try:
            status = file.status()
        except OSError as error:
            self.found.seen[file.source] = _refused(type(error).__name__)
            return
        stamp, known = file_stamp(file.path, status), self._known.seen.get(file.source)
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
        """Whether to wait for a file: it was written lately, and no look that long ago saw it as it is now."""
        stood_still = time.time() - min(seen.since, status.st_mtime)
        return not (seen.is_whole or self._takes_all or stood_still >= self._settled_seconds)

    def hash_until(self, deadline: float) -> list[str]:
        """Hash what is not known yet; the sources for which no time was left."""
        while self._unread:
            if not self._hash(self._unread[0], deadline):
                break
            del self._unread[0]
            if self._unread and time.monotonic() > deadline:
                break
        return [file.source for file in self._unread]

    def _hash(self, file: AnnotationFile, deadline: float) -> bool:
        """Hash a file, from where an earlier look ended; whether it was finished."""
        try:
            with open_annotation_file(file.path) as now:
                stamp = file_stamp(file.path, now.status)
                seen = self.found.seen[file.source]
                if seen.stamp != stamp:
                    seen = self.found.seen[file.source] = _Seen(stamp, time.time(), now.num_bytes)
                    self._note_change(file.source)
                if not self._hash_blocks(now, seen, deadline):
                    return False
                if now.change() is not Change.NONE:
                    self._note_change(file.source)
                elif time.time() - _written(now.status) < _YOUNG_SECONDS:
                    self._not_to_keep.add(file.source)
                seen.is_whole = True
        except RejectedFileError as error:
            self.found.seen[file.source] = _refused(error.detail)
        return True

    def _hash_blocks(self, now: OpenedFile, seen: _Seen, deadline: float) -> bool:
        """Hash the blocks that no earlier look has hashed, a few at a time; whether that was all."""
        starts = range(len(seen.blocks) * _BLOCK_BYTES, now.num_bytes, _BLOCK_BYTES)
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            for number in range(0, len(starts), _NUM_THREADS):
                if number and time.monotonic() > deadline:
                    return False
                together = starts[number : number + _NUM_THREADS]
                hashes = threads.map if len(together) > 1 else map
                seen.blocks += hashes(functools.partial(_block_hash, now), together)
        return True

    def _note_change(self, source: str) -> None:
        """A file that changes under the eyes of this look: what was hashed is good for this look at most."""
        self._not_to_keep.add(source)
        if self._settled_seconds and not self._takes_all:
            self.changing.append(source)

    def version(self) -> str:
        """A hash of all files, in the order of their sources."""
        contents = [[source, seen.num_bytes, seen.blocks] for source, seen in sorted(self.found.seen.items())]
        return fingerprint(contents)[:32]

    def to_keep(self, *, is_waiting: bool) -> _Cache:
        """What the next look may rely on. The wait ends with a version, not with the file that it began with."""
        if is_waiting:
            self.found.waiting_since = self._waiting_since or (self._now if self.changing else None)
        for source in self._not_to_keep:
            seen = self.found.seen[source]
            seen.blocks, seen.is_whole = [], False
        return self.found


def _written(status: Status) -> float:
    """When a file was written; where someone set that to a time to come, when this was done."""
    return status.st_mtime if isinstance(status, RemoteStatus) else min(status.st_mtime, status.st_ctime)


def _refused(detail: str) -> _Seen:
    """A file that cannot be read: what keeps it from being read stands for its content."""
    return _Seen(stamp=[detail], since=0.0, blocks=[detail], is_whole=True)


def _block_hash(now: OpenedFile, start: int) -> str:
    """The hash of the block that starts there; of a file that grows no more than what it had when it was opened."""
    digest = hashlib.sha256()
    for part in now.parts(start, start + _BLOCK_BYTES):
        digest.update(part)
    return digest.hexdigest()
