"""Which snapshots are kept: the newest, and those that other snapshots or unfinished trainings were made from."""

import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from rm_assets.data.storage.files import is_remote, read_file, subdirectories
from rm_assets.data.storage.latest import latest_name
from rm_assets.data.storage.locks import local_working_directory
from rm_assets.data.storage.ownership import ASSETS, MANIFEST, TRAINING, is_snapshot_name, remove_snapshot
from rm_assets.data.storage.snapshots import SnapshotError

_READING_SECONDS = 3600.0
"""How long a remote snapshot is kept after a newer one replaced it: readers on other machines cannot be detected."""


def unfinished_trainings(home: Path) -> Path:
    """The directory of an asset's unfinished trainings, which is local even if the storage is remote."""
    return local_working_directory(home) / TRAINING


def snapshots_by_age(home: Path, latest: Path | None) -> dict[Path, float]:
    """An asset's snapshots and when each was written (seconds since 1970): `latest` first, then the newest first."""
    written: dict[Path, float] = {}
    for name in filter(is_snapshot_name, subdirectories(home)):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            written[home / name] = (home / name / MANIFEST).stat().st_mtime
    newest_first = sorted(written, key=lambda directory: (directory == latest, written[directory]), reverse=True)
    return {directory: written[directory] for directory in newest_first}


def remove_old_snapshots(
    home: Path, latest: Path, keep: int, unlisted_files: Callable[[Path], Iterable[str]] = lambda _: ()
) -> None:
    """Remove all but the newest `keep` snapshots of an asset, except those that others were made from.

    `unlisted_files` returns the files of a snapshot that its manifest does not list. Nothing is removed while a
    manifest cannot be read, because it may refer to any snapshot.
    """
    older = _expired(snapshots_by_age(home, latest), keep)
    with contextlib.suppress(SnapshotError):  # reported when that manifest is read
        referenced = referenced_snapshots(home.parent) if older else set()
        for directory in older:
            if (home.name, directory.name) not in referenced:
                remove_snapshot(directory, unlisted_files(directory))


def _expired(newest_first: dict[Path, float], keep: int) -> list[Path]:
    """The snapshots beyond the newest `keep`; remote ones only some time after they were replaced."""
    snapshots = list(newest_first)
    long_ago = time.time() - _READING_SECONDS
    return [
        old
        for newer, old in zip(snapshots[keep - 1 :], snapshots[keep:], strict=False)
        if not is_remote(old) or newest_first[newer] < long_ago
    ]


def referenced_snapshots(storage: Path) -> set[tuple[str, str]]:
    """Each (asset, snapshot) that a manifest or an unfinished training names as its input.

    Raises SnapshotError if the inputs of an asset's newest snapshot are unknown because its manifest cannot be read.
    """
    referenced: set[tuple[str, str]] = set()
    for asset in subdirectories(storage):
        try:
            referenced |= _references_of(storage, asset)
        except PermissionError as error:
            if asset in ASSETS:  # other directories are not ours, such as `lost+found`
                raise SnapshotError(f"{str(storage / asset)!r} cannot be read: {error.strerror}") from None
    return referenced


def _references_of(storage: Path, asset: str) -> set[tuple[str, str]]:
    referenced: set[tuple[str, str]] = set()
    for name in filter(is_snapshot_name, subdirectories(storage / asset)):
        try:
            referenced |= _inputs(storage / asset / name / MANIFEST)
        except msgspec.MsgspecError as error:
            latest = latest_name(storage, asset)
            if latest == name or (latest is None and asset in ASSETS):
                raise SnapshotError(f"{str(storage / asset / name / MANIFEST)!r} cannot be read: {error}") from None
    for path in unfinished_trainings(storage / asset).glob("*.json"):
        with contextlib.suppress(msgspec.MsgspecError):
            referenced |= _inputs(path)
    return referenced


def _inputs(path: Path) -> set[tuple[str, str]]:
    with contextlib.suppress(OSError):
        found = msgspec.json.decode(read_file(path), type=_Inputs)
        return {*found.inputs.items(), ("padded_pairs", found.data_snapshot)}
    return set()


class _Inputs(msgspec.Struct):
    """The inputs in a manifest; a model's manifest has `data_snapshot` instead."""

    inputs: dict[str, str] = {}
    data_snapshot: str = ""
