"""Publishes a snapshot: reuses existing shards, takes the new ones from staging, then replaces `latest.json`.

Finished shards of an interrupted run stay in `<storage>/<asset>/.staging/` (see `shards`), where the next run finds
them by key. Publishing links or copies every file into the snapshot's directory and writes the manifest last. If only
rejects change, the snapshot keeps its name and data files; its manifest and rejects are replaced.
"""

import contextlib
import dataclasses
import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from rm_assets.data.storage.dataset_card import CARD, dataset_card
from rm_assets.data.storage.files import file_sizes, is_remote
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.latest import ConcurrentPublicationError, LatestPointer
from rm_assets.data.storage.locks import Pin, hold_lock, pin_directory
from rm_assets.data.storage.ownership import (
    MANIFEST,
    STAGING,
    begin_snapshot,
    claim_storage,
    finish_removals,
    finish_snapshot,
    remove_own_temporary_files,
)
from rm_assets.data.storage.parquet import find_damage
from rm_assets.data.storage.retention import remove_old_snapshots, snapshots_by_age
from rm_assets.data.storage.shards import (
    Stats,
    clear_staging,
    read_staged_shard,
    remove_staged_shard,
    remove_unfinished_shards,
    tables_writer,
    write_shard,
)
from rm_assets.data.storage.snapshots import (
    REJECTS,
    Manifest,
    Shard,
    Snapshot,
    SnapshotError,
    latest_snapshot,
    read_snapshot,
    shard_keys,
    with_own_hash,
)
from rm_assets.data.storage.writing import fsync_directory, link_files, make_directory, upload, write_file, write_json

_ATTEMPTS = 3
_pins_of_results: "weakref.WeakValueDictionary[tuple[Path, int], Pin]" = weakref.WeakValueDictionary()
"""The pin on what each thread last published, by asset directory and thread."""


@contextlib.contextmanager
def open_publication(
    storage: Path, asset: str, keep_snapshots: int, log: Callable[[str], object], verify: str = "stamps"
) -> Iterator["Publication"]:
    """Hold the writer lock of an asset while publishing; a second writer on this machine logs whom it waits for."""
    claim_storage(storage)
    with hold_lock(storage / asset / "writer.lock", asset, log):
        yield Publication(storage, asset, keep_snapshots, log, verify)


