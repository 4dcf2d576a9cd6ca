"""Publishing: whole or not at all, found again after a crash, old ones removed, one writer at a time."""

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support import plain_row, silent, write_lines
from worker_functions import run_stages_again_and_again

from rm_assets.data.storage.files import StorageError
from rm_assets.data.storage.fingerprint import file_sha256, fingerprint
from rm_assets.data.storage.latest import LATEST
from rm_assets.data.storage.locks import hold_lock
from rm_assets.data.storage.ownership import MANIFEST, MARKER
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.publication import Publication, open_publication
from rm_assets.data.storage.shards import tables_writer, write_shard
from rm_assets.data.storage.snapshots import (
    DATA,
    REJECTS,
    Shard,
    Snapshot,
    SnapshotError,
    latest_snapshot,
    parent_snapshot,
    read_latest,
    read_snapshot,
    required_snapshot,
)
from rm_assets.data.storage.writing import write_json


def staged(publication: Publication, name: str, value: int, num_rejects: int = 0) -> Shard:
    tables = {DATA: pa.table({"value": [value]}), REJECTS: pa.table({"line": list(range(num_rejects))})}
    key = fingerprint(name, value, num_rejects)
    return publication.find(key) or write_shard(publication.directory, name, "source", key, tables_writer(tables, {}))


def published(storage: Path, *values: int, keep: int = 3, num_rejects: int = 0) -> Snapshot:
    with open_publication(storage, "asset", keep, silent) as publication:
        shards = [staged(publication, f"shard-{index}", value, num_rejects) for index, value in enumerate(values)]
        return publication.publish(shards, {}, {})


def test_a_snapshot_is_named_by_its_data_alone(tmp_path: Path) -> None:
    names = [published(tmp_path / place, 1, 2, num_rejects=n).name for place, n in (("a", 0), ("b", 3))]
    assert names[0] == names[1]
    assert published(tmp_path / "c", 2, 1).name != names[0]


def test_unchanged_shards_are_links_to_the_same_bytes(tmp_path: Path) -> None:
    first, second = published(tmp_path, 1, 2), published(tmp_path, 1, 3)
    assert second.num_new_shards == 1
    assert first.paths()[0].stat().st_ino == second.paths()[0].stat().st_ino
    assert first.directory != second.directory


@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP])
def test_where_there_are_no_links_files_are_copied_and_names_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    expected = [published(tmp_path / "linked", *values).name for values in ((1, 2), (1, 3))]

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    first, second = published(tmp_path / "copied", 1, 2), published(tmp_path / "copied", 1, 3)
    assert [first.name, second.name] == expected
    assert second.num_new_shards == 1
    assert first.paths()[0].read_bytes() == second.paths()[0].read_bytes()
    assert first.paths()[0].stat().st_ino != second.paths()[0].stat().st_ino
    hidden = {path.name for path in tmp_path.rglob(".*")}
    assert hidden - {".staging"} == {MARKER}  # no file that was to be renamed is left


def test_shards_finished_before_a_crash_are_found_again(tmp_path: Path) -> None:
    with open_publication(tmp_path, "asset", 3, silent) as publication:
        before = staged(publication, "shard-0", 1)
    assert latest_snapshot(tmp_path, "asset") is None
    with open_publication(tmp_path, "asset", 3, silent) as publication:
        assert publication.find(before.key) == before
        publication.publish([before], {}, {})
    assert not (tmp_path / "asset" / ".staging").exists()
    assert required_snapshot(tmp_path, "asset", "").paths()[0].is_file()


