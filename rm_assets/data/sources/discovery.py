"""Finds the annotation files of a path, a directory or a glob, and names the source of each.

A bad entry of a directory or glob (a FIFO, a broken link, a file or directory without permission) is listed, and
rejected when it is read; a path that names one file must be readable. A glob skips directories that it may not search.
Links to files are followed. Links to directories are not, to avoid loops, and are listed as ignored.

A URI such as `s3://bucket/prefix` is searched in the same way, on its own file system.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from rm_assets.data.compute.workers import pause_gc
from rm_assets.data.sources.file_kinds import SUFFIXES, file_kind, what_is_not_read
from rm_assets.data.sources.opened_file import RejectedFileError, Status, file_status, open_annotation_file
from rm_assets.data.sources.remote import RemoteStatus, remote_files, remote_kind, remote_matches, require_reachable
from rm_assets.data.storage.files import is_remote, is_within, relative_remote_path, resolve_path
from rm_assets.data.storage.ownership import MARKER
from rm_assets.settings import SettingsError

SETTING = "annotations (or RM_ANNOTATIONS)"
EVALUATION_PREFIX = "evaluation:"
"""The prefix of the sources of evaluation sets; sources of annotations never begin with it."""
_MAGIC = re.compile(r"[*?\[]")
# Characters not allowed in tables and log lines: control characters, line separators, bytes that are not UTF-8. `%` is
# escaped as `%25`, which keeps sources unique; `evaluation:` at the start is escaped as `evaluation%3A`.
_TO_ESCAPE = re.compile(r"[%\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|(?<=\Aevaluation):")


class NothingToReadError(SettingsError):
    """A directory or glob that may be correct, but has no annotation files yet."""


@dataclass(frozen=True, kw_only=True)
class AnnotationFile:
    """A file to read; `source` is its path relative to the fixed part of the setting, with forward slashes.

    A directory that cannot be listed counts as a file whose source ends in a slash. `listed` is the status of a remote
    file, from the listing of its directory.
    """

    path: Path
    source: str
    listed: RemoteStatus | None = None

    def status(self) -> Status:
        """The status when the file was listed, or the present one; raises OSError."""
        return self.listed or file_status(self.path)


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The files that a setting names, sorted by `source`, and the names of other entries, which are not read."""

    files: tuple[AnnotationFile, ...]
    ignored: tuple[str, ...]


@dataclass(kw_only=True)
class _Found:
    base: Path
    storage: Path | None = None  # its files are left out
    files: list[Path] = field(default_factory=list)
    unsearched: list[Path] = field(default_factory=list)  # linked directories, and those a glob names
    unlisted: list[Path] = field(default_factory=list)  # directories that cannot be listed
    statuses: dict[Path, RemoteStatus] = field(default_factory=dict)  # of remote files, from their listing
    _known: dict[Path, bool] = field(default_factory=dict)  # whether a directory is inside the storage
    _storages: dict[str, bool] = field(default_factory=dict)  # whether a directory below the base is a storage

    def is_left_out(self, path: Path) -> bool:
        """Whether a path is inside the storage, directly or through a link, or in another storage below the base."""
        if self._is_in_a_storage(path):
            return True
        if self.storage is None:
            return False
        if is_remote(path) or path.is_symlink():
            return is_within(path, self.storage)
        if path.parent not in self._known:
            self._known[path.parent] = is_within(path.parent, self.storage)
        return self._known[path.parent]

    def _is_in_a_storage(self, path: Path) -> bool:
        below = (
            relative_remote_path(path, self.base) or "" if is_remote(path) else path.relative_to(self.base).as_posix()
        )
        folders = [parent.as_posix() for parent in PurePosixPath(below).parents][:-1]
        for folder in folders:
            if folder not in self._storages:
                self._storages[folder] = _is_storage(self.base / folder)
        return any(self._storages[folder] for folder in folders)


def _is_storage(directory: Path) -> bool:
    """Whether a directory is marked as a storage of this package, under any settings."""
    try:
        return (directory / MARKER).exists()
    except OSError:
        return False


@pause_gc()
def find_annotations(setting: str, storage: Path | None = None) -> Annotations:
    """The annotation files of a path, a directory (searched recursively) or a glob, except those in a storage.

    Raises SettingsError where there are none, where a path that names one file cannot be read, or where the setting
    names a path inside the storage, whose files change with every run.
    """
    found = _find(setting, storage)
    kinds = [file_kind(path.name) for path in found.files]
    wanted = [(path, source_name(path, found.base)) for path, kind in zip(found.files, kinds, strict=True) if kind]
    wanted += [(path, source_name(path, found.base) + "/") for path in found.unlisted]
    ignored = [source_name(path, found.base) for path, kind in zip(found.files, kinds, strict=True) if not kind]
    searched = {directory for path, _ in wanted for directory in path.parents} if found.unsearched else set()
    ignored += [source_name(path, found.base) + "/" for path in found.unsearched if path not in searched]
    if not wanted:
        hint = f"; {unread}" if (unread := what_is_not_read(sorted(ignored))) else ""
        raise _error(setting, f"no file ending in {', '.join(SUFFIXES)} there{hint}", NothingToReadError)
    statuses = found.statuses
    files = [
        AnnotationFile(path=path, source=name, listed=statuses.get(path) if statuses else None) for path, name in wanted
    ]
    return Annotations(files=tuple(sorted(files, key=lambda file: file.source)), ignored=tuple(sorted(ignored)))