class Publication:
    """One writer's view of an asset: the existing shards by key, and the previously published snapshot.

    With `verify="full"`, a shard is reused only if the bytes of all its files match the hashes in its manifest.
    """

    def __init__(
        self,
        storage: Path,
        asset: str,
        keep_snapshots: int,
        log: Callable[[str], object] = lambda _: None,
        verify: str = "stamps",
    ) -> None:
        self.directory = storage / asset
        self._staging = self.directory / STAGING
        self._asset = asset
        self._keep_snapshots = keep_snapshots
        self._log = log
        self._verifies = verify == "full"
        self._is_intact_by_copy: dict[tuple[Path, str], bool] = {}
        self._indexing = threading.Lock()
        self._latest = LatestPointer(self.directory)  # first: what is published from now on overtakes this run
        self.previous = latest_snapshot(storage, asset, pin=False)  # only this writer removes snapshots
        self._read_published()
        remove_unfinished_shards(self._staging)

    def _read_published(self) -> None:
        """Index the newest snapshot's shards by key. If `latest.json` is missing, the newest one counts as previous."""
        self._published: dict[str, tuple[Path, Shard]] = {}
        self._homes: dict[str, Path] = {}  # the directory that holds each found shard's files, by key
        self._sizes: dict[Path, dict[str, int]] = {}  # file sizes of the published snapshots
        newest = self.previous.directory if self.previous else None
        self._not_indexed = deque(snapshots_by_age(self.directory, newest))  # older ones, read if they have a key
        self._keys = functools.cache(shard_keys)
        while self._not_indexed and not self._published:
            self._index(self._not_indexed.popleft())

    def _index(self, directory: Path) -> None:
        snapshot = self.previous
        if snapshot is None or snapshot.directory != directory:
            try:
                snapshot = read_snapshot(directory, pin=False)
            except (FileNotFoundError, PermissionError, SnapshotError):
                return  # its shards are found elsewhere or recomputed
        self.previous = self.previous or snapshot
        for shard in snapshot.manifest.shards:
            self._published.setdefault(shard.key, (directory, shard))

    # --- finding shards --------------------------------------------------------------------------------------

    def find(self, key: str) -> Shard | None:
        """The finished shard with this key, from a published snapshot or an interrupted run."""
        for directory, shard in self._copies(key):
            if _is_complete(shard, self._file_sizes(directory)) and self._is_intact(shard, directory):
                self._homes[key] = directory
                return shard
        return None

    def _copies(self, key: str) -> Iterator[tuple[Path, Shard]]:
        with self._indexing:  # raw_preferences finds shards in several threads
            for directory in tuple(self._not_indexed):
                if key not in self._published and key in self._keys(directory):
                    self._not_indexed.remove(directory)
                    self._index(directory)
        if key in self._published:
            yield self._published[key]
        if staged := read_staged_shard(self._staging, key):
            yield self._staging / staged.directory, staged.shard

    def _file_sizes(self, directory: Path) -> dict[str, int]:
        if directory.parent == self._staging:
            return file_sizes(directory)
        if directory not in self._sizes:
            self._sizes[directory] = file_sizes(directory)
        return self._sizes[directory]

    def _is_intact(self, shard: Shard, directory: Path) -> bool:
        """Whether a shard's files match their hashes: assumed unless `verify` is "full", and checked only once."""
        if self._verifies and (directory, shard.key) not in self._is_intact_by_copy:
            checked = ((directory / file.path, find_damage(directory / file.path, file)) for file in shard.files)
            damaged = next(((path, damage) for path, damage in checked if damage), None)
            self._is_intact_by_copy[directory, shard.key] = damaged is None
            if damaged:
                problem = f"{str(damaged[0])!r} is damaged ({damaged[1]})"
                self._log(f"{self._asset}: {problem}; its shard of {shard.origin} is computed again")
        return self._is_intact_by_copy.get((directory, shard.key), True)

    def path(self, shard: Shard, folder: str) -> Path | None:
        """The current path of a found shard's file in a folder; None if the shard has no rows there."""
        for file in shard.files:
            if file.folder == folder:
                return self._home(shard) / file.path
        return None

    def _home(self, shard: Shard) -> Path:
        if shard.key not in self._homes and self.find(shard.key) is None:
            raise SnapshotError(
                f"{self._asset}: a shard of {shard.source!r} disappeared before it was published: run again"
            )
        return self._homes[shard.key]

    # --- publishing ------------------------------------------------------------------------------------------

    def publish_tables(
        self,
        key: str,
        make: Callable[[], tuple[dict[str, pa.Table], Stats]],
        inputs: dict[str, str],
        facts: dict[str, Any] | None = None,
    ) -> Snapshot:
        """Publish a snapshot of one shard named after the asset; `make` computes its tables if the key is new."""
        shard = self.find(key)
        if shard is None:
            shard = write_shard(self.directory, self._asset, "", key, tables_writer(*make()))
        return self.publish([shard], inputs, facts or {})

    def publish(
        self,
        shards: list[Shard],
        inputs: dict[str, str],
        facts: Callable[[], dict[str, Any]] | dict[str, Any],
        identity: str = "",
    ) -> Snapshot:
        """Publish these shards, in this order, as the newest snapshot. Unchanged shards are linked, not written again.

        If `facts` is a function, it is called only if this snapshot is not published already. Raises SnapshotError if
        two shards would overwrite each other's files, ConcurrentPublicationError if another run published meanwhile.
        """
        _require_distinct(self._asset, shards)
        name = fingerprint([[s.name, f.path, f.sha256] for s in shards for f in s.files if f.folder != REJECTS])[:16]
        before, new = self.previous, [shard for shard in shards if self._home(shard).parent == self._staging]
        known = facts if isinstance(facts, dict) else before.manifest.facts if before else {}
        manifest = Manifest(
            asset=self._asset, snapshot=name, identity=identity, inputs=inputs, facts=known, shards=tuple(shards)
        )
        if before and before.manifest == manifest and not new:
            try:
                self._latest.set(name)
            except ConcurrentPublicationError as error:  # this run has nothing new that could be lost
                self._log(str(error))
            return self._finish(before, new)
        directory, paths = self.directory / name, {CARD, *(file.path for shard in shards for file in shard.files)}
        begin_snapshot(directory, paths)
        make_directory(directory)
        self._link_shards(shards, directory)
        if callable(facts):
            manifest = msgspec.structs.replace(manifest, facts=facts())
        write_file(directory / CARD, dataset_card(manifest).encode())
        fsync_directory(directory, recursive=True)
        write_json(directory / MANIFEST, with_own_hash(manifest))
        finish_snapshot(directory, paths)
        self._latest.set(name)
        return self._finish(Snapshot(directory, manifest, len(new)), new)

    def _link_shards(self, shards: list[Shard], directory: Path) -> None:
        for attempts_left in reversed(range(_ATTEMPTS)):
            origins = {directory / file.path: self._home(shard) / file.path for shard in shards for file in shard.files}
            try:
                link_files({target: origin for target, origin in origins.items() if target != origin})
                return
            except FileNotFoundError:  # another machine published or removed these files
                if not attempts_left:
                    raise SnapshotError(
                        f"{self._asset}: another run removed shards before they were published here: run again"
                    ) from None
                self._read_published()

    def _finish(self, snapshot: Snapshot, new: list[Shard]) -> Snapshot:
        """Remove what is no longer needed and return the snapshot, pinned, before the lock is released."""
        self.previous = snapshot
        own = self.directory.absolute(), threading.get_ident()
        if (pin := _pins_of_results.get(own)) is not None:
            pin.release()  # otherwise this run's previous result could not be removed
        self._collect_garbage(snapshot.directory, new)
        if pin := pin_directory(snapshot.directory):
            _pins_of_results[own] = pin
        return dataclasses.replace(snapshot, pin=pin)

    def _collect_garbage(self, latest: Path, published: list[Shard]) -> None:
        """Remove leftovers of interrupted runs, old snapshots, and the staged copies of newly published shards."""
        remove_own_temporary_files(self.directory)
        finish_removals(self.directory)
        remove_old_snapshots(self.directory, latest, self._keep_snapshots)
        for shard in published:
            remove_staged_shard(self._staging, shard.key, self._homes[shard.key], shard)
        clear_staging(self._staging)


