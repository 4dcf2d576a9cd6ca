"""Annotations and snapshots on S3: the same names, the same laws, and nothing visible before it is whole."""

import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import msgspec
import pyarrow as pa
import pytest
from s3 import BUCKET, s3_server
from support import plain_row, rejects, run_stages, silent, violations, write_lines
from upath import UPath
from worker_functions import SCHEMA, publish_without_shared_locks, published

from rm_assets.data.sources import opened_file as file_bytes
from rm_assets.data.sources.content_version import CONTENT, content_listing
from rm_assets.data.sources.discovery import NothingToReadError, find_annotations
from rm_assets.data.sources.opened_file import Change, RejectedFileError, open_annotation_file
from rm_assets.data.stages.raw import files_to_read, publish_raw
from rm_assets.data.storage.files import StorageError, file_sizes, resolve_path
from rm_assets.data.storage.ownership import MANIFEST, STAGING
from rm_assets.data.storage.parquet import read_batches, read_table
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.shards import tables_writer, write_shard
from rm_assets.data.storage.snapshots import DATA, latest_snapshot
from rm_assets.data.tables.reasons import Reason
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings, SettingsError


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as uri:
        yield uri


@pytest.fixture
def home(bucket: str, request: pytest.FixtureRequest) -> Path:
    """A prefix of the test's own."""
    return resolve_path(f"{bucket}/{request.node.name}")


def objects(directory: Path) -> dict[str, str]:
    """Everything below a prefix, with what changes when it is written again."""
    cast = UPath(directory)
    return {name: f"{e['ETag']} {e['LastModified']}" for name, e in cast.fs.find(cast.path, detail=True).items()}


def test_the_stages_give_the_same_snapshots_on_s3_and_run_for_nothing_again(home: Path, tmp_path: Path) -> None:
    rows = [plain_row(number) for number in range(40)]
    local, remote = tmp_path / "annotations", home / "annotations"
    for name in ("a.jsonl", "deep/ü #%41?.jsonl"):
        content = write_lines(local / name, [*rows, b"{broken"]).read_bytes()
        (remote / name).write_bytes(content)
        rows = [plain_row(number) for number in range(100, 140)]
    places = {str(local): str(tmp_path / "storage"), str(remote): str(home / "storage")}
    here, there = (
        run_stages(Settings(annotations=annotations, storage=storage, shard_bytes=5000))
        for annotations, storage in places.items()
    )
    assert {stage: snapshot.name for stage, snapshot in here.items()} == {s: found.name for s, found in there.items()}
    assert rejects(there[Stage.VALIDATED]) == rejects(here[Stage.VALIDATED])
    assert [place[:2] for place in rejects(here[Stage.VALIDATED])] == [("a.jsonl", 41), ("deep/ü #%2541?.jsonl", 41)]
    assert not any(violations(there).values())
    before = objects(home / "storage")
    assert not [name for name in before if STAGING in name]
    again = run_stages(Settings(annotations=str(remote), storage=str(home / "storage"), shard_bytes=5000))
    assert sum(snapshot.num_new_shards for snapshot in again.values()) == 0
    written = {
        name.rsplit("/", 1)[-1] for name, stamp in objects(home / "storage").items() if before.get(name) != stamp
    }
    assert written <= {"stamps.json"}


def test_small_files_share_shards_on_s3_as_they_do_here(home: Path, tmp_path: Path) -> None:
    local, remote = tmp_path / "annotations", home / "annotations"
    for number in range(10):
        content = write_lines(local / f"{number}.jsonl", [plain_row(number)]).read_bytes()
        (remote / f"{number}.jsonl").write_bytes(content)
    places = [(str(local), str(tmp_path / "storage")), (str(remote), str(home / "storage"))]
    here, there = (run_stages(Settings(annotations=place, storage=storage)) for place, storage in places)
    assert [len(snapshot.manifest.shards) for snapshot in there.values()] == [1] * 5
    assert {stage: snapshot.name for stage, snapshot in here.items()} == {s: found.name for s, found in there.items()}
    (remote / "3.jsonl").write_bytes(msgspec.json.encode(plain_row(33)))
    changed = run_stages(Settings(annotations=str(remote), storage=str(home / "storage")))
    assert [snapshot.num_new_shards for snapshot in changed.values()] == [1] * 5
    assert not any(violations(changed).values())


