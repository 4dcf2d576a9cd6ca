"""Which files of a storage are ours: only these are ever removed, and a directory with other files is not used.

Users may name a directory that already has files as the storage, or put files into a storage later. A file is
therefore removed only if one of our records names it: the manifest of its snapshot, or the note
`.staging/<snapshot>.files`, which exists while a snapshot is written or removed and lets the next run clean up after an
interrupted one. Temporary files are recognized by names that only this project uses. Directories are removed once they
are empty, and nothing is removed through a symbolic link.
"""

import contextlib
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec

from rm_assets.data.storage.files import (
    StorageError,
    file_sizes,
    find_temporary_files,
    is_abandoned,
    is_remote,
    list_entries,
    list_files,
    read_file,
    remove_directories,
    remove_files,
)
from rm_assets.data.storage.locks import try_exclusive_lock
from rm_assets.data.storage.writing import write_json

ASSETS = (
    "annotation_files",
    "raw_preferences",
    "validated_preferences",
    "flattened_conversations",
    "tokenized_pairs",
    "padded_pairs",
    "rejected_annotations",
    "reward_model",
    "reward_model_report",
    "promoted_reward_model",
    "published_reward_model",
    "suspect_annotations",
)
"""The directories of a storage: those of snapshots, and `annotation_files`, the cache of file hashes."""

MARKER = ".rm_assets.json"
"""The file that marks a directory as a storage."""

STAGING = ".staging"
TRAINING = ".training"
FOLDS = ".folds"
MANIFEST = "manifest.json"
LENGTHS = "lengths.json"
BESIDE = (
    "README.md",
    LENGTHS,
    "report.json",
    "accuracy_by_slice.png",
    "calibration.png",
    "scores.png",
    "length_bias.png",
    "learning_curve.png",
    "history.png",
    "suspects.jsonl",
)
"""Files in a snapshot's directory that its manifest does not list."""

_SNAPSHOT = re.compile(r"[0-9a-f]{16}")
_SMALL_FILES = "latest\\.json|stamps\\.json|history\\.json|listing\\.json"
_OWN_FILE = re.compile(rf"{_SMALL_FILES}|writer\.lock|\.(?:{_SMALL_FILES})\.[0-9a-f]{{32}}")
_OWN_DIRECTORY = re.compile(rf"{_SNAPSHOT.pattern}|{re.escape(STAGING)}|{re.escape(TRAINING)}|{re.escape(FOLDS)}")


class _Latest(msgspec.Struct, forbid_unknown_fields=True):
    snapshot: Annotated[str, msgspec.Meta(pattern=f"^{_SNAPSHOT.pattern}$")]


class _Stamp(msgspec.Struct):
    stamp: list[Any]
    keys: list[str]


class _Listing(msgspec.Struct, forbid_unknown_fields=True):
    seen: dict[str, Any]
    waiting_since: float | None = None


class _Reported(msgspec.Struct):
    model: str
    data_snapshot: str


_CONTENTS: dict[str, Any] = {
    "latest.json": _Latest,
    "stamps.json": dict[str, _Stamp | None],
    "listing.json": _Listing,
    "history.json": list[_Reported],
}
"""The types of an asset's small files: in a storage without a marker, a file of another type is not ours."""


def is_snapshot_name(name: object) -> bool:
    """Whether this is a valid snapshot name: 16 lower-case hexadecimal digits."""
    return isinstance(name, str) and _SNAPSHOT.fullmatch(name) is not None


def is_safe_relative_path(path: str) -> bool:
    """Whether a path from a record stays inside the directory that it is relative to."""
    pure = PurePosixPath(path)
    return path == pure.as_posix() and not pure.is_absolute() and not {"..", "."} & {*pure.parts} and "\0" not in path


# --- claiming a storage --------------------------------------------------------------------------------------


def claim_storage(storage: Path) -> None:
    """Mark a directory as a storage before its first use; raises StorageError if it holds foreign files."""
    if not _is_claimed(storage):
        require_own_storage(storage)
        write_json(storage / MARKER, {"made_by": "rm_assets"})


def require_own_storage(storage: Path) -> None:
    """Raise StorageError if a storage has no marker, and the directory of an asset holds an entry that is not ours.

    A storage from before there were markers holds only entries that we recognize.
    """
    if _is_claimed(storage):
        return
    for name in ASSETS:
        if foreign := _first_foreign_entry(storage / name):
            raise StorageError(
                f"{str(storage)!r} cannot be the storage: {str(foreign)!r} was not made by rm_assets. Move it "
                "elsewhere, or set storage (or RM_STORAGE) to a directory of its own"
            )


