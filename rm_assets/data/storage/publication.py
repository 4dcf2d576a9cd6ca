"""Publishing a snapshot: one writer's turn at an asset, which finds what is done and writes the rest.

Finished shards of an unfinished run lie in `<storage>/<asset>/.staging/`: `<key>.json`, written last, tells which
directory there holds the shard's files, so that a run that was cut short leaves them to the next. Then every file is
linked or copied to where it belongs, and the manifest written last. Where rejects change and data do not, the manifest
and the rejects of the same snapshot are replaced, and the data stay as they are.
"""

import contextlib
import dataclasses
import threading
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from rm_assets.data.storage.files import (
    NewFile,
    create_file,
    file_sizes,
    fsync_directory,
    is_abandoned,
    is_remote,
    link_files,
    make_directory,
    read_file,
    remove_files,
    subdirectories,
    write_json,
)
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.locks import Pin, hold_lock, local_cache_directory, pin_directory
from rm_assets.data.storage.ownership import (
    ASSETS,
    MANIFEST,
    TRAINING,
    begin_snapshot,
    claim_storage,
    clear_staging,
    expired_snapshots,
    finish_removals,
    finish_snapshot,
    is_snapshot_name,
    is_staged_directory,
    remove_snapshot,
    remove_staged_directory,
    remove_staged_files,
    remove_unfinished_files,
)
from rm_assets.data.storage.ownership import STAGING as STAGING
from rm_assets.data.storage.parquet import find_damage, parquet_writer
from rm_assets.data.storage.snapshots import (
    LATEST,
    REJECTS,
    Manifest,
    Shard,
    ShardFile,
    Snapshot,
    SnapshotError,
    latest_name,
    latest_snapshot,
    read_snapshot,
    with_own_hash,
)

_ATTEMPTS = 3
_pins_of_results: "weakref.WeakValueDictionary[tuple[Path, int], Pin]" = weakref.WeakValueDictionary()
"""The pin of what each thread published last of an asset."""


class ShardWriter:
    """A shard's files while they are written: a Parquet file per folder, a row group per table that is not empty."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._files = contextlib.ExitStack()
        self._open: dict[str, tuple[NewFile, pq.ParquetWriter]] = {}
        self._num_rows: Counter[str] = Counter()

    def write(self, folder: str, table: pa.Table) -> None:
        """Add rows to the shard's file of a folder, which is made with the first of them."""
        if not table.num_rows:
            return
        if folder not in self._open:
            stream = self._files.enter_context(create_file(self.path(folder)))
            self._open[folder] = stream, parquet_writer(stream, table.schema)
        self._open[folder][1].write_table(table)
        self._num_rows[folder] += table.num_rows

    def path(self, folder: str) -> Path:
        """Where the file of a folder lies, or would lie."""
        return self._directory / _file_name(folder, self._name)

    def finish(self) -> tuple[ShardFile, ...]:
        """Close the files, which then are durable."""
        for stream, writer in self._open.values():
            stream.begin_end()
            writer.close()
        self._files.close()
        return tuple(
            ShardFile(
                path=_file_name(folder, self._name),
                sha256=stream.sha256,
                num_rows=self._num_rows[folder],
                num_bytes=stream.num_bytes,
                footer_sha256=stream.end_sha256,
            )
            for folder, (stream, _) in self._open.items()
        )

    def restart(self) -> None:
        """Throw away what was written so far."""
        self.abandon()
        remove_files([self.path(folder) for folder in self._open])
        self._open.clear()
        self._num_rows.clear()

    def abandon(self) -> None:
        """Close the files, whatever is in them."""
        for _, writer in self._open.values():
            with contextlib.suppress(Exception):  # there is an error under way, and this one says the same
                writer.close()
        with contextlib.suppress(Exception):
            self._files.close()


def _file_name(folder: str, name: str) -> str:
    return f"{folder}/{name}.parquet"


Stats = dict[str, Any]

StageFunction = Callable[[Any, ShardWriter], Stats]
"""From a task's arguments to a shard's files, and to figures about them."""

