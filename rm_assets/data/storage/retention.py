"""Which snapshots are kept: the newest, and those that another snapshot or an unfinished training was made from."""

import contextlib
from pathlib import Path

import msgspec

from rm_assets.data.storage.files import is_remote, read_file, subdirectories
from rm_assets.data.storage.locks import local_cache_directory
from rm_assets.data.storage.ownership import ASSETS, MANIFEST, TRAINING, is_snapshot_name
from rm_assets.data.storage.snapshots import SnapshotError, latest_name


def unfinished_trainings(home: Path) -> Path:
    """Where those of an asset lie: on this machine, also where the storage is a remote one."""
    return (local_cache_directory(home) if is_remote(home) else home) / TRAINING


def referenced_snapshots(storage: Path) -> set[tuple[str, str]]:
    """The (asset, snapshot) that some manifest, or an unfinished training, names as what it was or is made from.

    Raises SnapshotError where the manifest of an asset's newest snapshot cannot be read, and what it needs is unknown.
    """
    needed: set[tuple[str, str]] = set()
    for asset in subdirectories(storage):
        try:
            needed |= _needed_by(storage, asset)
        except PermissionError as error:
            if asset in ASSETS:  # other directories are not ours, such as `lost+found`
                raise SnapshotError(f"{str(storage / asset)!r} cannot be read: {error.strerror}") from None
    return needed


def _needed_by(storage: Path, asset: str) -> set[tuple[str, str]]:
    needed: set[tuple[str, str]] = set()
    for name in filter(is_snapshot_name, subdirectories(storage / asset)):
        try:
            needed |= _inputs(storage / asset / name / MANIFEST)
        except msgspec.MsgspecError as error:
            latest = latest_name(storage, asset)
            if latest == name or (latest is None and asset in ASSETS):
                raise SnapshotError(f"{str(storage / asset / name / MANIFEST)!r} cannot be read: {error}") from None
    for path in unfinished_trainings(storage / asset).glob("*.json"):
        with contextlib.suppress(msgspec.MsgspecError):
            needed |= _inputs(path)
    return needed


def _inputs(path: Path) -> set[tuple[str, str]]:
    with contextlib.suppress(OSError):
        found = msgspec.json.decode(read_file(path), type=_Inputs)
        return {*found.inputs.items(), ("padded_pairs", found.data_snapshot)}
    return set()


class _Inputs(msgspec.Struct):
    """What a manifest was made from; a model's names its data otherwise."""

    inputs: dict[str, str] = {}
    data_snapshot: str = ""
