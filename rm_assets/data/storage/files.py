"""Files on local file systems and on remote ones such as `s3://bucket/prefix`: paths, reading, listing and removing.

Local paths are `Path`s. Remote ones are `UPath`s over fsspec: not instances of `Path`, but with the methods that this
project uses, which is why annotations say `Path` for both. This module hides what differs between the two.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from upath import UPath

from rm_assets.addresses import mask_credentials

_ABANDONED_SECONDS = 24 * 3600.0
"""Remote files without a manifest are kept for this long, as a writer on another machine may need them."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")
_MAGIC = re.compile(r"[*?\[]")
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}")


class StorageError(RuntimeError):
    """A file that cannot be written or reached, in one line that says what to do."""


def resolve_path(setting: str) -> Path:
    """The path that a setting names: a local one, or a URI such as `s3://bucket/prefix`.

    Raises StorageError if the protocol is unknown or its library is not installed.
    """
    protocol, separator, rest = setting.partition("://")
    if not separator:
        return Path(setting).expanduser()
    if protocol in ("file", "local"):
        return Path(rest)
    try:
        found = UPath(setting, use_listings_cache=False)
        _ = found.fs
    except (ImportError, ValueError) as error:
        advice = "pip install 'rm_assets[s3]'" if protocol in ("s3", "s3a") else str(error)
        raise StorageError(f"{setting!r} cannot be reached: {advice}") from None
    return cast(Path, found)


def is_remote(path: Path) -> bool:
    """Whether a path is on a file system that only fsspec can access."""
    return not isinstance(path, Path)


def is_within(path: Path, directory: Path) -> bool:
    """Whether a path is this directory or inside it, with links and `..` resolved."""
    if is_remote(path) or is_remote(directory):
        return _remote_parts(path)[: len(_remote_parts(directory))] == _remote_parts(directory)
    resolved, target = Path(os.path.realpath(path)), directory.resolve()  # unlike resolve(), accepts a link to itself
    if resolved.is_relative_to(target):
        return True
    return target.exists() and any(parent.exists() and parent.samefile(target) for parent in resolved.parents)


def relative_remote_path(path: Path, directory: Path) -> str | None:
    """A remote path relative to a directory; None if it is not inside it, or not remote."""
    if is_remote(path) and is_within(path, directory):
        return "/".join(_remote_parts(path)[len(_remote_parts(directory)) :])
    return None


def _remote_parts(path: Path) -> list[str]:
    """The protocol of a path, then its components from the bucket down; `[""]` for a local one."""
    if not is_remote(path):
        return [""]
    system, name = fsspec_path(path)
    protocols = [system.protocol] if isinstance(system.protocol, str) else system.protocol
    return [min(protocols), *(part for part in name.split("/") if part)]


def fsspec_path(path: Path) -> tuple[Any, str]:
    """The fsspec file system of a remote path, and the path within it."""
    found = cast(Any, path)
    return found.fs, found.path


def describe_error(error: Exception) -> str:
    """Why a file cannot be written or read, in one line, with the credentials of a proxy or an endpoint masked."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"{os.strerror(error.errno or 0)}: free some space and run again; finished work is kept"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return mask_credentials(" ".join((reason or type(error).__name__).split()))


@contextlib.contextmanager
def wrap_write_errors(path: Path) -> Iterator[None]:
    """Turn errors of writing a file into StorageErrors, except for a missing one to copy from."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not is_remote(path):
            raise  # only the libraries of remote file systems raise errors other than OSError
        raise StorageError(f"{str(path)!r} cannot be written: {describe_error(error)}") from None


