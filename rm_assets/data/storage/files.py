"""Files of a storage, on this machine's file systems or on a remote one such as `s3://bucket/prefix`.

Local places are `Path`s. Remote ones are `UPath`s over fsspec: no `Path` to `isinstance`, but with those of its methods
that this project uses, so that annotations say `Path` for both. Here stands what differs between the two.

Written and then visible:
- Locally a file is written beside, synced and renamed; readers see the old bytes or the new ones, also after a power
  cut. Writers take turns by a lock.
- An object store has no rename, and needs none: an object appears whole or not at all. Its other writers may be on
  other machines, where no lock of this one holds. Two of them are safe because names follow from content: whatever they
  write under one name is the same, every manifest comes after all that it names, and what has no manifest is left alone
  for a day, as someone may be writing it. What is not promised: that `latest.json` names the snapshot of the one that
  started last; and that an old snapshot which one machine removes is still there for another's unfinished run, which
  then fails, and heals when it is run again.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
from upath import UPath

from rm_assets.addresses import mask_credentials

_ABANDONED_SECONDS = 24 * 3600.0
"""Remote files that no manifest names are left alone this long: a writer on another machine may need them."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")
_MAGIC = re.compile(r"[*?\[]")
_UNFINISHED = (re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}"), re.compile(r"\.[0-9a-f]{32}\.(?P<name>.+)"))
_EXTRAS = {"s3": "s3", "s3a": "s3"}


class StorageError(RuntimeError):
    """A file of a storage that could not be written or reached. One line that says what to do."""


def resolve_path(setting: str) -> Path:
    """The place that a setting names: a path of this machine, or a URI such as `s3://bucket/prefix`.

    Raises StorageError where the protocol is not known, or its library is not installed.
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
        extra = _EXTRAS.get(protocol)
        advice = f"pip install 'rm_assets[{extra}]'" if extra else str(error)
        raise StorageError(f"{setting!r} cannot be reached: {advice}") from None
    return cast(Path, found)


def is_remote(path: Path) -> bool:
    """Whether a place lies on a file system that only fsspec reaches."""
    return not isinstance(path, Path)


def is_within(path: Path, directory: Path) -> bool:
    """Whether a place is a directory or lies in it, whichever links and `..` lead there."""
    if is_remote(path) or is_remote(directory):
        return _remote_parts(path)[: len(_remote_parts(directory))] == _remote_parts(directory)
    resolved, target = Path(os.path.realpath(path)), directory.resolve()  # a link to itself leads nowhere
    if resolved.is_relative_to(target):
        return True
    return target.exists() and any(parent.exists() and parent.samefile(target) for parent in resolved.parents)


def relative_remote_path(path: Path, directory: Path) -> str | None:
    """The path of a remote place relative to a directory that it lies in; None where it does not."""
    if is_remote(path) and is_within(path, directory):
        return "/".join(_remote_parts(path)[len(_remote_parts(directory)) :])
    return None


def _remote_parts(path: Path) -> list[str]:
    """The file system of a place, and the names on the way to it: those of a bucket and below."""
    if not is_remote(path):
        return [""]
    system, name = fsspec_path(path)
    protocols = [system.protocol] if isinstance(system.protocol, str) else system.protocol
    return [min(protocols), *(part for part in name.split("/") if part)]


def fsspec_path(path: Path) -> tuple[Any, str]:
    """A remote place as fsspec knows it: the file system, and the path there."""
    found = cast(Any, path)
    return found.fs, found.path


def describe_error(error: Exception) -> str:
    """Why a file cannot be written or read, in one line, without the credentials of a proxy or an endpoint."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"{os.strerror(error.errno or 0)}: make room and run again, what is finished is kept"
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return mask_credentials(" ".join((told or type(error).__name__).split()))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise  # what was to be copied is gone, which is no matter of writing
    except Exception as error:
        if not isinstance(error, OSError) and not is_remote(path):
            raise  # the libraries of remote file systems have errors of their own, those of the kernel are OSErrors
        raise StorageError(f"{str(path)!r} cannot be written: {describe_error(error)}") from None


