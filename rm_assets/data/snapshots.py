"""Immutable snapshots of an asset: where they lie, what their manifests say, and how they are read.

`<storage>/<asset>/<snapshot>/` holds the shards' Parquet files and `manifest.json`, written last; then
`<storage>/<asset>/latest.json` names the snapshot. A directory without a manifest does not exist. The snapshot's name
hashes the data files alone; `rm_assets.data.publication` writes them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

MANIFEST = "manifest.json"
LATEST = "latest.json"
DATA = "data"
REJECTS = "rejects"


class SnapshotError(RuntimeError):
    """A snapshot that is needed is missing or damaged."""


class ShardFile(msgspec.Struct, frozen=True, kw_only=True):
    """One Parquet file of a snapshot; `path` is relative to the snapshot's directory."""

    path: str
    sha256: str
    num_rows: int
    num_bytes: int

    @property
    def folder(self) -> str:
        """The file's folder in the snapshot: `data`, `rejects`, a split, or `evaluation/<name>`."""
        return self.path.rsplit("/", 1)[0]


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """What one key stands for: files (none for an empty folder) and the stage's figures about them."""

    name: str
    source: str
    key: str
    files: tuple[ShardFile, ...]
    stats: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.num_bytes for file in self.files)

    def num_rows(self, *, rejects: bool = False) -> int:
        """Rows of the data files, or of the rejects."""
        return sum(file.num_rows for file in self.files if (file.folder == REJECTS) == rejects)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The table of contents of a snapshot; `facts` are the stage's figures about all shards together.

    `identity` hashes the settings that this stage and those before it were run with, see `rm_assets.data.identities`.
    """

    asset: str
    snapshot: str
    identity: str
    inputs: dict[str, str]
    facts: dict[str, Any]
    shards: tuple[Shard, ...]

    def num_rows(self, *, rejects: bool = False) -> int:
        """Rows of all data files, or of all rejects."""
        return sum(shard.num_rows(rejects=rejects) for shard in self.shards)

    def total(self, statistic: str) -> int:
        """The sum of one figure over all shards."""
        return sum(shard.stats.get(statistic, 0) for shard in self.shards)


@dataclass(frozen=True)
class Snapshot:
    """A published snapshot, pinned: its files do not change under a reader."""

    directory: Path
    manifest: Manifest
    num_new_shards: int = 0  # those that this publication computed; 0 for a snapshot that was merely read

    @property
    def name(self) -> str:
        """The snapshot's name, which is the asset's data version."""
        return self.manifest.snapshot

    def data_path(self, shard: Shard) -> Path | None:
        """The one data file of a shard; None if it has no row."""
        return next((self.directory / file.path for file in shard.files if file.folder == DATA), None)

    def paths(self, *folders: str) -> list[Path]:
        """The files of the given folders (all but the rejects if none is given), in the order of the shards."""
        return [
            self.directory / file.path
            for shard in self.manifest.shards
            for file in shard.files
            if (file.folder in folders if folders else file.folder != REJECTS)
        ]


def latest_snapshot(storage: Path, asset: str) -> Snapshot | None:
    """The newest published snapshot of an asset, or None."""
    try:
        name = json.loads((storage / asset / LATEST).read_bytes())["snapshot"]
        return read_snapshot(storage / asset / name)
    except FileNotFoundError:
        return None


def required_snapshot(storage: Path, asset: str, identity: str) -> Snapshot:
    """The newest snapshot of an asset, made with the settings of this identity.

    Raises SnapshotError with what to run where there is none, or where another run has put its own in its place.
    """
    snapshot = latest_snapshot(storage, asset)
    if snapshot is None:
        raise SnapshotError(f"{asset} has no snapshot in {str(storage)!r}: materialize {asset} first")
    if snapshot.manifest.identity != identity:
        raise SnapshotError(
            f"{asset} in {str(storage)!r} was made with other settings: materialize {asset} first, and give runs with "
            "different settings a storage each"
        )
    return snapshot


def parent_snapshot(storage: Path, child: Snapshot, asset: str) -> Snapshot:
    """The snapshot that a snapshot was made from; raises SnapshotError if it is gone."""
    name = child.manifest.inputs[asset]
    try:
        return read_snapshot(storage / asset / name)
    except FileNotFoundError:
        raise SnapshotError(
            f"{asset} {name!r}, of which {child.manifest.asset} was made, is gone: materialize both again"
        ) from None


def read_snapshot(directory: Path) -> Snapshot:
    """The snapshot in a directory; raises FileNotFoundError where there is no manifest."""
    try:
        return Snapshot(directory, msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest))
    except msgspec.MsgspecError as error:
        raise SnapshotError(f"{str(directory / MANIFEST)!r} cannot be read: remove that directory ({error})") from None