@contextlib.contextmanager
def wrap_remote_errors(path: Path) -> Iterator[None]:
    """Turn errors of a remote file system into StorageErrors, except for a missing or forbidden file."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
        raise
    except Exception as error:  # each file system's library has its own
        raise StorageError(f"{str(path)!r} cannot be reached: {describe_error(error)}") from None


# --- reading and listing -------------------------------------------------------------------------------------------


def read_file(path: Path) -> bytes:
    """All bytes of a small file, in one request; raises FileNotFoundError.

    Raises StorageError for a FIFO, a socket or a device, which could block the reader forever.
    """
    if not is_remote(path):
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
            raise StorageError(f"{str(path)!r} is not a regular file: remove it and run again")
        return path.read_bytes()
    system, name = fsspec_path(path)
    with wrap_remote_errors(path):
        return bytes(system.cat_file(name))


def list_entries(directory: Path) -> dict[str, bool]:
    """The entries of a directory, including hidden ones: name -> whether it is a directory (a link is not).

    Empty if the directory does not exist; raises NotADirectoryError if it is a file.
    """
    try:
        if not is_remote(directory):
            with os.scandir(directory) as found:
                return {entry.name: entry.is_dir(follow_symlinks=False) for entry in found}
        system, path = fsspec_path(directory)
        with wrap_remote_errors(directory):
            listed = {entry["name"].rstrip("/"): entry["type"] == "directory" for entry in system.ls(path, detail=True)}
    except FileNotFoundError:
        return {}
    return {name.rsplit("/", 1)[-1]: is_directory for name, is_directory in listed.items() if name != path.rstrip("/")}


def subdirectories(directory: Path) -> list[str]:
    """The names of the directories in a directory, including hidden ones; none if it does not exist."""
    with contextlib.suppress(NotADirectoryError):
        return sorted(name for name, is_directory in list_entries(directory).items() if is_directory)
    return []


def list_files(directory: Path) -> list[str]:
    """The names of the files and links in a directory, including hidden ones; none if it does not exist."""
    with contextlib.suppress(NotADirectoryError):
        return sorted(name for name, is_directory in list_entries(directory).items() if not is_directory)
    return []


def file_sizes(directory: Path) -> dict[str, int]:
    """The sizes in bytes of all files below a directory, by their path relative to it.

    Leaves out folders that may not be read and broken links.
    """
    if is_remote(directory):
        system, path = fsspec_path(directory)
        with wrap_remote_errors(directory):
            found = system.find(path, detail=True)
        return {name.removeprefix(path).lstrip("/"): int(entry["size"]) for name, entry in found.items()}
    return dict(_local_sizes(directory, ""))


def _local_sizes(directory: "Path | os.DirEntry[str]", prefix: str) -> Iterator[tuple[str, int]]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _local_sizes(entry, f"{prefix}{entry.name}/")
            else:
                with contextlib.suppress(OSError):
                    yield f"{prefix}{entry.name}", entry.stat().st_size


def is_abandoned(directory: Path) -> bool:
    """Whether nobody still writes to a file or directory that is not published.

    Always true for a local one, because the caller holds the writer lock; a remote one is judged by its age.
    """
    if not is_remote(directory):
        return True
    system, path = fsspec_path(directory)
    entries = system.find(path, detail=True).values()
    newest = max((modified_at(entry) or time.time() for entry in entries), default=0.0)
    return time.time() - newest > _ABANDONED_SECONDS


def modified_at(entry: dict[str, Any]) -> float | None:
    """When a remote file was written, in seconds since 1970, from its fsspec entry; None if that does not say."""
    modified = next((entry[name] for name in _TIMES if entry.get(name) is not None), None)
    if isinstance(modified, datetime):
        return modified.timestamp()
    return float(modified) if isinstance(modified, int | float) else None


def find_temporary_files(directory: Path, is_name: Callable[[str], object]) -> list[Path]:
    """Temporary files (`.<name>.<32 hex>`) that killed processes left in a local directory.

    `is_name` selects them by the name of the file that was being written. Remote writes leave none.
    """
    if is_remote(directory):
        return []
    matches = ((directory / name, _TEMPORARY.fullmatch(name)) for name in list_files(directory))
    return [path for path, match in matches if match and is_name(match["name"]) and not path.is_symlink()]


def remove_files(paths: list[Path]) -> None:
    """Remove these files if they exist. A directory with such a name stays."""
    if paths and is_remote(paths[0]):
        system, _ = fsspec_path(paths[0])
        names = [fsspec_path(path)[1] for path in paths]
        with contextlib.suppress(FileNotFoundError):
            if not any(_MAGIC.search(name) for name in names):
                system.rm(names)
                return
        for name in names:  # `rm` would expand `a*/x` as a pattern and remove other files
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(name)
        return
    for path in paths:
        if path.is_symlink() or not path.is_dir():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()


def remove_directories(directories: Iterable[Path]) -> None:
    """Remove local directories that are empty; remote ones vanish with their last file."""
    for directory in directories:
        if not is_remote(directory):
            with contextlib.suppress(OSError):  # not empty, or already gone
                directory.rmdir()


def remove_tree(directory: Path) -> None:
    """Remove a directory with all its content, if it exists. Only for what one process created for itself."""
    if is_remote(directory):
        remove_files([directory / name for name in file_sizes(directory)])
    else:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)