@contextlib.contextmanager
def wrap_remote_errors(path: Path) -> Iterator[None]:
    """Errors of the way to a remote file as StorageErrors; that it is not there or closed to us stays an OSError."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
        raise
    except Exception as error:  # of whatever library reaches this file system
        raise StorageError(f"{str(path)!r} cannot be reached: {describe_error(error)}") from None


# --- writing -------------------------------------------------------------------------------------------------


class NewFile(io.RawIOBase):
    """A file being written, which knows the size and the sha256 of what it was given."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path = path
        self._stream = stream
        self._digest = hashlib.sha256()
        self._end_digest: Any = None
        self.num_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with _writing(self._path):
            self._stream.write(data)
        self._digest.update(data)
        if self._end_digest is not None:
            self._end_digest.update(data)
        self.num_bytes += len(memoryview(data).cast("B"))
        return len(data)

    def tell(self) -> int:
        return self.num_bytes

    @property
    def sha256(self) -> str:
        """The hash of all bytes so far, as 64 hexadecimal digits."""
        return self._digest.hexdigest()

    def begin_end(self) -> None:
        """What is written from now on is the file's end."""
        self._end_digest = hashlib.sha256()

    @property
    def end_sha256(self) -> str:
        """The hash of the file's end."""
        return str(self._end_digest.hexdigest())


@contextlib.contextmanager
def create_file(path: Path) -> Iterator[NewFile]:
    """A file to write, durable afterwards; its directory is made. Nobody may read it before, so it needs no rename."""
    make_directory(path.parent)
    with _writing(path):
        stream = cast(BinaryIO, path.open("wb"))
    try:
        yield NewFile(path, stream)
    except BaseException:
        with contextlib.suppress(Exception):  # the error that is under way is the one to tell
            stream.close()
        raise
    with _writing(path), stream:
        stream.flush()
        if not is_remote(path):
            os.fsync(stream.fileno())


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically: readers see the old bytes or the new ones, also after a power cut."""
    write_file(path, msgspec.json.format(msgspec.json.encode(value), indent=1))


def write_file(path: Path, content: bytes) -> None:
    """Replace a small file atomically. Other names of the old one, as in a backup of hard links, keep its bytes."""
    make_directory(path.parent)
    with _writing(path):
        if is_remote(path):
            path.write_bytes(content)
            return
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_directory(path.parent)


def make_directory(directory: Path) -> None:
    """Make a directory and those above it; remote ones need none."""
    if not is_remote(directory):
        with _writing(directory):
            directory.mkdir(parents=True, exist_ok=True)


def fsync_directory(directory: Path, *, recursive: bool = False) -> None:
    """Make a local directory's entries durable; remote ones are."""
    if is_remote(directory):
        return
    below = [path for path in directory.rglob("*") if path.is_dir()] if recursive else []
    for folder in (directory, *below):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with _writing(folder):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def link_files(files: dict[Path, Path]) -> None:
    """Have the same bytes at each target: {target: origin}. Linked, or copied where there are no links.

    On a remote file system they are copied there, and do not pass through this machine.
    """
    if not files:
        return
    first = next(iter(files))
    with _writing(first):
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
            except OSError:  # something is there already, or there are no links here, or no origin
                _link(origin, target)


