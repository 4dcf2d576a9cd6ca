"""The version of what the annotations hold: content decides, never times or names of directories."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import age, plain_row, write_lines

from rm_assets.data.sources import content_version as listing_module
from rm_assets.data.sources.content_version import LONGEST_WAIT_SECONDS, Listing, content_listing, file_changes
from rm_assets.data.sources.opened_file import OpenedFile
from rm_assets.data.stages.raw import files_to_read
from rm_assets.settings import Settings


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two annotation files that have stood still for years."""
    for name in ("a", "b"):
        write_lines(tmp_path / "annotations" / f"{name}.jsonl", [plain_row(ord(name))])
    age(tmp_path / "annotations")
    return tmp_path / "annotations"


def look(directory: Path, **options) -> Listing:
    _, files = files_to_read(Settings(annotations=str(directory)))
    return content_listing(files, directory.parent / "storage", **options)


def test_a_version_depends_on_content_size_and_source_alone(directory: Path) -> None:
    first = look(directory)
    assert (first.num_files, first.changing, first.unread) == (2, (), ())
    os.utime(directory / "a.jsonl")
    assert look(directory).version == first.version
    (directory / "b.jsonl").rename(directory / "c.jsonl")
    renamed = look(directory)
    assert renamed.version != first.version
    (directory / "c.jsonl").rename(directory / "b.jsonl")
    assert look(directory).version == first.version
    text = (directory / "a.jsonl").read_bytes()
    (directory / "a.jsonl").write_bytes(text.replace(b"97", b"96"))
    age(directory)  # the size and the time of writing are those of before
    assert look(directory).version not in (first.version, renamed.version)


def test_evaluation_files_are_a_part_of_it(directory: Path, tmp_path: Path) -> None:
    held = write_lines(tmp_path / "held.jsonl", [plain_row(1)])
    settings = Settings(annotations=str(directory), evaluation_files={"held": str(held)})
    versions = []
    for row in (plain_row(1), plain_row(2)):
        write_lines(held, [row])
        versions.append(content_listing(files_to_read(settings)[1], tmp_path / "storage").version)
    assert versions[0] != versions[1]


