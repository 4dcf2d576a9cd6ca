"""Syncs of a publication: few, and enough that a power cut leaves nothing that is taken for finished."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from support import silent
from worker_functions import SCHEMA

from rm_assets.data.storage.ownership import STAGING
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.publication import Publication, open_publication
from rm_assets.data.storage.shards import tables_writer, write_shard
from rm_assets.data.storage.snapshots import DATA, REJECTS, Shard


def test_a_shard_costs_one_sync_for_each_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else is synced once for a publication, however many shards it has."""

    def num_syncs(num_shards: int, num_rejects: int) -> int:
        count.clear()
        with open_publication(tmp_path / f"{num_shards}-{num_rejects}", "asset", 3, silent) as publication:
            shards = [staged_shard(publication, number, num_rejects) for number in range(num_shards)]
            publication.publish(shards, {}, {})
        return len(count)

    count, fsync = list[int](), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (count.append(descriptor), fsync(descriptor)))
    assert num_syncs(41, 0) - num_syncs(1, 0) == 40
    assert num_syncs(41, 2) - num_syncs(1, 2) == 80


def lose_record(record: Path, directory: Path) -> None:
    record.unlink()


def empty_record(record: Path, directory: Path) -> None:
    record.write_bytes(b"")


def lose_directory(record: Path, directory: Path) -> None:
    shutil.rmtree(directory)


def lose_file(record: Path, directory: Path) -> None:
    next(directory.rglob("*.parquet")).unlink()


@pytest.mark.parametrize("cut", [lose_record, empty_record, lose_directory, lose_file])
def test_what_a_power_cut_may_leave_of_a_staged_shard_is_not_used_and_goes(
    tmp_path: Path, cut: Callable[[Path, Path], None]
) -> None:
    with open_publication(tmp_path, "asset", 3, silent) as publication:
        shard = staged_shard(publication, 1, 2)
        record = publication.directory / STAGING / f"{shard.key}.json"
        cut(record, next(path for path in record.parent.iterdir() if path.is_dir()))
    with open_publication(tmp_path, "asset", 3, silent) as publication:
        assert publication.find(shard.key) is None
        snapshot = publication.publish([staged_shard(publication, 1, 2)], {}, {})
    assert read_table(snapshot.paths(), SCHEMA)["value"].to_pylist() == [1]
    assert not (tmp_path / "asset" / STAGING).exists()


def staged_shard(publication: Publication, number: int, num_rejects: int) -> Shard:
    tables = {DATA: pa.table({"value": [number]}, SCHEMA), REJECTS: pa.table({"line": list(range(num_rejects))})}
    return write_shard(publication.directory, f"s{number}", "", f"key-{number}", tables_writer(tables, {}))
