"""Writes a shard, one Parquet file per folder, and stages it under its key until a snapshot is published.

`.staging/` of an asset holds for each finished shard the directory `<shard>.<32 hex>/` with its files, and the record
`<key>.json`, written last, which names that directory.
"""

import contextlib
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from rm_assets.data.storage.files import (
    file_sizes,
    find_temporary_files,
    is_abandoned,
    is_remote,
    list_files,
    read_file,
    remove_directories,
    remove_files,
    subdirectories,
)
from rm_assets.data.storage.ownership import STAGING, remove_listed_files
from rm_assets.data.storage.parquet import parquet_writer
from rm_assets.data.storage.snapshots import Shard, ShardFile
from rm_assets.data.storage.writing import NewFile, create_file, make_directory, write_json

_STAGED = re.compile(r"(?P<shard>.+)\.[0-9a-f]{32}")
_TOKEN = re.compile(r"[0-9a-f]{32}\.token")  # of a Ray driver, see compute/ray_cluster.py
_RECORD = re.compile(r"[^/]+\.json|[0-9a-f]{32}\.token|[0-9a-f]{16}\.files")


class ShardWriter:
    """Writes a shard's files: one Parquet file per folder, one row group per table that is not empty."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._files = contextlib.ExitStack()
        self._open: dict[str, tuple[NewFile, pq.ParquetWriter]] = {}
        self._num_rows: Counter[str] = Counter()

    def write(self, folder: str, table: pa.Table) -> None:
        """Append a table to the shard's file in a folder; the first rows create the file."""
        if not table.num_rows:
            return
        if folder not in self._open:
            stream = self._files.enter_context(create_file(self.path(folder)))
            self._open[folder] = stream, parquet_writer(stream, table.schema)
        self._open[folder][1].write_table(table)
        self._num_rows[folder] += table.num_rows

    def path(self, folder: str) -> Path:
        """The path of the shard's file in a folder, whether or not it exists."""
        return self._directory / _file_name(folder, self._name)

    def finish(self) -> tuple[ShardFile, ...]:
        """Close the files, whose content is on the disk from then on, and describe them."""
        for stream, writer in self._open.values():
            stream.begin_footer()
            writer.close()
        self._files.close()
        return tuple(
            ShardFile(
                path=_file_name(folder, self._name),
                sha256=stream.sha256,
                num_rows=self._num_rows[folder],
                num_bytes=stream.num_bytes,
                footer_sha256=stream.footer_sha256,
            )
            for folder, (stream, _) in self._open.items()
        )

    def restart(self) -> None:
        """Discard everything written so far."""
        self.abandon()
        remove_files([self.path(folder) for folder in self._open])
        self._open.clear()
        self._num_rows.clear()

    def abandon(self) -> None:
        """Close the files without completing them."""
        for _, writer in self._open.values():
            with contextlib.suppress(Exception):  # an earlier error is already being raised
                writer.close()
        with contextlib.suppress(Exception):
            self._files.close()


def _file_name(folder: str, name: str) -> str:
    return f"{folder}/{name}.parquet"


Stats = dict[str, Any]

SOURCES = "sources"
"""Key, in the figures of a shard of several annotation files, of the figures of each file by its source."""

StageFunction = Callable[[Any, ShardWriter], Stats]
"""Writes a shard's files from the arguments of its task, and returns figures about them."""

InvariantFunction = Callable[[Any, dict[str, Path]], Stats]
"""Measures a shard's invariants from the arguments of its task and the files just written, by folder."""


