"""What in a storage is ours: nothing else is ever removed, and a storage that holds other files is not used.

A directory may be named as a storage that somebody keeps files in, and files may be put into a storage later on. So a
file is removed only where a record of ours names it: the manifest of its snapshot; the list of files that is written
before the first of a snapshot and removed after the last, `.staging/<snapshot>.files`, so that a run which was cut
short leaves it to the next; or its own name, where that is one which only this project makes. Directories go when they
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
    find_unfinished_files,
    is_abandoned,
    is_remote,
    list_entries,
    read_file,
    remove_directories,
    remove_files,
    subdirectories,
    write_json,
)
from rm_assets.data.storage.locks import try_exclusive_lock

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
    "suspect_annotations",
)
"""The directories of a storage that hold snapshots, or what is known of files."""

MARKER = ".rm_assets.json"
"""The file that makes a directory a storage."""

STAGING = ".staging"
TRAINING = ".training"
FOLDS = ".folds"
MANIFEST = "manifest.json"
BESIDE = (
    "report.json",
    "accuracy_by_slice.png",
    "calibration.png",
    "scores.png",
    "length_bias.png",
    "learning_curve.png",
    "history.png",
    "suspects.jsonl",
)
"""What stands beside the data of a snapshot without being named by its manifest."""

_SNAPSHOT = re.compile(r"[0-9a-f]{16}")
_SMALL_FILES = "latest\\.json|stamps\\.json|history\\.json|listing\\.json"
_OWN_FILE = re.compile(rf"{_SMALL_FILES}|writer\.lock|\.(?:{_SMALL_FILES})\.[0-9a-f]{{32}}")
_OWN_DIRECTORY = re.compile(rf"{_SNAPSHOT.pattern}|{re.escape(STAGING)}|{re.escape(TRAINING)}|{re.escape(FOLDS)}")
_STAGED = re.compile(r"(?P<shard>.+)\.[0-9a-f]{32}")
_STAGED_FILES = r"[^/]+\.json|[0-9a-f]{32}\.token|[0-9a-f]{16}\.files"
_FOLDERS = ("data", "rejects", "train", "validation", "test", "pairs", "calibration")
"""The folders of shards' files; besides these there is one for each evaluation set."""
_TOKEN = re.compile(r"[0-9a-f]{32}\.token")


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
"""What the small files of an asset hold, by which those of a storage without a marker are told from other people's."""


def is_snapshot_name(name: object) -> bool:
    """Whether this can be the name of a snapshot: 16 hexadecimal digits in lower case."""
    return isinstance(name, str) and _SNAPSHOT.fullmatch(name) is not None


def is_safe_relative_path(path: str) -> bool:
    """Whether a relative path of a record stays in its directory."""
    pure = PurePosixPath(path)
    return path == pure.as_posix() and not pure.is_absolute() and not {"..", "."} & {*pure.parts} and "\0" not in path


# --- a storage is ours or is refused -------------------------------------------------------------------------


def claim_storage(storage: Path, asset: str = "") -> None:
    """Mark a storage as ours before its first use; raises StorageError where a directory of an asset is not."""
    if not _is_claimed(storage):
        require_own_storage(storage, asset)
        write_json(storage / MARKER, {"made_by": "rm_assets"})


def require_own_storage(storage: Path, asset: str = "") -> None:
    """Raise StorageError if a storage is not marked as ours, and an asset's directory holds what is not ours.

    Storages made before there was a marker hold names that are known, and are ours.
    """
    if _is_claimed(storage):
        return
    for name in (*ASSETS, asset) if asset else ASSETS:
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
    own = {True: _OWN_DIRECTORY, False: _OWN_FILE}
    strange = (
        name for name in sorted(found) if not (own[found[name]].fullmatch(name) and _reads_as_ours(directory / name))
    )
    return next((directory / name for name in strange), None)


def _reads_as_ours(path: Path) -> bool:
    """Whether a file that has the name of one that is written anew by every run also holds what that would hold."""
    if path.name not in _CONTENTS:
        return True
    with contextlib.suppress(OSError, StorageError, msgspec.MsgspecError):
        msgspec.json.decode(read_file(path), type=_CONTENTS[path.name])
        return True
    return False


# --- files that a record names -------------------------------------------------------------------------------


class _Files(msgspec.Struct, frozen=True):
    """The files of a snapshot that is being written or removed; their paths are relative to its directory."""

    snapshot: str
    paths: tuple[str, ...]


class _ShardFile(msgspec.Struct):
    path: str


class _Shard(msgspec.Struct):
    files: tuple[_ShardFile, ...]


class _Manifest(msgspec.Struct):
    """What proves that a manifest is ours, of a stage or of a model, and the files that it names."""

    asset: str = ""
    snapshot: str = ""
    shards: tuple[_Shard, ...] = ()
    key: str = ""
    files: dict[str, str] = {}


def published_files(directory: Path) -> set[str] | None:
    """The files that the manifest of a snapshot's directory names; None unless it is one, and of this snapshot."""
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
    """Note the files that are about to be written into a snapshot's directory, beside those that may be there."""
    known = {*paths, *(_noted_files(directory) or ()), *(published_files(directory) or ())}
    write_json(_note(directory), _Files(directory.name, tuple(sorted(known))))