def source_name(path: Path, base: Path) -> str:
    """A path relative to a directory, escaped for tables and logs: `50%\\n.jsonl` becomes `50%25%0A.jsonl`.

    `urllib.parse.unquote_to_bytes` restores the name of the file.
    """
    name, directory = str(path), f"{base}/"
    if is_remote(path) or not name.startswith(directory):
        name, directory = path.relative_to(base).as_posix(), ""
    return _TO_ESCAPE.sub(
        lambda character: "".join(f"%{byte:02X}" for byte in os.fsencode(character[0])), name[len(directory) :]
    )


def _error(setting: str, problem: str, kind: type[SettingsError] = SettingsError) -> SettingsError:
    return kind(f"{SETTING} is {setting!r}: {problem}")


def _find(setting: str, storage: Path | None) -> _Found:
    try:
        if "://" in setting:
            path = resolve_path(setting)
            return _at_uri(setting, path, storage) if is_remote(path) else _find(str(path), storage)
        path = Path(setting).expanduser()
        is_there = path.exists() or path.is_symlink()
        if not is_there and _MAGIC.search(setting):
            return _in_glob(setting, path, storage)
        _refuse_inside(setting, path, storage)
        if path.is_dir():
            return _in_directory(path, storage)
        if is_there:
            return _find_single_file(path)
    except RejectedFileError as error:
        raise _error(setting, f"{Path(setting).name!r} cannot be read: {error.detail}") from None
    except SettingsError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # no permission, too long, no pattern, no such user
        problem = error.strerror if isinstance(error, OSError) else str(error)
        raise _error(setting, f"cannot be searched: {problem}") from None
    raise _error(setting, "there is no such file or directory")


def _refuse_inside(setting: str, path: Path, storage: Path | None) -> None:
    if storage is not None and is_within(path, storage):
        raise _error(setting, f"that is inside the storage {str(storage)!r}: move it out, or set another storage")


def _at_uri(setting: str, path: Path, storage: Path | None) -> _Found:
    kind = remote_kind(path)
    if kind or not _MAGIC.search(setting):
        _refuse_inside(setting, path, storage)
    if kind == "file":
        return _find_single_file(path)
    if kind == "directory":
        inside = relative_remote_path(storage, path) if storage is not None else None
        listed = list(remote_files(path))
        left_out = [name.removesuffix(MARKER).lstrip("/") for name, _ in listed if name.endswith(f"/{MARKER}")]
        left_out += [f"{inside}/"] if inside else []
        statuses = {
            path / name: status
            for name, status in listed
            if not any(part.startswith(".") for part in name.split("/"))
            and not name.lstrip("/").startswith(tuple(left_out))
        }
        return _Found(base=path, files=list(statuses), statuses=statuses)
    if not _MAGIC.search(setting):
        if file_kind(path.name):
            raise _error(setting, "there is no such file or directory")
        require_reachable(path)  # checks the bucket: object stores have no empty directories
        raise _error(setting, "there is no such file or directory yet", NothingToReadError)
    fixed = _MAGIC.split(setting, maxsplit=1)[0].rsplit("/", 1)[0]
    found = _Found(base=resolve_path(fixed), storage=storage)
    _refuse_inside(setting, found.base, storage)
    for match, status in remote_matches(setting):
        if found.is_left_out(match) or _is_hidden(match, found.base):
            continue
        if status is None:
            found.unsearched.append(match)
        else:
            found.files.append(match)
            found.statuses[match] = status
    return found


def _find_single_file(path: Path) -> _Found:
    if file_kind(path.name):
        with open_annotation_file(path):
            pass  # raises if it cannot be read
    return _Found(base=path.parent, files=[path])


def _in_directory(base: Path, storage: Path | None) -> _Found:
    found = _Found(base=base, storage=storage)
    number = storage.stat().st_ino if storage is not None and not is_remote(storage) and storage.exists() else None
    waiting = [base]
    while waiting:
        directory = waiting.pop()
        try:
            entries = list(_visible(directory))
        except OSError:
            if directory == base:
                raise
            found.unlisted.append(directory)
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                is_storage = entry.inode() == number and storage is not None and storage.samefile(entry.path)
                if not is_storage:
                    (found.unsearched if _is_storage(Path(entry.path)) else waiting).append(Path(entry.path))
            elif not entry.is_symlink():
                found.files.append(Path(entry.path))
            elif not found.is_left_out(Path(entry.path)):
                _take(Path(entry.path), found)
    return found


def _visible(directory: Path) -> Iterator["os.DirEntry[str]"]:
    with os.scandir(directory) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _in_glob(setting: str, path: Path, storage: Path | None) -> _Found:
    first_magic = next(i for i, part in enumerate(path.parts) if _MAGIC.search(part))
    found = _Found(base=Path(*path.parts[:first_magic]), storage=storage)
    _refuse_inside(setting, found.base, storage)
    for entry in found.base.glob("/".join(path.parts[first_magic:])):
        if not (found.is_left_out(entry) or _is_hidden(entry, found.base)):
            _take(entry, found)
    return found


def _is_hidden(path: Path, base: Path) -> bool:
    """Whether a file, or a directory between it and the base, is hidden: a shell's `*` skips those too."""
    return any(part.startswith(".") and part != ".." for part in path.relative_to(base).parts)


def _take(path: Path, found: _Found) -> None:
    try:
        is_directory = path.is_dir()
    except OSError:  # reading it will raise the error again
        is_directory = False
    (found.unsearched if is_directory else found.files).append(path)
