"""Immutable snapshots of an asset: their layout, their manifests, and how to read them.

`<storage>/<asset>/<snapshot>/` holds the shards' Parquet files and `manifest.json`, written last; a directory without a
manifest is not a snapshot. `<storage>/<asset>/latest.json` names the newest one (see `latest`). A snapshot's name is a
hash of its data files alone. `rm_assets.data.storage.publication` writes snapshots.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from rm_assets.data.storage.files import read_file
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.latest import latest_name
from rm_assets.data.storage.locks import Pin, pin_directory
from rm_assets.data.storage.ownership import MANIFEST, is_safe_relative_path, is_snapshot_name

Read = TypeVar("Read")
DATA = "data"
REJECTS = "rejects"


class SnapshotError(RuntimeError):
    """A required snapshot is missing or damaged."""


class ShardFile(msgspec.Struct, frozen=True, kw_only=True):
    """One Parquet file of a snapshot; `path` is relative to the snapshot's directory.

    `footer_sha256` is the hash of its end, from the start of the Parquet metadata; empty in old manifests.
    """

    path: str
    sha256: str
    num_rows: int
    num_bytes: int
    footer_sha256: str = ""

    @property
    def folder(self) -> str:
        """The file's folder in the snapshot: `data`, `rejects`, a split, or `evaluation/<name>`."""
        return self.path.rsplit("/", 1)[0]


class Shard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The unit of reuse, found by its key: files (none for a folder without rows) and figures about them.

    If several annotation files share a shard, `source` is empty, `sources` has the figures of each file (by its source,
    without zeros), and `stats` those of all files together.
    """

    name: str
    source: str
    key: str
    files: tuple[ShardFile, ...]
    stats: dict[str, Any]
    sources: dict[str, dict[str, Any]] = {}

    @property
    def by_source(self) -> dict[str, dict[str, Any]]:
        """The figures of each annotation file in the shard."""
        return self.sources or {self.source: self.stats}

    @property
    def origin(self) -> str:
        """The annotation files in the shard, for messages."""
        names = list(self.by_source)
        return f"{names[0]!r} to {names[-1]!r}" if self.sources else repr(self.source)

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.num_bytes for file in self.files)

    def num_rows(self, *, rejects: bool = False) -> int:
        """Rows of the data files, or of the rejects."""
        return sum(file.num_rows for file in self.files if (file.folder == REJECTS) == rejects)

    def rows_by_source(self, *, rejects: bool = False) -> dict[str, int]:
        """Rows of each annotation file; if several share the shard, as counted when it was written."""
        if not self.sources:
            return {self.source: self.num_rows(rejects=rejects)}
        figure = "num_rejects" if rejects else "num_out"
        return {source: stats.get(figure, 0) for source, stats in self.sources.items()}


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The table of contents of a snapshot; `facts` are the stage's figures about all its shards.

    `identity` hashes the settings that this stage and those before it were run with, see `data.stages.identities`.
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


_OWN_SHA256 = "sha256"


def with_own_hash(manifest: Manifest) -> dict[str, Any]:
    """A manifest as JSON, with a hash of itself: nothing else would reveal that an entry is missing from it."""
    content = msgspec.json.decode(msgspec.json.encode(manifest))
    return {**content, _OWN_SHA256: _sha256(content)}


def _sha256(content: dict[str, Any]) -> str:
    """The hash of a manifest's JSON, in whatever form it is written; many times as fast as `fingerprint`."""
    return hashlib.sha256(msgspec.json.encode([content], order="sorted")).hexdigest()


def _has_hash(content: dict[str, Any], sha256: str) -> bool:
    """Whether `sha256` is that of a manifest's JSON, or its fingerprint, which earlier versions wrote."""
    return _sha256(content) == sha256 or fingerprint(content) == sha256