def test_a_snapshot_that_was_not_finished_does_not_exist_and_is_swept_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(path: Path, value: object) -> None:
        if path.name == MANIFEST:
            raise KeyboardInterrupt
        write_json(path, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("rm_assets.data.storage.publication.write_json", cut_short)
        published(tmp_path, 1)
    [half] = [path for path in (tmp_path / "asset").iterdir() if not path.name.startswith(".") and path.is_dir()]
    assert list(half.rglob("*.parquet"))
    assert latest_snapshot(tmp_path, "asset") is None
    published(tmp_path, 2)
    assert not half.exists()


def test_a_lost_latest_file_costs_no_work(tmp_path: Path) -> None:
    first = published(tmp_path, 1, 2)
    (tmp_path / "asset" / "latest.json").unlink()
    again = published(tmp_path, 1, 2)
    assert (again.name, again.num_new_shards) == (first.name, 0)
    assert latest_snapshot(tmp_path, "asset") == again


def test_older_snapshots_are_removed_beyond_the_number_kept(tmp_path: Path) -> None:
    names = []
    for value in range(4):
        names.append(published(tmp_path, value, keep=2).name)
        time.sleep(0.02)
    left = {path.parent.name for path in (tmp_path / "asset").glob(f"*/{MANIFEST}")}
    assert left == set(names[-2:])
    assert json.loads((tmp_path / "asset" / "latest.json").read_text()) == {"snapshot": names[-1]}


def test_going_back_to_an_older_state_computes_nothing(tmp_path: Path) -> None:
    first = published(tmp_path, 1)
    published(tmp_path, 2)
    again = published(tmp_path, 1)
    assert (again.name, again.num_new_shards) == (first.name, 0)


def test_changed_rejects_replace_those_of_the_same_snapshot(tmp_path: Path) -> None:
    published(tmp_path, 1, num_rejects=2)
    snapshot = published(tmp_path, 1, num_rejects=0)
    assert snapshot.paths(REJECTS) == []
    assert list((snapshot.directory / REJECTS).glob("*.parquet")) == []


def test_a_missing_snapshot_says_what_to_materialize(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="materialize raw_preferences first"):
        required_snapshot(tmp_path, "raw_preferences", "")


def test_a_snapshot_made_with_other_settings_is_refused(tmp_path: Path) -> None:
    published(tmp_path, 1)
    with pytest.raises(SnapshotError, match="was made with other settings: materialize asset first"):
        required_snapshot(tmp_path, "asset", "another identity")


def test_a_snapshot_of_no_rows_is_one_too(tmp_path: Path) -> None:
    snapshot = published(tmp_path)
    assert latest_snapshot(tmp_path, "asset") == snapshot
    assert snapshot.paths() == []


def test_changed_facts_alone_are_published(tmp_path: Path) -> None:
    for fact in (1, 2):
        with open_publication(tmp_path, "asset", 3, silent) as publication:
            publication.publish([], {}, {"fact": fact})
    assert latest_snapshot(tmp_path, "asset").manifest.facts == {"fact": 2}


def test_a_manifest_is_read_back_whatever_numbers_and_texts_it_has(tmp_path: Path) -> None:
    """Libraries write some floats differently, and the hash is over the text."""
    facts = {"floats": [1e22, 1e16, -1e-7, 0.1, 2.0], "large": 2**63, "\x7fß\u2028": '\x00 / \\ " é \U0001f600'}
    with open_publication(tmp_path, "asset", 3, silent) as publication:
        publication.publish([], {}, facts)
    assert latest_snapshot(tmp_path, "asset").manifest.facts == facts


def test_several_threads_find_the_shards_of_older_snapshots(tmp_path: Path) -> None:
    for value in range(3):
        published(tmp_path, value, value + 10)
    shards = [(f"shard-{index}", value + 10 * index) for value in range(3) for index in range(2)]
    with open_publication(tmp_path, "asset", 3, silent) as publication, ThreadPoolExecutor(6) as threads:
        found = threads.map(lambda shard: publication.find(fingerprint(*shard, 0)), shards)
        assert [shard and shard.name for shard in found] == [name for name, _ in shards]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_shard_whose_file_is_gone_or_cut_is_computed_again(tmp_path: Path, damage) -> None:
    first = published(tmp_path, 1, 2)
    damage(first.paths()[0])
    again = published(tmp_path, 1, 2)
    assert (again.name, again.num_new_shards) == (first.name, 1)
    assert all(path.stat().st_size for path in again.paths())


def test_what_another_snapshot_was_made_of_is_not_removed(tmp_path: Path) -> None:
    first = published(tmp_path, 0, keep=1)
    with open_publication(tmp_path, "child", 3, silent) as publication:
        child = publication.publish([], {"asset": first.name}, {})
    second, third = (published(tmp_path, value, keep=1).directory for value in (1, 2))
    assert parent_snapshot(tmp_path, child, "asset") == read_snapshot(first.directory)
    assert (second.exists(), third.exists()) == (False, True)
    shutil.rmtree(first.directory)
    with pytest.raises(SnapshotError, match="from which child was made, is gone"):
        parent_snapshot(tmp_path, child, "asset")


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    snapshot = published(tmp_path, 1)
    (snapshot.directory / MANIFEST).write_text("{}")
    with pytest.raises(SnapshotError, match=r"manifest\.json' cannot be read: remove that directory"):
        latest_snapshot(tmp_path, "asset")


HOLDER = """
import sys, time
from pathlib import Path
from rm_assets.data.storage.locks import hold_lock
with hold_lock(Path(sys.argv[1]), "the first", print):
    print("taken", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_waits_says_for_whom_and_goes_on_when_the_first_dies(tmp_path: Path) -> None:
    said = []
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"taken\n"

        def say(text: str) -> None:
            said.append(text)
            holder.kill()

        with hold_lock(tmp_path / "lock", "the second", say):
            pass
    assert said == [said[0]]
    assert said[0].startswith(f"waiting for lock, held by the first, process {holder.pid} on ")


class WaitsError(Exception):
    """Instead of waiting for a lock."""


def refuse_to_wait(text: str) -> None:
    raise WaitsError(text)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_file_that_is_removed_or_replaced_keeps_its_holder_the_only_one(tmp_path: Path, replaced: bool) -> None:
    lock = tmp_path / "lock"
    with hold_lock(lock, "the first", silent):
        lock.unlink()
        if replaced:
            lock.write_text("")
        with pytest.raises(WaitsError), hold_lock(lock, "the second", refuse_to_wait):
            pass
    with hold_lock(lock, "the third", refuse_to_wait):
        assert lock.read_text().startswith("the third, process ")


@pytest.mark.parametrize("way", ["symbolic link", "hard link", "the file itself", "of a longer text"])
def test_a_lock_changes_no_file_but_its_own(tmp_path: Path, way: str) -> None:
    lock, mine = tmp_path / "lock", tmp_path / "mine.txt"
    text = "mine" + "\nasset, process 1 on host" * ("longer" in way)
    mine.write_text(text)
    if way == "symbolic link":
        lock.symlink_to(mine)
    elif way == "hard link":
        lock.hardlink_to(mine)
    else:
        lock = mine
    with hold_lock(lock, "the first", silent):
        with pytest.raises(WaitsError), hold_lock(lock, "the second", refuse_to_wait):
            pass
        assert mine.read_text() == text
    assert mine.read_text() == text


def test_a_lock_that_a_killed_holder_left_names_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("training of run 5a, process 17 on some.host")
    with hold_lock(tmp_path / "lock", "the next", silent):
        assert (tmp_path / "lock").read_text().startswith("the next, process ")
    assert (tmp_path / "lock").read_text() == ""


@pytest.mark.parametrize("name", [LATEST, MANIFEST, ".", "../.rm_assets.json"])
def test_a_fifo_in_place_of_a_file_lets_nobody_wait(tmp_path: Path, name: str) -> None:
    snapshot = published(tmp_path, 1)
    path = tmp_path / "asset" / name if name in (LATEST, "../.rm_assets.json") else snapshot.directory / name
    shutil.move(path, tmp_path / "moved")
    os.mkfifo(path)
    with pytest.raises((StorageError, NotADirectoryError), match=r"not a regular file: remove it|Not a directory"):
        latest_snapshot(tmp_path, "asset")
        published(tmp_path, 2)


@pytest.mark.parametrize("name", ["lock", "."])
def test_who_waited_for_a_lock_that_is_gone_waits_for_the_one_that_is_there(tmp_path: Path, name: str) -> None:
    """Of the file, as on file systems that lock no directories, and of its directory."""
    home = tmp_path / "home"
    home.mkdir()
    held = [locked(home / name)]
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 1:
            shutil.rmtree(home)
            home.mkdir()
            held.append(locked(home / name))
        os.close(held[len(said) - 1])

    with hold_lock(home / "lock", "who waited", say):
        assert (home / "lock").read_text().startswith("who waited, process ")
        with pytest.raises(WaitsError), hold_lock(home / "lock", "another", refuse_to_wait):
            pass
    assert len(said) == 2


def locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


READER = """
import sys, time
from pathlib import Path
from rm_assets.data.storage.snapshots import latest_snapshot
kept = latest_snapshot(Path(sys.argv[1]), "asset")
print(kept.name, flush=True)
time.sleep(60)
"""


def test_a_snapshot_that_another_run_reads_is_kept_until_that_run_ends_or_dies(tmp_path: Path) -> None:
    first = published(tmp_path, 1, keep=1).directory
    with subprocess.Popen([sys.executable, "-c", READER, str(tmp_path)], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline().decode().strip() == first.name
        for value in (2, 3):
            published(tmp_path, value, keep=1)
            assert read_snapshot(first).manifest.num_rows() == 1
        reader.kill()
    published(tmp_path, 4, keep=1)
    assert not first.exists()
    assert len(list((tmp_path / "asset").glob(f"*/{MANIFEST}"))) == 1


def test_what_a_run_published_is_kept_for_it_while_others_publish(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as other:
        mine = published(tmp_path, 1, keep=1)
        other.submit(published, tmp_path, 2, keep=1).result()
        assert len(read_table(mine.paths(), pa.schema({"value": pa.int64()}))) == 1
        directory = mine.directory
        del mine
        other.submit(published, tmp_path, 3, keep=1).result()
        assert not directory.exists()


@pytest.mark.soak
def test_three_runs_at_once_that_keep_one_snapshot_take_nothing_from_each_other(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    write_lines(tmp_path / "annotations" / "a.jsonl", [plain_row(1)])
    context = multiprocessing.get_context("spawn")
    places = str(tmp_path / "annotations"), str(tmp_path / "storage")
    runs = [context.Process(target=run_stages_again_and_again, args=(*places, number, 10)) for number in (1, 2, 3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0, 0]
    run_stages_again_and_again(*places, 4, 6)  # alone: each stage's parents go one pass after their child
    for asset in (tmp_path / "storage").glob("*_*"):
        assert len(list(asset.glob(f"*/{MANIFEST}"))) <= 5


def test_a_snapshot_that_is_replaced_while_it_is_looked_up_gives_the_newer_one(tmp_path: Path) -> None:
    published(tmp_path, 1, keep=1)
    seen: list[str] = []

    def overtaken(directory: Path) -> Snapshot:
        seen.append(directory.name)
        if len(seen) == 1:
            published(tmp_path, 2, keep=1)
        return read_snapshot(directory)

    found = read_latest(tmp_path, "asset", overtaken)
    assert found is not None
    assert (found.name, len(set(seen))) == (seen[1], 2)


def test_a_file_that_another_machine_removed_is_told_with_what_to_do(tmp_path: Path) -> None:
    snapshot = published(tmp_path, 1)
    [path] = snapshot.paths()
    path.unlink()
    with pytest.raises(SnapshotError, match=r"shard-0\.parquet' is gone, perhaps removed by another run: run again"):
        read_table([path], pa.schema({"value": pa.int64()}))


# --- damaged files -------------------------------------------------------------------------------------------

DAMAGED = [
    b"",
    b"{",
    b"{}",
    b"[]",
    b"null",
    b'"0123456789abcdef"',
    b"\xff\xfe\x00",
    b'{"snapshot": 5}',
    b'{"snapshot": null}',
    b'{"snapshot": ""}',
    b'{"snapshot": "."}',
    b'{"snapshot": "../other/0123456789abcdef"}',
    b'{"snapshot": "0123456789abcdef"}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_latest_file_is_as_good_as_none_and_heals(tmp_path: Path, content: bytes) -> None:
    first = published(tmp_path, 1)
    (tmp_path / "asset" / "latest.json").write_bytes(content)
    assert latest_snapshot(tmp_path, "asset") is None
    with pytest.raises(SnapshotError, match="materialize asset first"):
        required_snapshot(tmp_path, "asset", "")
    again = published(tmp_path, 1)
    assert (again.name, again.num_new_shards) == (first.name, 0)
    assert latest_snapshot(tmp_path, "asset") == again


@pytest.mark.parametrize("content", [None, *DAMAGED])
def test_where_the_latest_file_is_lost_the_newest_snapshot_is_what_was_before(
    tmp_path: Path, content: bytes | None
) -> None:
    published(tmp_path, 1)
    newest = published(tmp_path, 2)
    (tmp_path / "asset" / "latest.json").unlink()
    if content is not None:
        (tmp_path / "asset" / "latest.json").write_bytes(content)
    with open_publication(tmp_path, "asset", 3, silent) as publication:
        assert publication.previous is not None
        assert publication.previous.name == newest.name


@pytest.mark.parametrize(
    "content", [*DAMAGED, b'{"asset": "asset", "snapshot": "x", "shards": []}', "of another", "out"]
)
def test_a_damaged_manifest_is_named_with_the_way_on_where_it_is_the_newest_and_passed_over_elsewhere(
    tmp_path: Path, content: bytes | str
) -> None:
    older, newest = published(tmp_path, 1), published(tmp_path, 2)
    for snapshot in (older, newest):
        sound = (snapshot.directory / MANIFEST).read_bytes()
        if content == "of another":
            damaged = sound.replace(b'"asset": "asset"', b'"asset": "other"')
        elif content == "out":
            damaged = sound.replace(b'"data/shard-0.parquet"', b'"../../x.parquet"')
        else:
            assert isinstance(content, bytes)
            damaged = content
        assert damaged != sound
        (snapshot.directory / MANIFEST).write_bytes(damaged)
        if snapshot is older:
            assert published(tmp_path, 2).num_new_shards == 0
    with pytest.raises(SnapshotError) as error:
        latest_snapshot(tmp_path, "asset")
    told = f"{str(newest.directory / MANIFEST)!r} cannot be read: remove that directory and materialize asset again"
    assert str(error.value).startswith(told)
    shutil.rmtree(newest.directory)
    assert published(tmp_path, 2).num_new_shards == 1


def with_less(manifest: dict[str, Any]) -> None:
    manifest["shards"].pop()


def with_other_counts(manifest: dict[str, Any]) -> None:
    manifest["shards"][0]["stats"]["num_lines"] = 9


def with_other_facts(manifest: dict[str, Any]) -> None:
    manifest["facts"]["accuracy"] = 0.99


def with_another_parent(manifest: dict[str, Any]) -> None:
    manifest["inputs"]["asset"] = "0" * 16


@pytest.mark.parametrize("change", [with_less, with_other_counts, with_other_facts, with_another_parent])
def test_a_manifest_that_says_something_else_than_was_written_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    path = published(tmp_path, 1, 2).directory / MANIFEST
    manifest = json.loads(path.read_bytes())
    path.write_text(json.dumps(manifest))  # in another form of JSON
    assert latest_snapshot(tmp_path, "asset") is not None
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        SnapshotError, match=r"manifest\.json' cannot be read: remove that .* \(its content does not match its"
    ):
        latest_snapshot(tmp_path, "asset")
    manifest["sha256"] = fingerprint({name: value for name, value in manifest.items() if name != "sha256"})
    path.write_text(json.dumps(manifest))  # as earlier versions hashed it
    assert latest_snapshot(tmp_path, "asset") is not None
    del manifest["sha256"]  # as manifests were written before they had it
    path.write_text(json.dumps(manifest))
    assert latest_snapshot(tmp_path, "asset") is not None


@pytest.mark.parametrize("inputs", [{}, {"asset": "../asset/x"}, {"asset": ""}])
def test_a_manifest_without_the_parent_that_is_asked_for_is_named(tmp_path: Path, inputs: dict[str, str]) -> None:
    with open_publication(tmp_path, "child", 3, silent) as publication:
        child = publication.publish([], inputs, {})
    with pytest.raises(
        SnapshotError, match=r"manifest\.json' names .* as the snapshot of asset: .*materialize child again"
    ):
        parent_snapshot(tmp_path, child, "asset")


def test_nothing_is_removed_while_it_is_unknown_what_the_newest_snapshots_need(tmp_path: Path) -> None:
    first = published(tmp_path, 0, keep=1).directory
    with open_publication(tmp_path, "child", 3, silent) as publication:
        child = publication.publish([], {"asset": first.name}, {})
    sound = (child.directory / MANIFEST).read_bytes()
    (child.directory / MANIFEST).write_bytes(b"{")
    published(tmp_path, 1, keep=1)
    assert first.exists()
    (child.directory / MANIFEST).write_bytes(sound)
    published(tmp_path, 2, keep=1)
    assert parent_snapshot(tmp_path, child, "asset") == read_snapshot(first)


def test_a_value_without_a_known_identity_cannot_be_fingerprinted() -> None:
    with pytest.raises(TypeError, match="'object'"):
        fingerprint({"a": [object()]})


def test_what_another_machine_published_meanwhile_is_not_taken_for_leftovers(tmp_path: Path) -> None:
    one, other = (Publication(tmp_path, "asset", 3) for _ in range(2))  # without the lock, as on two machines
    first, second = staged(one, "shard-0", 1), staged(other, "shard-0", 1)
    assert other.find(second.key) is not None
    place = one._link_shards

    def overtaken(*arguments: object) -> None:
        other.publish([second], {}, {})
        place(*arguments)

    one._link_shards = overtaken
    snapshot = one.publish([first], {}, {})
    assert [path.is_file() for path in snapshot.paths()] == [True]


def test_after_three_writers_were_killed_again_and_again_all_that_is_published_is_whole(tmp_path: Path) -> None:
    program = "import sys, worker_functions; worker_functions.kill_writers_of_one_storage(sys.argv[1])"
    command = [sys.executable, "-c", program, str(tmp_path / "storage")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert ended.stdout == ""
    asset = tmp_path / "storage" / "asset"
    left = [path.parent for path in asset.glob(f"*/{MANIFEST}")]
    assert left
    for directory in left:
        snapshot = read_snapshot(directory)
        written = {str(path.relative_to(directory)): file_sha256(path) for path in snapshot.paths()}
        assert written == {file.path: file.sha256 for shard in snapshot.manifest.shards for file in shard.files}
    published(tmp_path / "fresh", 1, 2, 3)
    assert published(tmp_path / "storage", 1, 2, 3).name == published(tmp_path / "fresh", 1, 2, 3).name
    assert [path for path in asset.iterdir() if path.is_dir() and not (path / MANIFEST).exists()] == []
