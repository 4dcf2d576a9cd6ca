"""Writing one shard: a Parquet file per folder, staged under a key until a snapshot is published."""

import contextlib
import uuid
from collections import Counter
from collections.abc import Callable
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
    make_directory,
    read_file,
    remove_files,
    subdirectories,
    write_json,
)
from rm_assets.data.storage.ownership import STAGING, is_staged_directory, remove_staged_directory
from rm_assets.data.storage.parquet import parquet_writer
from rm_assets.data.storage.snapshots import Shard, ShardFile


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


class StagedShard(msgspec.Struct, frozen=True, kw_only=True):
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
        write_json(staging / f"{key}.json", StagedShard(directory=directory.name, shard=shard))
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


# --- what is staged ------------------------------------------------------------------------------------------


def read_staged_shard(staging: Path, key: str) -> StagedShard | None:
    """The finished shard staged under a key; None if there is none, or its record is damaged."""
    try:
        staged = msgspec.json.decode(read_file(staging / f"{key}.json"), type=StagedShard)
    except (FileNotFoundError, IsADirectoryError, msgspec.MsgspecError):
        return None
    return staged if is_staged_directory(staged.directory) else None


def staged_shards(staging: Path) -> dict[str, StagedShard]:
    """All finished shards in staging, by key."""
    keys = [name.removesuffix(".json") for name in file_sizes(staging) if "/" not in name and name.endswith(".json")]
    return {key: staged for key in keys if (staged := read_staged_shard(staging, key))}


def remove_unfinished_shards(staging: Path) -> None:
    """Remove staged shards that were never finished; they would fill the disk run by run."""
    directories = [name for name in subdirectories(staging) if is_staged_directory(name)]
    finished = {staged.directory for staged in staged_shards(staging).values()} if directories else set()
    for name in directories:
        if name not in finished and is_abandoned(staging / name):
            remove_staged_directory(staging / name)