def finish_snapshot(directory: Path, kept: Collection[str]) -> None:
    """Remove the noted files but for those that are kept, what was left of writing any, and the note."""
    noted = _noted_files(directory) or set()
    _remove_unfinished(directory, {*noted, *kept, MANIFEST})
    remove_listed_files(directory, noted.difference(kept))
    remove_files([_note(directory)])
    remove_directories([directory, directory.parent / STAGING])


def remove_snapshot(directory: Path, besides: Iterable[str] = ()) -> None:
    """Remove the files of a snapshot, its manifest first, so that what is half removed does not exist.

    Left alone is what its manifest does not prove to be ours, what may not be changed, and a snapshot that somebody on
    this machine reads.
    """
    paths = published_files(directory)
    if paths is None or not _may_be_changed(directory):
        return
    with try_exclusive_lock(directory) as is_free:
        if is_free:
            begin_snapshot(directory, [*paths, *besides, *BESIDE])
            remove_files([directory / MANIFEST])
            with contextlib.suppress(PermissionError):  # of a folder in it; the note stays for the next run
                finish_snapshot(directory, ())


def _may_be_changed(directory: Path) -> bool:
    """Whether entries of a directory can be removed: people take the permission from what is to stay."""
    whose = {"effective_ids": os.access in os.supports_effective_ids}
    return is_remote(directory) or os.access(directory, os.R_OK | os.W_OK | os.X_OK, **whose)


def finish_removals(home: Path) -> None:
    """Finish what runs that were killed have noted and left: their files of snapshots that were not published."""
    for name in _names(home / STAGING):
        note, snapshot = home / STAGING / name, home / name.removesuffix(".files")
        if note.suffix != ".files" or not is_snapshot_name(snapshot.name):
            continue
        if _noted_files(snapshot) is None:
            continue
        kept = published_files(snapshot)
        is_damaged = kept is None and (snapshot / MANIFEST).exists()
        if not is_damaged and is_abandoned(snapshot) and is_abandoned(note):
            with contextlib.suppress(PermissionError):
                finish_snapshot(snapshot, kept or ())


def remove_listed_files(directory: Path, paths: Collection[str]) -> None:
    """Remove these files of a directory, and the folders that held no others. Nothing is removed through a link."""
    safe = [PurePosixPath(path) for path in paths if is_safe_relative_path(path)]
    if is_remote(directory):
        present = file_sizes(directory)
        remove_files([directory / path for path in map(str, safe) if path in present])
        return
    reached = [path for path in safe if not _has_link(directory, path.parent)]
    remove_files([directory / path for path in reached])
    folders = {folder for path in reached for folder in path.parents}
    remove_directories(directory / folder for folder in sorted(folders, key=lambda f: len(f.parts), reverse=True))


def _remove_unfinished(directory: Path, paths: Collection[str]) -> None:
    """Remove what was left of writing these files of a directory."""
    names: dict[PurePosixPath, set[str]] = {}
    for path in map(PurePosixPath, filter(is_safe_relative_path, paths)):
        names.setdefault(path.parent, set()).add(path.name)
    for folder, found in names.items():
        if not _has_link(directory, folder):
            remove_files(find_unfinished_files(directory / folder, found.__contains__))


def _has_link(directory: Path, folder: PurePosixPath) -> bool:
    return any((directory / part).is_symlink() for part in (folder, *folder.parents))


def _note(directory: Path) -> Path:
    return directory.parent / STAGING / f"{directory.name}.files"


def _noted_files(directory: Path) -> set[str] | None:
    """The files that are noted of a snapshot; None unless there is a note, and it is ours."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        noted = msgspec.json.decode(read_file(_note(directory)), type=_Files)
        if noted.snapshot == directory.name:
            return set(noted.paths)
    return None


def _names(directory: Path) -> list[str]:
    with contextlib.suppress(NotADirectoryError):
        return [name for name, is_directory in list_entries(directory).items() if not is_directory]
    return []


# --- files that their names tell -----------------------------------------------------------------------------


def remove_unfinished_files(home: Path) -> None:
    """Remove what was left of writing the small files of an asset."""
    remove_files(find_unfinished_files(home, re.compile(_SMALL_FILES).fullmatch))


def is_staged_directory(name: str) -> bool:
    """Whether this is the name of a directory that holds the files of a shard: `<shard>.<32 hex>`."""
    return _STAGED.fullmatch(name) is not None


def remove_staged_directory(directory: Path) -> None:
    """Remove the files of the shard that a directory in staging is named after."""
    if found := _STAGED.fullmatch(directory.name):
        folders = [f"evaluation/{name}" for name in subdirectories(directory / "evaluation")]
        remove_staged_files(directory, [f"{folder}/{found['shard']}.parquet" for folder in (*_FOLDERS, *folders)])


def remove_staged_files(directory: Path, paths: Collection[str]) -> None:
    """Remove these files of a directory in staging, and that directory if it is empty then."""
    remove_listed_files(directory, paths)
    remove_directories([directory])


def clear_staging(staging: Path) -> None:
    """Remove what is left of writing there, and staging itself if it is empty."""
    if not is_remote(staging):
        remove_files([staging / name for name in _names(staging) if _TOKEN.fullmatch(name)])
        remove_files(find_unfinished_files(staging, re.compile(_STAGED_FILES).fullmatch))
        remove_directories([staging])