def test_appending_to_a_remote_file_computes_the_last_shards_alone(home: Path) -> None:
    lines = [msgspec.json.encode(plain_row(number)) + b"\n" for number in range(60)]
    settings = Settings(annotations=str(home / "a.jsonl"), storage=str(home / "storage"), shard_bytes=3000)
    (home / "a.jsonl").write_bytes(b"".join(lines[:59]))
    first = run_stages(settings)
    (home / "a.jsonl").write_bytes(b"".join(lines))
    second = run_stages(settings)
    assert len(first[Stage.RAW].manifest.shards) > 1
    assert [snapshot.num_new_shards for snapshot in second.values()] == [1] * 5
    assert second[Stage.PADDED].manifest.num_rows() == first[Stage.PADDED].manifest.num_rows() + 1


def test_one_listing_tells_the_versions_of_all_remote_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask for each of 10,000 files alone would take minutes, at every look."""

    def refuse(path: Path) -> None:
        pytest.fail(f"{path} was asked for alone")

    def version() -> str | None:
        files = files_to_read(settings)[1]
        return content_listing(files, home / "storage", settled_seconds=0.0).version

    settings = Settings(annotations=str(home / "annotations"), storage=str(home / "storage"))
    for name in ("a", "b"):
        (home / "annotations" / f"{name}.jsonl").write_bytes(msgspec.json.encode(plain_row(ord(name))))
    # the test writes and reads within one second
    monkeypatch.setattr("rm_assets.data.sources.opened_file._RECENT_SECONDS", 0.0)
    raw = publish_raw(settings, silent)
    monkeypatch.setattr(file_bytes, "remote_status", refuse)
    first = version()
    assert first == raw.manifest.facts[CONTENT]
    assert publish_raw(settings, silent).num_new_shards == 0
    text = (home / "annotations" / "a.jsonl").read_bytes()
    (home / "annotations" / "a.jsonl").write_bytes(text)
    assert version() == first
    (home / "annotations" / "a.jsonl").write_bytes(text.replace(b"97", b"96"))
    assert version() != first


# --- annotations ---------------------------------------------------------------------------------------------

ODD = (
    "a b.jsonl",
    "a?b#c.jsonl",
    "50%41.jsonl",
    "a*[1].jsonl",
    "d/ü.jsonl",
    "back\\slash.jsonl",
    "x//y.jsonl",
)


def test_remote_files_are_found_by_directory_glob_or_name(home: Path) -> None:
    for name in ("a/x.jsonl", "a/b/y.jsonl.gz", "a/notes.txt", "a/.h.jsonl", "a/.hidden/z.jsonl"):
        (home / name).write_bytes(b"")

    def sources(setting: str) -> list[str]:
        return [file.source for file in find_annotations(setting).files]

    assert sources(f"{home}/a") == sources(f"{home}/a/") == ["b/y.jsonl.gz", "x.jsonl"]
    assert find_annotations(f"{home}/a").ignored == ("notes.txt",)
    assert sources(f"{home}/*/x.jsonl") == ["a/x.jsonl"]
    assert sources(f"{home}/**/*.gz") == ["a/b/y.jsonl.gz"]
    assert sources(f"{home}/a/x.jsonl") == ["x.jsonl"]
    assert sources(f"{home}/**/*.jsonl") == ["a/x.jsonl"]
    assert find_annotations(f"{home}/a/*").ignored == ("b/", "notes.txt")


def test_remote_files_of_odd_names_are_read_and_tell_them_apart(home: Path) -> None:
    for name in ODD:
        key = f"{UPath(home).path}/{name}".removeprefix(f"{BUCKET}/")
        boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=name.encode())
    found = find_annotations(str(home)).files
    assert sorted(file.source for file in found) == sorted(name.replace("%", "%25") for name in ODD)
    for file in found:
        with open_annotation_file(file.path) as stream:
            assert stream.stream(200).read().decode().replace("%", "%25") == file.source


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("s3://bucket/nowhere", "there is no such file or directory"),
        ("s3://no-such-bucket/a.jsonl", "there is no such file or directory"),
        ("s3://bucket/nowhere/*.jsonl", "no file ending in .jsonl"),
        ("nosuchprotocol://a/b", "cannot be searched: 'nosuchprotocol://a/b' cannot be reached: "),
    ],
)
def test_remote_annotations_that_are_not_there_are_one_clear_error(bucket: str, setting: str, problem: str) -> None:
    with pytest.raises(SettingsError) as error:
        find_annotations(setting)
    assert f"annotations (or RM_ANNOTATIONS) is {setting!r}: {problem}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_prefix_without_objects_may_get_some_where_a_bucket_or_a_single_file_is_missed(bucket: str) -> None:
    """An object store has no empty directories: before the first file arrives there is nothing."""
    with pytest.raises(NothingToReadError, match="there is no such file or directory yet"):
        find_annotations("s3://bucket/nowhere")
    for missed in ("s3://bucket/a.jsonl", "s3://no-such-bucket/nowhere"):
        with pytest.raises(SettingsError) as error:
            find_annotations(missed)
        assert not isinstance(error.value, NothingToReadError)


def test_a_host_that_does_not_answer_stops_the_run_and_rejects_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "a.jsonl").write_bytes(b"{}\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    type(UPath(home).fs).clear_instance_cache()
    closed = resolve_path(str(home / "a.jsonl"))
    with pytest.raises(StorageError, match="cannot be reached"), open_annotation_file(closed):
        pass
    type(UPath(home).fs).clear_instance_cache()


def test_a_remote_file_that_is_replaced_while_it_is_read_says_so(home: Path) -> None:
    path = home / "a.jsonl"
    path.write_bytes(b"one\n")
    with open_annotation_file(path) as file:
        assert file.stream(200).read() == b"one\n"
        assert file.change() is Change.NONE
        path.write_bytes(b"one\ntwo\n")
        assert file.change() is Change.OTHER
    path.unlink()
    with pytest.raises(RejectedFileError) as error, open_annotation_file(path):
        pass
    assert error.value.reason is Reason.UNREADABLE_FILE


# --- publishing ----------------------------------------------------------------------------------------------


def test_a_reader_sees_a_remote_snapshot_whole_or_not_at_all(home: Path) -> None:
    with open_publication(home, "asset", 3, silent) as publication:
        shard = write_shard(
            publication.directory, "s1", "", "key-1", tables_writer({DATA: pa.table({"value": [1]}, SCHEMA)}, {})
        )
        assert latest_snapshot(home, "asset") is None
    with open_publication(home, "asset", 3, silent) as publication:  # the run before was cut short
        assert publication.find("key-1") == shard
        publication.publish([shard], {}, {})
    snapshot = latest_snapshot(home, "asset")
    assert read_table(snapshot.paths(), SCHEMA)["value"].to_pylist() == [1]
    assert [batch.to_pydict() for batch in read_batches(snapshot.paths()[0], SCHEMA)] == [{"value": [1]}]
    (snapshot.directory / MANIFEST).unlink()
    assert latest_snapshot(home, "asset") is None


def test_older_remote_snapshots_and_own_leftovers_are_removed_and_those_of_other_writers_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rm_assets.data.storage.retention._READING_SECONDS", 0.0)  # nobody reads them
    for value in range(3):
        published(home, value, keep=2)
        time.sleep(1.1)  # S3 tells times in seconds
    theirs = home / "asset" / STAGING / "0" / "data" / "x.parquet"
    theirs.write_bytes(b"somebody on another machine is writing this")
    last = published(home, 3, keep=2)
    left = {name.split("/")[0] for name in file_sizes(home / "asset")}
    assert (len(left - {STAGING, "latest.json"}), last.name in left) == (2, True)
    assert file_sizes(home / "asset" / STAGING) == {"0/data/x.parquet": 43}


def test_a_remote_snapshot_stays_a_while_for_those_who_read_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = published(home, 1, keep=1)
    time.sleep(1.1)  # S3 tells times in seconds
    published(home, 2, keep=1)
    assert latest_snapshot(home, "asset").name != first.name
    assert read_table(first.paths(), SCHEMA)["value"].to_pylist() == [1]
    monkeypatch.setattr("rm_assets.data.storage.retention._READING_SECONDS", 0.0)  # an hour later
    time.sleep(1.1)
    published(home, 2, keep=1)
    assert file_sizes(first.directory) == {}


def test_a_remote_shard_that_is_gone_or_cut_is_computed_again(home: Path) -> None:
    first = published(home, 1, 2)
    first.paths()[0].write_bytes(b"")
    again = published(home, 1, 2)
    assert (again.name, again.num_new_shards) == (first.name, 1)
    assert read_table(again.paths(), SCHEMA)["value"].to_pylist() == [1, 2]


def test_writers_on_two_machines_leave_whole_snapshots(home: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    caches = {number: str(tmp_path / str(number)) for number in (7, 8)}
    target = publish_without_shared_locks
    writers = [context.Process(target=target, args=(cache, str(home), number)) for number, cache in caches.items()]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    names = {published(home, 1, value).name for value in (7, 8)}
    snapshots = {name.split("/")[0] for name in file_sizes(home / "asset") if name.endswith(MANIFEST)}
    assert snapshots == names
    assert read_table(latest_snapshot(home, "asset").paths(), SCHEMA)["value"].to_pylist() == [1, 8]
