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
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from rm_assets.data.fingerprint import file_sha256, fingerprint
from rm_assets.data.parquet import parquet_writer
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


class ShardWriter:
    """A shard's files while they are written: a Parquet file per folder, a row group per table that is not empty."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._open: dict[str, tuple[BinaryIO, pq.ParquetWriter]] = {}
        self._num_rows: Counter[str] = Counter()

    def write(self, folder: str, table: pa.Table) -> None:
        """Add rows to the shard's file of a folder, which is made with the first of them."""
        if not table.num_rows:
            return
        if folder not in self._open:
            path = self.path(folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("wb")
            self._open[folder] = stream, parquet_writer(stream, table.schema)
        self._open[folder][1].write_table(table)
        self._num_rows[folder] += table.num_rows

    def path(self, folder: str) -> Path:
        """Where the file of a folder lies, or would lie."""
        return self._directory / _file_name(folder, self._name)

    def finish(self) -> tuple[ShardFile, ...]:
        """Close, sync and hash the files."""
        for stream, writer in self._open.values():
            writer.close()
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        return tuple(self._finished(folder) for folder in self._open)

    def _finished(self, folder: str) -> ShardFile:
        path = self.path(folder)
        return ShardFile(
            path=_file_name(folder, self._name),
            sha256=file_sha256(path),
            num_rows=self._num_rows[folder],
            num_bytes=path.stat().st_size,
        )

    def restart(self) -> None:
        """Throw away what was written so far."""
        self.abandon()
        for folder in self._open:
            self.path(folder).unlink()
        self._open.clear()
        self._num_rows.clear()

    def abandon(self) -> None:
        """Close the files, whatever is in them."""
        for stream, writer in self._open.values():
            with contextlib.suppress(OSError, ValueError, pa.ArrowException):
                writer.close()
            with contextlib.suppress(OSError):
                stream.close()


def _file_name(folder: str, name: str) -> str:
    return f"{folder}/{name}.parquet"


Stats = dict[str, Any]

StageFunction = Callable[[Any, ShardWriter], Stats]
"""From a task's arguments to a shard's files, and to figures about them."""

LawFunction = Callable[[Any, dict[str, Path]], Stats]
"""From a task's arguments and the files just written, by folder, to the figures of the laws that hold for one shard."""


def stage_shard(
    asset_directory: Path,
    name: str,
    source: str,
    key: str,
    fill: Callable[[ShardWriter], Stats],
    laws: Callable[[dict[str, Path]], Stats] = lambda _: {},
) -> Shard:
    """Write a shard under its key; the rename at the end makes it exist. Laws read what was written.

    `fill` writes the tables and returns figures. Where it raises, nothing is left.
    """
    staging = asset_directory / _STAGING
    temporary = staging / f"tmp-{uuid.uuid4().hex}"
    temporary.mkdir(parents=True)
    writer = ShardWriter(temporary, name)
    try:
        stats = fill(writer)
        files = writer.finish()
        measured = laws({file.folder: temporary / file.path for file in files})
        shard = Shard(name=name, source=source, key=key, files=files, stats=stats | measured)
        write_json(temporary / "shard.json", shard)
    except BaseException:
        writer.abandon()
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    try:
        temporary.rename(staging / key)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(temporary)  # the same shard was finished meanwhile
    return shard


def tables_writer(tables: dict[str, pa.Table], stats: Stats) -> Callable[[ShardWriter], Stats]:
    """A `fill` for `stage_shard`, of tables that are at hand."""

    def fill(writer: ShardWriter) -> Stats:
        for folder, table in tables.items():
            writer.write(folder, table)
        return stats

    return fill


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
    """The (asset, snapshot) that some manifest of the storage names as what it was made from."""
    pinned: set[tuple[str, str]] = set()
    for path in storage.glob(f"*/*/{MANIFEST}"):
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