class StagedShard(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a finished shard that is not published yet; its files are in `directory` of staging."""

    directory: str
    shard: Shard


def write_shard(
    asset_directory: Path,
    name: str,
    source: str,
    key: str,
    fill: Callable[[ShardWriter], Stats],
    measure: Callable[[dict[str, Path]], Stats] = lambda _: {},
) -> Shard:
    """Write and stage a shard; the record under its key, written last, makes it exist.

    `fill` writes the tables and returns figures; `measure` reads the files back for more of them. If either raises,
    nothing is left behind.

    Only the content of the files is synced, as thousands of shards would cost as many more syncs: a shard whose record
    or directory entries are lost in a power cut does not count as finished. Publishing syncs the directories, once.
    """
    staging = asset_directory / STAGING
    directory = staging / f"{name}.{uuid.uuid4().hex}"
    writer = ShardWriter(directory, name)
    try:
        stats = fill(writer)
        files = writer.finish()
        measured = measure({file.folder: directory / file.path for file in files})
        sources = _merge_sources(stats.pop(SOURCES, {}), measured.pop(SOURCES, {}))
        shard = Shard(name=name, source=source, key=key, files=files, stats=stats | measured, sources=sources)
        make_directory(directory)
        write_json(staging / f"{key}.json", StagedShard(directory=directory.name, shard=shard), sync=False)
    except BaseException:
        writer.abandon()
        with contextlib.suppress(Exception):  # make room, in case the disk is full
            _remove_staged_directory(directory)
        raise
    return shard


def stats_of_files(by_source: Mapping[str, Stats]) -> Stats:
    """The figures of a shard: those of its only file, or sums over its files and, as SOURCES, those of each."""
    if len(by_source) == 1:
        return dict(*by_source.values())
    totals: Counter[str] = Counter()
    for stats in by_source.values():
        totals.update({name: value for name, value in stats.items() if isinstance(value, int)})
    return {**totals, SOURCES: by_source}


def counts_of_files(sources: Iterable[str], **figures: Counter[str]) -> Stats:
    """`stats_of_files` from counts by source, such as `num_in=Counter({"a.jsonl": 2})`, of these sources only."""
    return stats_of_files({source: {name: counts[source] for name, counts in figures.items()} for source in sources})


def _merge_sources(*figures: dict[str, Stats]) -> dict[str, Stats]:
    """The figures of each file, without zeros."""
    found: dict[str, Stats] = {}
    for by_source in figures:
        for source, stats in by_source.items():
            found.setdefault(source, {}).update({name: value for name, value in stats.items() if value})
    return found


def tables_writer(tables: dict[str, pa.Table], stats: Stats) -> Callable[[ShardWriter], Stats]:
    """A `fill` for `write_shard` that writes these tables."""

    def fill(writer: ShardWriter) -> Stats:
        for folder, table in tables.items():
            writer.write(folder, table)
        return stats

    return fill


# --- finding and removing staged shards ----------------------------------------------------------------------


def read_staged_shard(staging: Path, key: str) -> StagedShard | None:
    """The finished shard staged under a key; None if there is none or its record is damaged."""
    try:
        staged = msgspec.json.decode(read_file(staging / f"{key}.json"), type=StagedShard)
    except (FileNotFoundError, IsADirectoryError, msgspec.MsgspecError):
        return None
    return staged if _STAGED.fullmatch(staged.directory) else None


def _staged_shards(staging: Path) -> dict[str, StagedShard]:
    """All finished shards in staging, by key."""
    keys = [name.removesuffix(".json") for name in list_files(staging) if name.endswith(".json")]
    return {key: staged for key in keys if (staged := read_staged_shard(staging, key))}


def remove_unfinished_shards(staging: Path) -> None:
    """Remove staged shards that were never finished, which would otherwise fill the disk."""
    directories = [name for name in subdirectories(staging) if _STAGED.fullmatch(name)]
    finished = {staged.directory for staged in _staged_shards(staging).values()} if directories else set()
    for name in directories:
        if name not in finished and is_abandoned(staging / name):
            _remove_staged_directory(staging / name)


def _remove_staged_directory(directory: Path) -> None:
    """Remove the files that a directory in staging has of the shard it is named after."""
    name = f"{directory.name.rpartition('.')[0]}.parquet"
    _remove_staged_files(directory, [path for path in file_sizes(directory) if path.endswith(f"/{name}")])


def remove_staged_shard(staging: Path, key: str, directory: Path, shard: Shard) -> None:
    """Remove a shard's record and its files; these only if their directory is in staging and not already published."""
    remove_files([staging / f"{key}.json"])
    if directory.parent == staging:
        _remove_staged_files(directory, [file.path for file in shard.files])


def _remove_staged_files(directory: Path, paths: list[str]) -> None:
    remove_listed_files(directory, paths)
    below = [] if is_remote(directory) else [path for path in directory.rglob("*") if path.is_dir()]
    remove_directories([*sorted(below, reverse=True), directory])


def clear_staging(staging: Path) -> None:
    """Remove finished shards that no running writer needs, leftovers of killed ones, and staging itself if empty."""
    remove_unfinished_shards(staging)
    for key, staged in _staged_shards(staging).items():
        if is_abandoned(staging / staged.directory):
            remove_staged_shard(staging, key, staging / staged.directory, staged.shard)
    if not is_remote(staging):
        remove_files([staging / name for name in list_files(staging) if _TOKEN.fullmatch(name)])
        remove_files(find_temporary_files(staging, _RECORD.fullmatch))
        remove_directories([staging])