def test_what_did_not_change_is_not_opened(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = look(directory)
    write_lines(directory / "c.jsonl", [plain_row(3)])
    opened = []
    real = listing_module.open_annotation_file
    monkeypatch.setattr(listing_module, "open_annotation_file", lambda path: opened.append(path.name) or real(path))
    second = look(directory)
    assert second.version != first.version
    assert opened == ["c.jsonl"]
    look(directory, trusts_stamps=False)
    assert sorted(opened[1:]) == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_a_file_that_is_younger_than_two_seconds_is_hashed_again(directory: Path) -> None:
    """It may be written over within one tick of the file system's clock, and then its stamp stays."""
    path = directory / "a.jsonl"
    path.write_bytes(b"1\n")
    first = look(directory)
    stamp = path.stat()
    path.write_bytes(b"2\n")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert look(directory).version != first.version


def test_a_growing_file_is_waited_for_by_name_until_it_stands_still(directory: Path) -> None:
    with (directory / "a.jsonl").open("ab") as stream:
        for _ in range(2):
            stream.write(b"\n")
            stream.flush()
            found = look(directory, settled_seconds=1.0)
            assert (found.version, found.changing) == (None, ("a.jsonl",))
    time.sleep(1.1)
    found = look(directory, settled_seconds=1.0)
    assert found.version is not None
    assert found.changing == ()


def test_a_file_from_the_future_is_waited_for_by_the_clock_of_this_machine(directory: Path) -> None:
    os.utime(directory / "a.jsonl", (4e9, 4e9))
    assert look(directory, settled_seconds=1.0).changing == ("a.jsonl",)
    time.sleep(1.1)
    assert look(directory, settled_seconds=1.0).version is not None


def test_a_file_from_the_future_is_read_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(directory / "a.jsonl", (4e9, 4e9))
    present = time.time()
    monkeypatch.setattr(listing_module.time, "time", lambda: present + 3)
    first = look(directory)
    monkeypatch.setattr(listing_module, "open_annotation_file", lambda path: pytest.fail(f"{path} was opened"))
    assert look(directory).version == first.version


def test_a_file_that_never_stands_still_keeps_the_others_back_for_a_while_only(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = time.time()
    (directory / "a.jsonl").touch()
    assert look(directory, settled_seconds=30.0).changing == ("a.jsonl",)
    monkeypatch.setattr(listing_module.time, "time", lambda: present + LONGEST_WAIT_SECONDS + 60)
    os.utime(directory / "a.jsonl", (present + LONGEST_WAIT_SECONDS + 59,) * 2)
    assert look(directory, settled_seconds=30.0).version is not None


def test_a_clock_that_is_set_back_keeps_nobody_waiting_for_it_to_come_back(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = time.time()
    monkeypatch.setattr(listing_module.time, "time", lambda: present + 1)
    (directory / "a.jsonl").touch()
    assert look(directory, settled_seconds=30.0).changing == ("a.jsonl",)
    versions = []
    for seconds in (0, 30, 60):
        monkeypatch.setattr(listing_module.time, "time", lambda seconds=seconds: present - 86400 + seconds)
        versions.append(look(directory, settled_seconds=30.0).version)
    assert versions[0] is None
    assert versions[-1] is not None


def test_a_wait_that_began_before_a_clock_was_set_back_ends(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present = time.time()
    (directory / "a.jsonl").touch()
    assert look(directory, settled_seconds=30.0).version is None
    versions = []
    for seconds in range(0, int(LONGEST_WAIT_SECONDS) + 60, 30):  # a file that grows before each look
        now = present - 86400 + seconds
        monkeypatch.setattr(listing_module.time, "time", lambda now=now: now)
        os.utime(directory / "a.jsonl", (now - 1, now - 1))
        versions.append(look(directory, settled_seconds=30.0).version)
    assert any(versions)


@pytest.mark.parametrize("settled_seconds", [30.0, 400.0])
@pytest.mark.parametrize("grown", [("a",), ("a", "b"), None])
def test_files_that_take_turns_in_changing_do_not_keep_a_version_back_for_ever(
    directory: Path, monkeypatch: pytest.MonkeyPatch, grown: tuple[str, ...] | None, settled_seconds: float
) -> None:
    """Files that grow without end, begun a look apart, or one new file before each look."""
    longest_wait = max(LONGEST_WAIT_SECONDS, 2 * settled_seconds)
    start, times = time.time(), []
    for number in range(int(3 * longest_wait / 30)):
        present = start + 30 * number
        monkeypatch.setattr(listing_module.time, "time", lambda present=present: present)
        for name in grown[: number + 1] if grown else (f"new{number}",):
            with (directory / f"{name}.jsonl").open("ab") as stream:
                stream.write(b"\n")
            os.utime(directory / f"{name}.jsonl", (present - 1, present - 1))
        if look(directory, settled_seconds=settled_seconds).version:
            times.append(present - start)
    longest = 30 * -(-longest_wait // 30)
    assert times == pytest.approx([longest, 2 * longest + 30])  # the next wait begins with the look after a version


def test_a_file_that_grows_while_it_is_hashed_is_hashed_as_it_was_opened(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, texts = listing_module.open_annotation_file, []

    @contextlib.contextmanager
    def appended_to(path: Path) -> Iterator[OpenedFile]:
        with real(path) as file:
            texts.append(path.read_bytes())
            with path.open("ab") as stream:
                stream.write(b"more\n")
            yield file

    present = time.time()
    for name in ("a.jsonl", "b.jsonl"):
        (directory / name).touch()
    assert look(directory, settled_seconds=30.0).version is None
    monkeypatch.setattr(listing_module.time, "time", lambda: present + LONGEST_WAIT_SECONDS + 1)
    for name in ("a.jsonl", "b.jsonl"):
        os.utime(directory / name, (present + LONGEST_WAIT_SECONDS,) * 2)
    monkeypatch.setattr(listing_module, "open_annotation_file", appended_to)
    found = look(directory, settled_seconds=30.0)
    assert len(texts) == 2
    monkeypatch.setattr(listing_module, "open_annotation_file", real)
    for name, text in zip(("a.jsonl", "b.jsonl"), texts, strict=True):
        (directory / name).write_bytes(text)
    assert found.version == look(directory, trusts_stamps=False).version


def test_a_look_without_time_leaves_its_blocks_to_the_next_one(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing_module, "_BLOCK_BYTES", 10)
    whole = look(directory, trusts_stamps=False)
    size = (directory / "a.jsonl").stat().st_size
    (directory.parent / "storage" / "annotation_files" / "listing.json").unlink()
    num_looks = 1
    while (found := look(directory, seconds=0.0)).version is None:
        assert found.unread[-1] == "b.jsonl"
        num_looks += 1
    assert found.version == whole.version
    at_a_time = 10 * listing_module._NUM_THREADS
    assert num_looks == 2 * -(-size // at_a_time)  # both files are as long


@pytest.mark.parametrize("damage", [b"", b"{", b'{"seen": {"a.jsonl": 5}}', b"\xff\x00"])
def test_a_damaged_cache_costs_a_second_reading_and_no_more(directory: Path, damage: bytes) -> None:
    first = look(directory)
    (directory.parent / "storage" / "annotation_files" / "listing.json").write_bytes(damage)
    assert look(directory).version == first.version


def test_an_unreadable_entry_counts_and_keeps_nobody_waiting(directory: Path) -> None:
    first = look(directory)
    os.mkfifo(directory / "pipe.jsonl")
    (directory / "gone.jsonl").symlink_to("nowhere")
    found = look(directory)
    assert found.version not in (None, first.version)
    assert look(directory).version == found.version


def test_file_changes_are_new_changed_and_gone_files() -> None:
    before = {"same": [1, "a"], "larger": [1, "b"], "other": [1, "c"], "gone": [1, "d"]}
    now = {"same": [1, "a"], "larger": [2, "b"], "other": [1, "x"], "here": [1, "d"]}
    assert file_changes(before, now) == {"larger": "changed", "other": "changed", "here": "new", "gone": "gone"}
    assert file_changes(now, now) == {}
