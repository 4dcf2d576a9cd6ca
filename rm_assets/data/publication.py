"""Publishing a snapshot: one writer's turn at an asset, which finds what is done and writes the rest.

Shards being computed lie in `<storage>/<asset>/.staging/<key>/`, so that a run that was cut short leaves its finished
ones to the next. Everything is written beside, synced and renamed, the manifest last. Where rejects change and data do
not, the manifest and the rejects of the same snapshot are replaced, and the data stay as they are.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from rm_assets.data.fingerprint import file_sha256, fingerprint
from rm_assets.data.snapshots import (
    LATEST,
    MANIFEST,
    REJECTS,
    Manifest,
    Shard,
    ShardFile,
    Snapshot,
    latest_snapshot,
    read_snapshot,
)

TRAINING = ".training"
"""Where the unfinished trainings of an asset lie, each with a JSON file that names its `data_snapshot`."""

_STAGING = ".staging"


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically: readers see the old bytes or the new ones, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with temporary.open("wb") as stream:
        stream.write(msgspec.json.format(msgspec.json.encode(value), indent=1))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_parquet(directory: Path, name: str, table: pa.Table) -> ShardFile:
    """Write and fsync one Parquet file; `name` is its path in the directory, and later in the snapshot."""
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
        stream.flush()
        os.fsync(stream.fileno())
    return ShardFile(
        path=name,
        sha256=file_sha256(path),
        num_rows=table.num_rows,
        num_bytes=path.stat().st_size,
    )


StageFunction = Callable[[Any], tuple[dict[str, pa.Table], dict[str, Any]]]
"""From a task's arguments to tables by folder, and figures."""

LawFunction = Callable[[Any, dict[str, Path]], dict[str, Any]]
"""From a task's arguments and the files just written, by folder, to the figures of the laws that hold for one shard."""


def stage_shard(
    asset_directory: Path,
    name: str,
    source: str,
    key: str,
    tables: dict[str, pa.Table],
    stats: dict[str, Any],
    laws: Callable[[dict[str, Path]], dict[str, Any]] = lambda _: {},
) -> Shard:
    """Write a shard under its key; the rename at the end makes it exist. Laws read what was written, not `tables`."""
    staging = asset_directory / _STAGING
    temporary = staging / f"tmp-{uuid.uuid4().hex}"
    temporary.mkdir(parents=True)
    names = {folder: f"{folder}/{name}.parquet" for folder, table in tables.items() if table.num_rows}
    files = tuple(write_parquet(temporary, path, tables[folder]) for folder, path in names.items())
    measured = laws({folder: temporary / path for folder, path in names.items()})
    shard = Shard(name=name, source=source, key=key, files=files, stats=stats | measured)
    write_json(temporary / "shard.json", shard)
    try:
        temporary.rename(staging / key)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(temporary)  # the same shard was finished meanwhile
    return shard