def _link(origin: Path, target: Path) -> None:
    temporary = target.with_name(f".{uuid.uuid4().hex}.{target.name}")
    try:
        os.link(origin, temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(origin, temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # renaming a link onto another link of the same file leaves both


def upload(origin: Path, target: Path, names: Iterable[str] | None = None) -> None:
    """Copy a directory of this machine to a place, or these files of it; `manifest.json` (if there is one) last."""
    files = sorted(path for path in origin.rglob("*") if path.is_file())
    if names is not None:
        files = sorted(origin / name for name in names)
    for path in sorted(files, key=lambda path: path.name == "manifest.json" and path.parent == origin):
        with path.open("rb") as source, create_file(target / path.relative_to(origin).as_posix()) as stream:
            shutil.copyfileobj(source, stream, 2**20)


def download(origin: Path, target: Path) -> None:
    """Copy a file of a place to a file of this machine, if it is not there in its size."""
    if target.is_file() and target.stat().st_size == origin.stat().st_size:
        return
    temporary = target.with_name(f".{uuid.uuid4().hex}.{target.name}")
    with origin.open("rb") as source, create_file(temporary) as stream:
        shutil.copyfileobj(source, stream, 2**20)
    temporary.replace(target)


# --- what is there -------------------------------------------------------------------------------------------


def read_file(path: Path) -> bytes:
    """All bytes of a small file, in one request; raises FileNotFoundError.

    Raises StorageError where a FIFO, a socket or a device has its place, which may let a reader wait for ever.
    """
    if not is_remote(path):
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
            raise StorageError(f"{str(path)!r} is not a regular file: remove it and run again")
        return path.read_bytes()
    system, name = fsspec_path(path)
    with wrap_remote_errors(path):
        return bytes(system.cat_file(name))


def list_entries(directory: Path) -> dict[str, bool]:
    """What a directory holds, hidden entries too: name -> whether it is a directory, which no link is.

    Nothing if it is not there; raises NotADirectoryError where it is a file.
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
    """The names of the directories in a directory, hidden ones too; none if it is not there."""
    try:
        return sorted(name for name, is_directory in list_entries(directory).items() if is_directory)
    except NotADirectoryError:
        return []


def file_sizes(directory: Path) -> dict[str, int]:
    """All files of a directory and below, with their sizes in bytes, by their path relative to it.

    Not those in a folder that may not be read, nor links that lead nowhere.
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
    """Whether nobody writes in a directory of unpublished files: its lock held, locally; by its age, elsewhere."""
    if not is_remote(directory):
        return True
    system, path = fsspec_path(directory)
    entries = system.find(path, detail=True).values()
    newest = max((modified_at(entry) or time.time() for entry in entries), default=0.0)
    return time.time() - newest > _ABANDONED_SECONDS


def modified_at(entry: dict[str, Any]) -> float | None:
    """When a remote file was written, in seconds since 1970, by what its file system tells; None if it does not."""
    told = next((entry[name] for name in _TIMES if entry.get(name) is not None), None)
    if isinstance(told, datetime):
        return told.timestamp()
    return float(told) if isinstance(told, int | float) else None


def find_unfinished_files(directory: Path, is_name: Callable[[str], object]) -> list[Path]:
    """What a killed process left of files that it was writing: `.<name>.<32 hex>` or `.<32 hex>.<name>`.

    `is_name` tells the names of the files themselves. Nothing at remote places, where an object appears whole or not at
    all.
    """
    found: list[Path] = []
    if not is_remote(directory):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as listed:
            for entry in listed:
                names = [match["name"] for form in _UNFINISHED if (match := form.fullmatch(entry.name))]
                if any(map(is_name, names)) and entry.is_file(follow_symlinks=False):
                    found.append(Path(entry.path))
    return found


def remove_files(paths: list[Path]) -> None:
    """Remove files, those that are there; directories stay, also one that has the name of a file."""
    if paths and is_remote(paths[0]):
        system, _ = fsspec_path(paths[0])
        names = [fsspec_path(path)[1] for path in paths]
        with contextlib.suppress(FileNotFoundError):
            if not any(_MAGIC.search(name) for name in names):
                system.rm(names)
                return
        for name in names:  # `rm` would take `a*/x` for a pattern, and remove what others keep there
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(name)
        return
    for path in paths:
        if path.is_symlink() or not path.is_dir():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()


def remove_directories(directories: Iterable[Path]) -> None:
    """Remove local directories that are empty; remote ones are as soon as they hold nothing."""
    for directory in directories:
        if not is_remote(directory):
            with contextlib.suppress(OSError):  # something is left in it, or it is gone
                directory.rmdir()


def remove_tree(directory: Path) -> None:
    """Remove a directory and all in it, if it is there. Only for what one process made for itself under a new name."""
    if is_remote(directory):
        remove_files([directory / name for name in file_sizes(directory)])
    else:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)