InvariantFunction = Callable[[Any, dict[str, Path]], Stats]
"""From a task's arguments and the files just written, by folder, to the figures of the laws that hold for one shard."""


class _Staged(msgspec.Struct, frozen=True, kw_only=True):
    """A finished shard that is not published yet, and the directory in staging that holds its files."""

    directory: str
    shard: Shard


def write_shard(
    asset_directory: Path,
    name: str,
    source: str,
    key: str,
    fill: Callable[[ShardWriter], Stats],
    laws: Callable[[dict[str, Path]], Stats] = lambda _: {},
) -> Shard:
    """Write a shard; what is written last, under its key, makes it exist. Laws read what was written.

    `fill` writes the tables and returns figures. Where it raises, nothing is left.
    """
    staging = asset_directory / STAGING
    directory = staging / f"{name}.{uuid.uuid4().hex}"
    writer = ShardWriter(directory, name)
    try:
        stats = fill(writer)
        files = writer.finish()
        measured = laws({file.folder: directory / file.path for file in files})
        shard = Shard(name=name, source=source, key=key, files=files, stats=stats | measured)
        make_directory(directory)
        fsync_directory(directory, recursive=True)
        write_json(staging / f"{key}.json", _Staged(directory=directory.name, shard=shard))
    except BaseException:
        writer.abandon()
        with contextlib.suppress(Exception):  # room for others, should the disk be full
            remove_staged_directory(directory)
        raise
    return shard


def tables_writer(tables: dict[str, pa.Table], stats: Stats) -> Callable[[ShardWriter], Stats]:
    """A `fill` for `write_shard`, of tables that are at hand."""

    def fill(writer: ShardWriter) -> Stats:
        for folder, table in tables.items():
            writer.write(folder, table)
        return stats

    return fill


