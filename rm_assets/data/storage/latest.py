"""`latest.json` of an asset, which names its newest snapshot, and how runs on several machines replace it safely.

Runs on one machine exclude each other by locks; those on different machines cannot. A run therefore replaces only the
`latest.json` that it found when it began (optimistic concurrency, as in Iceberg and Delta Lake). If another run has
published meanwhile, ConcurrentPublicationError is raised: that run's snapshot stays the latest, this run's stays on
disk.

S3 compares and replaces in one step: conditional writes, `If-Match` with the ETag of the object that was read, or
`If-None-Match: *` for the first one. On other file systems these are two steps: a publication that falls between them
is replaced unseen.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from rm_assets.data.storage.files import (
    StorageError,
    fsspec_path,
    is_remote,
    read_file,
    wrap_remote_errors,
    wrap_write_errors,
)
from rm_assets.data.storage.ownership import is_snapshot_name
from rm_assets.data.storage.writing import json_bytes, write_file

LATEST = "latest.json"
_ATTEMPTS = 10
_PAUSE_SECONDS = 0.1
_CHANGED = (404, 409, 412)
"""HTTP status of a conditional write whose object was removed, is being replaced, or was replaced."""
_NOT_IMPLEMENTED = 501


class ConcurrentPublicationError(StorageError):
    """Another run published a snapshot of the asset while this one made its own."""


class _Latest(msgspec.Struct):
    snapshot: str


def latest_name(storage: Path, asset: str) -> str | None:
    """The snapshot that `latest.json` names; None if that file is missing or damaged."""
    return _named(_content(storage / asset / LATEST))


def _content(path: Path) -> bytes | None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return read_file(path)
    return None


def _named(content: bytes | None) -> str | None:
    with contextlib.suppress(msgspec.MsgspecError):
        name = msgspec.json.decode(content or b"", type=_Latest).snapshot
        return name if is_snapshot_name(name) else None
    return None


class LatestPointer:
    """The `latest.json` of an asset's directory as a run found it: `name` is the snapshot that it named."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.name = latest_name(home.parent, home.name)

    def set(self, name: str) -> None:
        """Make a snapshot the latest; raises ConcurrentPublicationError if another run has replaced the latest."""

        def may_replace(content: bytes | None) -> bool:
            return _named(content) in (None, self.name, name)

        if not replace_file(self._home / LATEST, json_bytes({"snapshot": name}), may_replace):
            now = latest_name(self._home.parent, self._home.name)
            raise ConcurrentPublicationError(
                f"{self._home.name}: another run, perhaps on another machine, published {now} while this one made "
                f"{name}: {now} stays the latest and {name} stays in the storage; run again; finished work is kept"
            )
        self.name = name


def replace_file(path: Path, content: bytes, may_replace: Callable[[bytes | None], bool]) -> bool:
    """Replace a small file if `may_replace` accepts its present content (None: no file); returns whether it did.

    Nothing is written if the content is the same.
    """
    for attempt in range(_ATTEMPTS):
        time.sleep(attempt * _PAUSE_SECONDS)
        version = _etag(path)  # before the content: a file replaced between the two is read again
        present = _content(path)
        if present == content:  # or a first attempt was carried out, and its answer lost
            return True
        if not may_replace(present):
            return False
        if _write_if(path, content, version):
            return True
    raise StorageError(f"{str(path)!r} keeps changing: stop the other runs that write to this storage, then run again")


def _etag(path: Path) -> str | None:
    """The ETag of a file on S3; None if there is none."""
    if not _is_on_s3(path):
        return None
    system, name = fsspec_path(path)
    with contextlib.suppress(FileNotFoundError), wrap_remote_errors(path):
        return str(system.info(name)["ETag"])
    return None


def _is_on_s3(path: Path) -> bool:
    return is_remote(path) and "s3" in fsspec_path(path)[0].protocol


def _write_if(path: Path, content: bytes, etag: str | None) -> bool:
    """Write a file; on S3 only if it still has this ETag, or still does not exist. Returns whether it was written."""
    if not _is_on_s3(path):
        write_file(path, content)
        return True
    system, name = fsspec_path(path)
    with wrap_write_errors(path):
        try:
            system.pipe_file(name, content, **({"IfMatch": etag} if etag else {"IfNoneMatch": "*"}))
        except OSError as error:
            status = _http_status(error)
            if status in _CHANGED:
                return False
            if status != _NOT_IMPLEMENTED:
                raise
            system.pipe_file(name, content)  # a store that speaks S3, but without conditional writes
    return True


def _http_status(error: OSError) -> Any:
    """The status of the response that s3fs made an error of; None if there was none."""
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