def _is_claimed(storage: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        read_file(storage / MARKER)
        return True
    return False


def _first_foreign_entry(directory: Path) -> Path | None:
    try:
        found = list_entries(directory)
    except NotADirectoryError:
        return directory
    for name, is_directory in sorted(found.items()):
        own_name = _OWN_DIRECTORY if is_directory else _OWN_FILE
        if not own_name.fullmatch(name) or not _has_own_content(directory / name):
            return directory / name
    return None


def _has_own_content(path: Path) -> bool:
    """Whether a file with the name of one of ours, which the next run would replace, also has its type."""
    if path.name not in _CONTENTS:
        return True
    with contextlib.suppress(OSError, StorageError, msgspec.MsgspecError):
        msgspec.json.decode(read_file(path), type=_CONTENTS[path.name])
        return True
    return False


# --- recording and removing files ----------------------------------------------------------------------------


class _Note(msgspec.Struct, frozen=True):
    """A note: the files of a snapshot that is being written or removed, relative to its directory."""

    snapshot: str
    paths: tuple[str, ...]


class _ShardFile(msgspec.Struct):
    path: str


class _Shard(msgspec.Struct):
    files: tuple[_ShardFile, ...]


class _Manifest(msgspec.Struct):
    """The part of a stage's or a model's manifest that proves it ours, and the files that it names."""

    asset: str = ""
    snapshot: str = ""
    shards: tuple[_Shard, ...] = ()
    key: str = ""
    files: dict[str, str] = {}


def published_files(directory: Path) -> set[str] | None:
    """The files that a snapshot's manifest names; None if that is missing, damaged or of another snapshot."""
    try:
        manifest = msgspec.json.decode(read_file(directory / MANIFEST), type=_Manifest)
    except (OSError, msgspec.MsgspecError):
        return None
    is_of_stage = (manifest.asset, manifest.snapshot) == (directory.parent.name, directory.name)
    is_of_model = re.fullmatch(r"[0-9a-f]{64}", manifest.key) is not None and manifest.key[:16] == directory.name
    if not is_snapshot_name(directory.name) or not (is_of_stage or is_of_model):
        return None
    return {*manifest.files, *(file.path for shard in manifest.shards for file in shard.files)}


def begin_snapshot(directory: Path, paths: Iterable[str]) -> None:
    """Note the files that will be written to a snapshot's directory, with those that it already has."""
    known = {*paths, *(_noted_files(directory) or ()), *(published_files(directory) or ())}
    write_json(_note_path(directory), _Note(directory.name, tuple(sorted(known))))


def finish_snapshot(directory: Path, kept: Collection[str]) -> None:
    """Remove the noted files except those kept, temporary files left from writing them, and the note."""
    noted = _noted_files(directory) or set()
    _remove_temporary(directory, {*noted, *kept, MANIFEST})
    remove_listed_files(directory, noted.difference(kept))
    remove_files([_note_path(directory)])
    remove_directories([directory, directory.parent / STAGING])


def remove_snapshot(directory: Path, besides: Iterable[str]) -> None:
    """Remove the files of a snapshot and `besides`, its manifest first: a partly removed snapshot does not count.

    Does nothing if its manifest does not prove it ours, if we lack permission, or while a process of this machine reads
    it.
    """
    paths = published_files(directory)
    if paths is None or not _may_be_changed(directory):
        return
    with try_exclusive_lock(directory) as is_free:
        if is_free:
            begin_snapshot(directory, [*paths, *besides, *BESIDE])
            remove_files([directory / MANIFEST])
            with contextlib.suppress(PermissionError):  # for a folder in it; the next run finds the note
                finish_snapshot(directory, ())


def _may_be_changed(directory: Path) -> bool:
    """Whether entries of a directory may be removed: users revoke the permission to protect a snapshot."""
    effective = os.access in os.supports_effective_ids
    return is_remote(directory) or os.access(directory, os.R_OK | os.W_OK | os.X_OK, effective_ids=effective)


def finish_removals(home: Path) -> None:
    """Remove the files of unpublished snapshots that killed runs noted and left behind."""
    for name in list_files(home / STAGING):
        note, snapshot = home / STAGING / name, home / name.removesuffix(".files")
        if note.suffix != ".files" or not is_snapshot_name(snapshot.name) or _noted_files(snapshot) is None:
            continue
        kept = published_files(snapshot)
        is_damaged = kept is None and (snapshot / MANIFEST).exists()
        if not is_damaged and is_abandoned(snapshot) and is_abandoned(note):
            with contextlib.suppress(PermissionError):
                finish_snapshot(snapshot, () if kept is None else {*kept, *BESIDE})


def remove_listed_files(directory: Path, paths: Collection[str]) -> None:
    """Remove these files of a directory and the folders that this empties, but nothing through a link."""
    safe = [PurePosixPath(path) for path in paths if is_safe_relative_path(path)]
    if is_remote(directory):
        present = file_sizes(directory)
        remove_files([directory / path for path in map(str, safe) if path in present])
        return
    reached = [path for path in safe if not _has_link(directory, path.parent)]
    remove_files([directory / path for path in reached])
    folders = {folder for path in reached for folder in path.parents}
    remove_directories(directory / folder for folder in sorted(folders, key=lambda f: len(f.parts), reverse=True))


def _remove_temporary(directory: Path, paths: Collection[str]) -> None:
    """Remove the temporary files left from writing these files of a directory."""
    names: dict[PurePosixPath, set[str]] = {}
    for path in map(PurePosixPath, filter(is_safe_relative_path, paths)):
        names.setdefault(path.parent, set()).add(path.name)
    for folder, found in names.items():
        if not _has_link(directory, folder):
            remove_files(find_temporary_files(directory / folder, found.__contains__))


def _has_link(directory: Path, folder: PurePosixPath) -> bool:
    return any((directory / part).is_symlink() for part in (folder, *folder.parents))


def _note_path(directory: Path) -> Path:
    return directory.parent / STAGING / f"{directory.name}.files"


def _noted_files(directory: Path) -> set[str] | None:
    """The noted files of a snapshot; None without a valid note."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        noted = msgspec.json.decode(read_file(_note_path(directory)), type=_Note)
        if noted.snapshot == directory.name:
            return set(noted.paths)
    return None


def remove_own_temporary_files(home: Path) -> None:
    """Remove the temporary files left from writing the small files of an asset."""
    remove_files(find_temporary_files(home, re.compile(_SMALL_FILES).fullmatch))
