"""Places of any file system, and files that are whole or not there."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from support import silent

from rm_assets.data.storage.files import (
    StorageError,
    describe_error,
    file_sizes,
    is_remote,
    remove_tree,
    resolve_path,
    subdirectories,
)
from rm_assets.data.storage.parquet import parquet_writer, read_table
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.shards import tables_writer, write_shard
from rm_assets.data.storage.snapshots import DATA, SnapshotError, latest_snapshot
from rm_assets.data.storage.writing import create_file, link_files, upload, write_json
from rm_assets.settings_loading import load_settings

SCHEMA = pa.schema([pa.field("value", pa.int64(), nullable=False)])


def test_a_setting_names_a_path_of_this_machine_or_a_uri() -> None:
    assert resolve_path("a b/c") == Path("a b/c")
    assert resolve_path("~/x") == Path.home() / "x"
    assert resolve_path("file:///a/x") == Path("/a/x")
    assert [is_remote(resolve_path(setting)) for setting in ("a", "file:///a", "memory://a", "s3://bucket/a")] == [
        0,
        0,
        1,
        1,
    ]
    assert str(resolve_path("s3://bucket/a") / "b") == "s3://bucket/a/b"


def test_a_uri_stays_a_uri_in_the_settings() -> None:
    assert load_settings({"storage": "s3://bucket//a/"}, {}).storage == "s3://bucket//a/"


@pytest.mark.parametrize(("setting", "advice"), [("gs://bucket/x", "gcsfs"), ("nosuch://x", "nosuch")])
def test_a_file_system_that_is_not_installed_is_one_clear_error(setting: str, advice: str) -> None:
    with pytest.raises(StorageError) as error:
        resolve_path(setting)
    assert str(error.value).startswith(f"{setting!r} cannot be reached: ")
    assert advice in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(params=["local", "memory"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty place here, or on another file system of fsspec."""
    directory = tmp_path if request.param == "local" else resolve_path(f"memory://{tmp_path.name}")
    remove_tree(directory)
    return directory


def test_a_new_file_knows_its_size_and_hash(home: Path) -> None:
    with create_file(home / "deep" / "a") as stream:
        stream.write(b"one")
        stream.write(memoryview(b"two"))
    content = (home / "deep" / "a").read_bytes()
    assert content == b"onetwo"
    assert (stream.num_bytes, stream.sha256) == (6, hashlib.sha256(content).hexdigest())


def test_json_is_replaced_and_nothing_is_left_beside_it(home: Path) -> None:
    for value in ({"a": 1}, {"a": 2}):
        write_json(home / "x.json", value)
    assert json.loads((home / "x.json").read_bytes()) == {"a": 2}
    assert list(file_sizes(home)) == ["x.json"]


def test_files_are_placed_from_others(home: Path) -> None:
    for name in ("a", "b"):
        with create_file(home / name) as stream:
            stream.write(name.encode())
    link_files({home / "x" / "1": home / "a", home / "x" / "y" / "2": home / "b"})
    assert file_sizes(home) == {"a": 1, "b": 1, "x/1": 1, "x/y/2": 1}
    assert (home / "x" / "y" / "2").read_bytes() == b"b"
    assert subdirectories(home) == ["x"]
    assert subdirectories(home / "nowhere") == []


def test_a_directory_is_uploaded_its_manifest_last(home: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    for name in ("manifest.json", "model/a", "model/manifest.json", "z"):
        write_json(origin / name, name)
    upload(origin, home / "target")
    written = {name: (home / "target" / name).stat().st_mtime for name in file_sizes(home / "target")}
    assert sorted(written) == ["manifest.json", "model/a", "model/manifest.json", "z"]
    assert max(written.values()) == written["manifest.json"]


def test_snapshots_are_published_on_any_file_system(home: Path) -> None:
    for values in ((1, 2), (1, 2), (1, 3)):
        with open_publication(home, "asset", 1, silent) as publication:
            shards = []
            for value in values:
                fill = tables_writer({DATA: pa.table({"value": [value]}, SCHEMA)}, {})
                shards.append(
                    publication.find(f"{value}")
                    or write_shard(publication.directory, f"s{value}", "", f"{value}", fill)
                )
            snapshot = publication.publish(shards, {}, {})
    newest = latest_snapshot(home, "asset")
    assert newest is not None
    assert newest.manifest == snapshot.manifest
    assert snapshot.num_new_shards == 1
    assert read_table(snapshot.paths(), SCHEMA)["value"].to_pylist() == [1, 3]
    assert {name.split("/")[0] for name in file_sizes(home / "asset")} - {"writer.lock"} == {
        snapshot.name,
        "latest.json",
    }


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with create_file(path) as stream, parquet_writer(stream, SCHEMA) as writer:
        writer.write_table(pa.table({"value": list(range(1000))}, SCHEMA))
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match=r"a.parquet' is damaged \(.*CRC checksum.*\): remove it and run again"):
        read_table([path], SCHEMA)


def test_a_full_disk_is_told_from_other_reasons() -> None:
    assert describe_error(OSError(errno.ENOSPC, "x")).startswith(
        f"{os.strerror(errno.ENOSPC)}: free some space and run again"
    )
    assert describe_error(PermissionError(errno.EACCES, "Permission denied")) == "Permission denied"
    assert describe_error(ValueError("two\nlines")) == "two lines"
