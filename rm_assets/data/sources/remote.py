"""Remote files as they are found and read: what an address names, and in which version.

Nothing here is specific to one protocol: fsspec's file systems tell of each file what they know, by names of their own.
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
"""What the Hugging Face Hub tells of a file; its commits appear whole, so that no file is still being written."""
_VERSIONS = (_CONTENT_HASH, "ETag", "etag", "VersionId", "generation", "md5Hash", "content_md5")
_BLOCK_BYTES = 8 * 2**20


def require_reachable(directory: Path) -> None:
    """Raise StorageError unless a remote place can be listed: its host answers, we may read the bucket or the Hub's
    repository, such as `datasets/owner/name`.
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
    """What a remote file system tells of a file; `version` changes with its content: the ETag, where it has one.

    The names are those of `os.stat_result`; `st_mtime` is the present where nobody tells.
    """

    st_size: int
    st_mtime: float = field(compare=False)
    version: str


def remote_status(path: Path) -> RemoteStatus:
    """The status of a remote file; raises OSError where there is none, StorageError where it cannot be asked for."""
    system, name = _system_of_now(path)
    with wrap_remote_errors(path):
        entry = system.info(name)
        if entry["type"] != "file":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return _status(entry)


def _system_of_now(path: Path) -> tuple[Any, str]:
    """A place as fsspec knows it, without what its file system remembers: the Hub's keeps each listing it has seen."""
    system, name = fsspec_path(path)
    system.invalidate_cache()
    return system, name


def _status(entry: dict[str, Any]) -> RemoteStatus:
    written = 0.0 if entry.get(_CONTENT_HASH) else modified_at(entry)
    if entry.get("size") is None:
        name, way = mask_credentials(str(entry["name"])), "download it and name the copy"
        raise StorageError(f"{name!r} cannot be read: its server does not tell its size; {way}")
    version = next((str(entry[name]) for name in _VERSIONS if entry.get(name)), str(written))
    return RemoteStatus(
        st_size=int(entry["size"]), st_mtime=time.time() if written is None else written, version=version
    )


def open_remote(path: Path) -> BinaryIO:
    """A remote file to read, some MiB in memory at a time."""
    system, name = fsspec_path(path)
    with wrap_remote_errors(path):
        return cast(BinaryIO, system.open(name, "rb", block_size=_BLOCK_BYTES))


def remote_files(directory: Path) -> Iterator[tuple[str, RemoteStatus]]:
    """The files of a remote directory, in all depths, by their path relative to it; none if it is not there.

    One listing tells of thousands of files, where asking for each would take minutes.
    """
    system, path = _system_of_now(directory)
    with wrap_remote_errors(directory):
        found = system.find(path, detail=True)
    prefix = path.rstrip("/") + "/"
    for name, entry in found.items():
        if not name.endswith("/"):
            yield name.removeprefix(prefix), _status(entry)


def remote_matches(pattern: str) -> Iterator[tuple[Path, RemoteStatus | None]]:
    """What a URI with `*`, `?`, `[...]` or `**` names, and the status of those that are no directories."""
    path = resolve_path(pattern)
    system, name = _system_of_now(path)
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
    """Whether a remote path names a "file", a "directory", or nothing: ""."""
    system, name = _system_of_now(path)
    with wrap_remote_errors(path):
        return "file" if system.isfile(name) else "directory" if system.isdir(name) else ""