class Publication:
    """One writer's turn at an asset: finds what is done, and publishes the next snapshot."""

    def __init__(self, storage: Path, asset: str, keep_snapshots: int) -> None:
        self.directory = storage / asset
        self._storage = storage
        self._asset = asset
        self._keep_snapshots = keep_snapshots
        self.previous = latest_snapshot(storage, asset)
        self._published: dict[str, tuple[Path, Shard]] = {}
        for snapshot in self._snapshots():
            for shard in snapshot.manifest.shards:
                self._published.setdefault(shard.key, (snapshot.directory, shard))

    def _snapshots(self) -> list[Snapshot]:
        """The snapshots on disk, newest first, `latest` before all."""
        newest = [self.previous] if self.previous else []
        others = [m for m in self.directory.glob(f"*/{MANIFEST}") if not newest or m.parent != newest[0].directory]
        others.sort(key=lambda manifest: manifest.stat().st_mtime_ns, reverse=True)
        return newest + [read_snapshot(manifest.parent) for manifest in others]

    def find(self, key: str) -> Shard | None:
        """The finished shard of this key, from a published snapshot or from a run that was cut short."""
        if key in self._published and _is_whole(*self._published[key]):
            return self._published[key][1]
        try:
            staged = (self.directory / _STAGING / key / "shard.json").read_bytes()
        except FileNotFoundError:
            return None
        return msgspec.json.decode(staged, type=Shard)

    def path(self, shard: Shard, folder: str) -> Path | None:
        """Where a found shard's file of a folder lies now; None if it is empty."""
        for file in shard.files:
            if file.folder == folder:
                return self._home(shard) / file.path
        return None

    def _home(self, shard: Shard) -> Path:
        staged = self.directory / _STAGING / shard.key
        return staged if staged.exists() else self._published[shard.key][0]

    def publish(
        self,
        shards: list[Shard],
        inputs: dict[str, str],
        facts: Callable[[], dict[str, Any]] | dict[str, Any],
        identity: str = "",
    ) -> Snapshot:
        """Make these shards the newest snapshot, in their order. Unchanged shards are linked, not written.

        `facts` may be a function: it is called only if the snapshot is not the one already published.
        """
        name = fingerprint([[s.name, f.path, f.sha256] for s in shards for f in s.files if f.folder != REJECTS])[:16]
        before, num_new = self.previous, sum(self._is_new(shard) for shard in shards)
        known = facts if isinstance(facts, dict) else before.manifest.facts if before else {}
        manifest = Manifest(
            asset=self._asset, snapshot=name, identity=identity, inputs=inputs, facts=known, shards=tuple(shards)
        )
        if before and before.manifest == manifest and not num_new:
            self._remove_what_nothing_names(manifest)
            return before
        directory = self.directory / name
        directory.mkdir(parents=True, exist_ok=True)
        for shard in shards:
            for file in shard.files:
                _place(self._home(shard) / file.path, directory / file.path, file.sha256)
        if callable(facts):
            manifest = msgspec.structs.replace(manifest, facts=facts())
        for folder in [directory, *(path for path in directory.rglob("*") if path.is_dir())]:
            _sync_directory(folder)
        write_json(directory / MANIFEST, manifest)
        write_json(self.directory / LATEST, {"snapshot": name})
        self.previous = Snapshot(directory, manifest, num_new)
        self._remove_what_nothing_names(manifest)
        return self.previous

    def _is_new(self, shard: Shard) -> bool:
        return (self.directory / _STAGING / shard.key).exists()

    def _remove_what_nothing_names(self, manifest: Manifest) -> None:
        assert self.previous is not None
        named = {file.path for shard in manifest.shards for file in shard.files}
        for path in self.previous.directory.rglob("*.parquet"):
            if path.relative_to(self.previous.directory).as_posix() not in named:
                path.unlink()
        pinned = pinned_snapshots(self._storage)
        for snapshot in self._snapshots()[self._keep_snapshots :]:
            if (self._asset, snapshot.name) not in pinned:
                remove_directory(snapshot.directory)
        for directory in self.directory.iterdir():
            if directory.is_dir() and not (directory / MANIFEST).exists():  # staging, or a publication cut short
                shutil.rmtree(directory)


def _is_whole(directory: Path, shard: Shard) -> bool:
    """Whether a published shard's files are there in their sizes: someone may have removed or cut one."""
    try:
        return all((directory / file.path).stat().st_size == file.num_bytes for file in shard.files)
    except OSError:
        return False


def pinned_snapshots(storage: Path) -> set[tuple[str, str]]:
    """The (asset, snapshot) that some manifest, or an unfinished training, names as what it was or is made from."""
    pinned: set[tuple[str, str]] = set()
    for path in (*storage.glob(f"*/*/{MANIFEST}"), *storage.glob(f"*/{TRAINING}/*.json")):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            found = msgspec.json.decode(path.read_bytes(), type=_Inputs)
            pinned.update(found.inputs.items())
            pinned.add(("padded_pairs", found.data_snapshot))
    return pinned


class _Inputs(msgspec.Struct):
    """What a manifest was made from; a model's names its data otherwise."""

    inputs: dict[str, str] = {}
    data_snapshot: str = ""


def remove_directory(directory: Path) -> None:
    """Remove a snapshot, its manifest first, so that what is half removed does not exist."""
    (directory / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(directory)


def _place(origin: Path, target: Path, sha256: str) -> None:
    """Hard-link a file, or copy it where the file system has no links. An equal file that is there stays."""
    if target.exists() and (origin == target or file_sha256(target) == sha256):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}.{target.name}")
    try:
        os.link(origin, temporary)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS):
            raise
        shutil.copyfile(origin, temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
    temporary.replace(target)


@contextlib.contextmanager
def held_lock(path: Path, purpose: str, say: Callable[[str], object]) -> Iterator[None]:
    """Hold a file's `flock` meanwhile. Where another process holds it, `say` for whom this one waits, and wait.

    The kernel frees the lock when its holder dies, however it dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            say(f"waiting for {path.name}, held by {stream.read().strip() or 'a process that gave no name'}")
            fcntl.flock(stream, fcntl.LOCK_EX)
        stream.truncate(0)
        stream.write(f"{purpose}, process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


@contextlib.contextmanager
def publication(storage: Path, asset: str, keep_snapshots: int, say: Callable[[str], object]) -> Iterator[Publication]:
    """The one writer's turn at an asset of a storage; a second one waits."""
    with held_lock(storage / asset / "writer.lock", asset, say):
        yield Publication(storage, asset, keep_snapshots)