class Publication:
    """One writer's turn at an asset: finds what is done, and publishes the next snapshot.

    Where `verify` is "full", a shard is only found if all bytes of its files are as its manifest states.
    """

    def __init__(
        self,
        storage: Path,
        asset: str,
        keep_snapshots: int,
        say: Callable[[str], object] = lambda _: None,
        verify: str = "stamps",
    ) -> None:
        self.directory = storage / asset
        self._storage = storage
        self._staging = self.directory / STAGING
        self._asset = asset
        self._keep_snapshots = keep_snapshots
        self._say = say
        self._verifies = verify == "full"
        self._verdicts: dict[tuple[Path, str], bool] = {}
        self._latest = latest_name(storage, asset)
        self.previous = latest_snapshot(storage, asset, pin=False)  # which nobody but this writer removes
        self._look()
        self._remove_unfinished_shards()

    def _look(self) -> None:
        """Take in what is published. Where `latest.json` is lost, the newest snapshot is the one before."""
        self._published: dict[str, tuple[Path, Shard]] = {}
        self._homes: dict[str, Path] = {}  # where the files of each shard lie, by key
        self._sizes: dict[Path, dict[str, int]] = {}  # of the published snapshots' files
        read = {self.previous.directory: self.previous} if self.previous else {}
        for directory in self._snapshots():
            try:
                snapshot = read.get(directory) or read_snapshot(directory, pin=False)
            except (
                FileNotFoundError,
                PermissionError,
                SnapshotError,
            ):  # its shards are found elsewhere, or computed again
                continue
            self.previous = self.previous or snapshot
            for shard in snapshot.manifest.shards:
                self._published.setdefault(shard.key, (directory, shard))

    def _snapshots(self) -> dict[Path, float]:
        """The snapshots on disk and when each was written, newest first, `latest` before all."""
        written: dict[Path, float] = {}
        for name in filter(is_snapshot_name, subdirectories(self.directory)):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                written[self.directory / name] = (self.directory / name / MANIFEST).stat().st_mtime
        latest = self.previous.directory if self.previous else None
        newest_first = sorted(written, key=lambda directory: (directory == latest, written[directory]), reverse=True)
        return {directory: written[directory] for directory in newest_first}

    def find(self, key: str) -> Shard | None:
        """The finished shard of this key, from a published snapshot or from a run that was cut short."""
        if key in self._published:
            directory, shard = self._published[key]
            if directory not in self._sizes:
                self._sizes[directory] = file_sizes(directory)
            if _is_whole(shard, self._sizes[directory]) and self._is_sound(shard, directory):
                self._homes[key] = directory
                return shard
        staged = self._staged(f"{key}.json")
        if staged is None or not _is_whole(staged.shard, file_sizes(self._staging / staged.directory)):
            return None
        if not self._is_sound(staged.shard, self._staging / staged.directory):
            return None
        self._homes[key] = self._staging / staged.directory
        return staged.shard

    def _is_sound(self, shard: Shard, directory: Path) -> bool:
        """Whether the files of a shard hold what its manifest states, read once; taken on trust unless asked for."""
        if self._verifies and (directory, shard.key) not in self._verdicts:
            found = ((directory / file.path, find_damage(directory / file.path, file)) for file in shard.files)
            damaged = next(((path, told) for path, told in found if told), None)
            self._verdicts[directory, shard.key] = damaged is None
            if damaged:
                told = f"{str(damaged[0])!r} is damaged ({damaged[1]})"
                self._say(f"{self._asset}: {told}; its shard of {shard.source!r} is computed again")
        return self._verdicts.get((directory, shard.key), True)

    def _staged(self, name: str) -> _Staged | None:
        try:
            staged = msgspec.json.decode(read_file(self._staging / name), type=_Staged)
        except (FileNotFoundError, IsADirectoryError, msgspec.MsgspecError):
            return None
        return staged if is_staged_directory(staged.directory) else None

    def path(self, shard: Shard, folder: str) -> Path | None:
        """Where a found shard's file of a folder lies now; None if it is empty."""
        for file in shard.files:
            if file.folder == folder:
                return self._home(shard) / file.path
        return None

    def _home(self, shard: Shard) -> Path:
        if shard.key not in self._homes and self.find(shard.key) is None:
            raise SnapshotError(
                f"{self._asset}: a shard of {shard.source!r} is gone before it was published: run again"
            )
        return self._homes[shard.key]

    def publish(
        self,
        shards: list[Shard],
        inputs: dict[str, str],
        facts: Callable[[], dict[str, Any]] | dict[str, Any],
        identity: str = "",
    ) -> Snapshot:
        """Make these shards the newest snapshot, in their order. Unchanged shards are linked, not written.

        `facts` may be a function: it is called only if the snapshot is not the one already published. Raises
        SnapshotError where two shards would take each other's place.
        """
        _require_distinct(self._asset, shards)
        name = fingerprint([[s.name, f.path, f.sha256] for s in shards for f in s.files if f.folder != REJECTS])[:16]
        before, new = self.previous, [shard for shard in shards if self._home(shard).parent == self._staging]
        known = facts if isinstance(facts, dict) else before.manifest.facts if before else {}
        manifest = Manifest(
            asset=self._asset, snapshot=name, identity=identity, inputs=inputs, facts=known, shards=tuple(shards)
        )
        if before and before.manifest == manifest and not new:
            if self._latest != name:
                write_json(self.directory / LATEST, {"snapshot": name})
            return self._published_now(before, new)
        directory, paths = self.directory / name, {file.path for shard in shards for file in shard.files}
        begin_snapshot(directory, paths)
        make_directory(directory)
        self._place(shards, directory)
        if callable(facts):
            manifest = msgspec.structs.replace(manifest, facts=facts())
        fsync_directory(directory, recursive=True)
        write_json(directory / MANIFEST, with_own_hash(manifest))
        write_json(self.directory / LATEST, {"snapshot": name})
        finish_snapshot(directory, paths)
        return self._published_now(Snapshot(directory, manifest, len(new)), new)

    def _published_now(self, snapshot: Snapshot, new: list[Shard]) -> Snapshot:
        """Remove what is no longer needed. The result is pinned before others may take the next turn."""
        self._latest, self.previous = snapshot.name, snapshot
        own = self.directory.absolute(), threading.get_ident()
        if (pin := _pins_of_results.get(own)) is not None:
            pin.release()  # what this run made before does not stand in its own way
        self._remove_what_nothing_names(new)
        if pin := pin_directory(snapshot.directory):
            _pins_of_results[own] = pin
        return dataclasses.replace(snapshot, pin=pin)

    def _place(self, shards: list[Shard], directory: Path) -> None:
        for attempts_left in reversed(range(_ATTEMPTS)):
            origins = {directory / file.path: self._home(shard) / file.path for shard in shards for file in shard.files}
            try:
                link_files({target: origin for target, origin in origins.items() if target != origin})
                return
            except FileNotFoundError:  # another machine published or removed meanwhile what was found here
                if not attempts_left:
                    raise SnapshotError(
                        f"{self._asset}: another run removed shards before they were published here: run again"
                    ) from None
                self._look()

    def _remove_what_nothing_names(self, published: list[Shard]) -> None:
        """What runs that were cut short left, snapshots beyond those to keep, and what was staged for this one."""
        remove_unfinished_files(self.directory)
        finish_removals(self.directory)
        older = expired_snapshots(self._snapshots(), self._keep_snapshots)
        with contextlib.suppress(SnapshotError):  # of a manifest that may name any; who reads it will hear of it
            pinned_by_others = referenced_snapshots(self._storage) if older else set()
            for directory in older:
                if (self._asset, directory.name) not in pinned_by_others:
                    remove_snapshot(directory)
        # another machine may have published one meanwhile: then its home is a snapshot
        staged = [shard for shard in published if self._homes[shard.key].parent == self._staging]
        remove_files([self._staging / f"{shard.key}.json" for shard in published])
        for shard in staged:
            remove_staged_files(self._homes[shard.key], [file.path for file in shard.files])
        for name, left in self._staged_shards().items():
            if is_abandoned(self._staging / left.directory):
                remove_files([self._staging / name])
                remove_staged_files(self._staging / left.directory, [file.path for file in left.shard.files])
        clear_staging(self._staging)

    def _staged_shards(self) -> dict[str, _Staged]:
        """The shards that are finished and not published, by the name of the file that tells so."""
        names = [name for name in file_sizes(self._staging) if "/" not in name and name.endswith(".json")]
        return {name: staged for name in names if (staged := self._staged(name))}

    def _remove_unfinished_shards(self) -> None:
        """Remove the shards in staging that are not finished; they would fill the disk run by run."""
        directories = [name for name in subdirectories(self._staging) if is_staged_directory(name)]
        named = {staged.directory for staged in self._staged_shards().values()} if directories else set()
        for name in directories:
            if name not in named and is_abandoned(self._staging / name):
                remove_staged_directory(self._staging / name)


def _require_distinct(asset: str, shards: list[Shard]) -> None:
    """Raise SnapshotError where two shards share a name or a file, also if only on a file system that ignores case."""
    owners: dict[str, Shard] = {}
    for shard in shards:
        for name in (shard.name, *(file.path for file in shard.files)):
            if other := owners.get(name.casefold()):
                raise SnapshotError(
                    f"{asset}: shards of {other.source!r} and {shard.source!r} share the name {name!r}, so one would "
                    "replace the other: rename one of the two files"
                )
            owners[name.casefold()] = shard


def _is_whole(shard: Shard, sizes: dict[str, int]) -> bool:
    """Whether a shard's files are there in their sizes: someone may have removed or cut one."""
    return all(sizes.get(file.path) == file.num_bytes for file in shard.files)


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


@contextlib.contextmanager
def open_publication(
    storage: Path, asset: str, keep_snapshots: int, say: Callable[[str], object], verify: str = "stamps"
) -> Iterator[Publication]:
    """The one writer's turn at an asset of a storage; a second one on this machine waits."""
    claim_storage(storage, asset)
    with hold_lock(storage / asset / "writer.lock", asset, say):
        yield Publication(storage, asset, keep_snapshots, say, verify)