def publish_directory(working: Path, directory: Path, names: list[str]) -> None:
    """Publish a finished local directory as a snapshot: with a rename if possible, else file by file, manifest last.

    `names` are its files, relative to it. Going file by file is for remote storages and for replacing a damaged
    snapshot, whose readers will find that files differ from their manifest.
    """
    if not is_remote(directory) and not directory.exists():
        working.rename(directory)
        return
    begin_snapshot(directory, names)
    if is_remote(directory):
        upload(working, directory, names)
    else:
        link_files({directory / name: working / name for name in names if name != MANIFEST})
        fsync_directory(directory, recursive=True)
        link_files({directory / MANIFEST: working / MANIFEST})
    finish_snapshot(directory, names)


def _require_distinct(asset: str, shards: list[Shard]) -> None:
    """Raise SnapshotError if two shards share a name or a file, ignoring case as some file systems do."""
    owners: dict[str, Shard] = {}
    for shard in shards:
        for name in (shard.name, *(file.path for file in shard.files)):
            if other := owners.get(name.casefold()):
                raise SnapshotError(
                    f"{asset}: shards of {other.origin} and {shard.origin} share the name {name!r}, so one would "
                    "replace the other: rename one of the two files"
                )
            owners[name.casefold()] = shard


def _is_complete(shard: Shard, sizes: dict[str, int]) -> bool:
    """Whether all files of a shard exist in full size."""
    return all(sizes.get(file.path) == file.num_bytes for file in shard.files)
