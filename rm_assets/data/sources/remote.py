"""Finding and opening remote files, and the version of each.

Works with any fsspec file system; they report sizes, times and versions under different names.
"""

import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from upath import UPath

from rm_assets.addresses import mask_credentials
from rm_assets.data.storage.files import (
    StorageError,
    describe_error,
    fsspec_path,
    modified_at,
    resolve_path,
    wrap_remote_errors,
)

_CONTENT_HASH = "blob_id"
"""Reported by the Hugging Face Hub; its commits are atomic, so a file there is never still being written."""
_VERSIONS = (_CONTENT_HASH, "ETag", "etag", "VersionId", "generation", "md5Hash", "content_md5")
_BLOCK_BYTES = 8 * 2**20


def require_reachable(directory: Path) -> None:
    """Raise StorageError unless a remote directory can be listed: the host answers and the bucket, or the Hub's
    repository such as `datasets/owner/name`, may be read.
    """
    system, path = fsspec_path(directory)
    try:
        with wrap_remote_errors(directory):
            if not system.exists(path):
                system.ls("/".join(path.strip("/").split("/")[: 3 if "hf" in system.protocol else 1]))
    except OSError as error:
        raise StorageError(f"{str(directory)!r} cannot be reached: {describe_error(error)}") from None


@dataclass(frozen=True, kw_only=True)
class RemoteStatus:
    """The status of a remote file; `version` changes with its content, such as an ETag.

    Named like `os.stat_result`; `st_mtime` is the present time if the file system does not report one.
    """

    st_size: int
    st_mtime: float = field(compare=False)
    version: str


def remote_status(path: Path) -> RemoteStatus:
    """The status of a remote file; raises OSError if there is none, StorageError if it cannot be requested."""
    system, name = _fresh_system(path)
    with wrap_remote_errors(path):
        entry = system.info(name)
        if entry["type"] != "file":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return _status(entry)


def _fresh_system(path: Path) -> tuple[Any, str]:
    """The fsspec file system and path, with cached listings dropped: the Hub's file system keeps every listing."""
    system, name = fsspec_path(path)
    system.invalidate_cache()
    return system, name


def _status(entry: dict[str, Any]) -> RemoteStatus:
    written = 0.0 if entry.get(_CONTENT_HASH) else modified_at(entry)
    if entry.get("size") is None:
        name, way = mask_credentials(str(entry["name"])), "download it and use the copy"
        raise StorageError(f"{name!r} cannot be read: its server does not report its size; {way}")
    version = next((str(entry[name]) for name in _VERSIONS if entry.get(name)), str(written))
    return RemoteStatus(
        st_size=int(entry["size"]), st_mtime=time.time() if written is None else written, version=version
    )


def open_remote(path: Path) -> BinaryIO:
    """Open a remote file for reading, with a buffer of a few MiB."""
    system, name = fsspec_path(path)
    with wrap_remote_errors(path):
        return cast(BinaryIO, system.open(name, "rb", block_size=_BLOCK_BYTES))


def remote_files(directory: Path) -> Iterator[tuple[str, RemoteStatus]]:
    """The files below a remote directory, by their path relative to it; none if it does not exist.

    One listing covers thousands of files, where a request for each would take minutes.
    """
    system, path = _fresh_system(directory)
    with wrap_remote_errors(directory):
        found = system.find(path, detail=True)
    prefix = path.rstrip("/") + "/"
    for name, entry in found.items():
        if not name.endswith("/"):
            yield name.removeprefix(prefix), _status(entry)


def remote_matches(pattern: str) -> Iterator[tuple[Path, RemoteStatus | None]]:
    """The matches of a URI with `*`, `?`, `[...]` or `**`, with the status of files; None for directories."""
    path = resolve_path(pattern)
    system, name = _fresh_system(path)
    with wrap_remote_errors(path):
        found = system.glob(name, detail=True)
    yield from (
        (
            cast(Path, UPath(system.unstrip_protocol(match), **cast(Any, path).storage_options)),
            None if entry["type"] == "directory" else _status(entry),
        )
        for match, entry in found.items()
    )


def remote_kind(path: Path) -> str:
    """The kind of entry at a remote path: "file", "directory", or "" if there is none."""
    system, name = _fresh_system(path)
    with wrap_remote_errors(path):
        return "file" if system.isfile(name) else "directory" if system.isdir(name) else ""