@dataclass(frozen=True)
class Snapshot:
    """A published snapshot: its data files never change, and exist as long as it is pinned."""

    directory: Path
    manifest: Manifest
    num_new_shards: int = 0  # computed for this publication; 0 for a snapshot that was only read
    pin: Pin | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The snapshot's name, which is the asset's data version."""
        return self.manifest.snapshot

    def data_path(self, shard: Shard) -> Path | None:
        """The data file of a shard; None if it has no rows."""
        return next((self.directory / file.path for file in shard.files if file.folder == DATA), None)

    def paths(self, *folders: str) -> list[Path]:
        """The files in these folders (by default all but the rejects), in the order of the shards."""
        return [
            self.directory / file.path
            for shard in self.manifest.shards
            for file in shard.files
            if (file.folder in folders if folders else file.folder != REJECTS)
        ]


def latest_snapshot(storage: Path, asset: str, *, pin: bool = True) -> Snapshot | None:
    """The newest published snapshot of an asset, or None. Without a pin, another run may remove it."""
    return read_latest(storage, asset, functools.partial(read_snapshot, pin=pin))


def read_latest(storage: Path, asset: str, read: Callable[[Path], Read]) -> Read | None:
    """Call `read` with the directory of the newest snapshot; None if there is none."""
    name, before = latest_name(storage, asset), None
    while name and name != before:
        with contextlib.suppress(FileNotFoundError):  # another run published a newer one, and removed this one
            return read(storage / asset / name)
        name, before = latest_name(storage, asset), name
    return None


def required_snapshot(storage: Path, asset: str, identity: str) -> Snapshot:
    """The newest snapshot of an asset, which must have been made under the settings of this identity.

    Raises SnapshotError, with what to run, if there is none or if it was made under other settings.
    """
    snapshot = latest_snapshot(storage, asset)
    if snapshot is None:
        raise SnapshotError(f"{asset} has no snapshot in {str(storage)!r}: materialize {asset} first")
    if snapshot.manifest.identity != identity:
        raise SnapshotError(
            f"{asset} in {str(storage)!r} was made with other settings: materialize {asset} first, and use one storage "
            "per configuration"
        )
    return snapshot


def parent_snapshot(storage: Path, child: Snapshot, asset: str) -> Snapshot:
    """The snapshot of an asset from which a snapshot was made; raises SnapshotError if it is gone."""
    name = child.manifest.inputs.get(asset)
    if not is_snapshot_name(name):
        raise SnapshotError(
            f"{str(child.directory / MANIFEST)!r} names {name!r} as the snapshot of {asset}: remove that directory and "
            f"materialize {child.manifest.asset} again"
        )
    try:
        return read_snapshot(storage / asset / str(name))
    except FileNotFoundError:
        raise SnapshotError(
            f"{asset} {name!r}, from which {child.manifest.asset} was made, is gone, perhaps removed by another run: "
            "run again, or materialize both again"
        ) from None


def read_snapshot(directory: Path, *, pin: bool = True) -> Snapshot:
    """Read the snapshot in a directory; raises FileNotFoundError without a manifest, SnapshotError if it is damaged.

    A pinned snapshot is not removed by any process of this machine while the result exists.
    """
    held = pin_directory(directory) if pin else None
    path = directory / MANIFEST
    try:
        raw = read_file(path)
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, IsADirectoryError) as error:
        raise _damaged(path, str(error)) from None
    content = msgspec.json.decode(raw)
    if (sha256 := content.pop(_OWN_SHA256, None)) is not None and not _has_hash(content, sha256):
        raise _damaged(path, f"its content does not match its sha256 {sha256!r}")
    if (manifest.asset, manifest.snapshot) != (directory.parent.name, directory.name):
        raise _damaged(path, f"it belongs to {manifest.asset} {manifest.snapshot!r}")
    for shard in manifest.shards:
        for file in shard.files:
            if not is_safe_relative_path(file.path):
                raise _damaged(path, f"it names {file.path!r}")
    return Snapshot(directory, manifest, pin=held)


class _Key(msgspec.Struct):
    key: str


class _Keys(msgspec.Struct):
    shards: tuple[_Key, ...]


def shard_keys(directory: Path) -> frozenset[str]:
    """The keys of a snapshot's shards, in a fraction of the time of `read_snapshot`; none if it cannot be read."""
    try:
        found = msgspec.json.decode(read_file(directory / MANIFEST), type=_Keys)
    except (OSError, msgspec.MsgspecError):
        return frozenset()
    return frozenset(shard.key for shard in found.shards)


def _damaged(path: Path, problem: str) -> SnapshotError:
    asset = path.parent.parent.name
    return SnapshotError(
        f"{str(path)!r} cannot be read: remove that directory and materialize {asset} again ({problem})"
    )
