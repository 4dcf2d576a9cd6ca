"""Publishing a snapshot: one writer's turn at an asset, which finds what is done and writes the rest.

Finished shards of an unfinished run lie in `<storage>/<asset>/.staging/`: `<key>.json`, written last, tells which
directory there holds the shard's files, so that a run that was cut short leaves them to the next. Then every file is
linked or copied to where it belongs, and the manifest written last. Where rejects change and data do not, the manifest
and the rejects of the same snapshot are replaced, and the data stay as they are.
"""

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from rm_assets.data.storage.files import (
    file_sizes,
    fsync_directory,
    is_abandoned,
    link_files,
    make_directory,
    read_file,
    remove_files,
    subdirectories,
    write_json,
)
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.locks import Pin, hold_lock, pin_directory
from rm_assets.data.storage.ownership import (
    MANIFEST,
    STAGING,
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
from rm_assets.data.storage.parquet import find_damage
from rm_assets.data.storage.retention import referenced_snapshots
from rm_assets.data.storage.shards import StagedShard
from rm_assets.data.storage.snapshots import (
    LATEST,
    REJECTS,
    Manifest,
    Shard,
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

    def _staged(self, name: str) -> StagedShard | None:
        try:
            staged = msgspec.json.decode(read_file(self._staging / name), type=StagedShard)
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

    def _staged_shards(self) -> dict[str, StagedShard]:
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


@contextlib.contextmanager
def open_publication(
    storage: Path, asset: str, keep_snapshots: int, say: Callable[[str], object], verify: str = "stamps"
) -> Iterator[Publication]:
    """The one writer's turn at an asset of a storage; a second one on this machine waits."""
    claim_storage(storage, asset)
    with hold_lock(storage / asset / "writer.lock", asset, say):
        yield Publication(storage, asset, keep_snapshots, say, verify)
