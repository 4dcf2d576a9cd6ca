"""raw_preferences: each file whole or not at all, whatever its bytes are and whatever happens while it is read."""

import gzip
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import age, plain_row, rejects, rows, run_stages, silent, violations, write_lines

from rm_assets.data.sources.blocks import Block, blocks_of_lines
from rm_assets.data.sources.opened_file import RejectedFileError, open_annotation_file, zstd
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.rejects import publish_rejects
from rm_assets.data.storage.snapshots import REJECTS, Snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings


def whole_and_archived(name: str) -> tuple[bytes, bytes]:
    """A megabyte of sound lines, more than is decompressed at once, and their archive."""
    letters = random.Random(0)
    replies = ["".join(letters.choices("abcdefghijklmnop ", k=50_000)) for _ in range(20)]
    lines = [json.dumps(plain_row(number, chosen=reply)).encode() + b"\n" for number, reply in enumerate(replies)]
    return b"".join(lines), (gzip if name.endswith("gz") else zstd).compress(b"".join(lines))


@pytest.mark.parametrize("name", ["torn.jsonl.gz", "torn.jsonl.zst"])
def test_a_damaged_archive_gives_lines_before_its_damage_shows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(whole_and_archived(name)[1][:-20])
    with open_annotation_file(tmp_path / name) as file:
        blocks = blocks_of_lines(file.stream(200), block_bytes=100_000, max_line_bytes=100_000)
        assert next(blocks).num_lines
        with pytest.raises(RejectedFileError, match="damaged_archive"):
            list(blocks)


@pytest.mark.parametrize("name", ["torn.jsonl.gz", "torn.jsonl.zst"])
def test_a_damaged_archive_is_rejected_whole_until_it_is_mended(settings: Settings, name: str) -> None:
    directory = Path(settings.annotations_path)
    write_lines(directory / "good.jsonl", [plain_row(100)])
    archive = whole_and_archived(name)[1]
    (directory / name).write_bytes(archive[:-20])
    settings = settings.model_copy(update={"shard_bytes": 100_000})
    stages = run_stages(settings)
    assert {row["source"] for row in rows(stages[Stage.RAW])} == {"good.jsonl"}
    assert [path.parent.name for path in Path(settings.storage).rglob("torn*")] == ["rejects"]
    assert [(row["source"], row["line"], row["reason"], row["detail"]) for row in rows(stages[Stage.RAW], REJECTS)] == [
        (name, 0, "damaged_archive", "it is truncated: its transfer may have been interrupted")
    ]
    assert stages[Stage.VALIDATED].manifest.facts["held_back"] == {}
    assert set(violations(stages).values()) == {0}
    assert publish_rejects(settings, stages, silent).manifest.num_rows() == 1
    (directory / name).write_bytes(archive)
    mended = publish_raw(settings, silent)
    assert (mended.manifest.num_rows(), mended.manifest.num_rows(rejects=True)) == (21, 0)


def test_bad_entries_are_rejects_and_the_good_ones_go_on(settings: Settings) -> None:
    directory = Path(settings.annotations_path)
    write_lines(directory / "good.jsonl", [plain_row(1)])
    write_lines(directory / os.fsdecode(b"latin\xe9\n.jsonl"), [plain_row(2)])
    write_lines(directory / "-.jsonl", [plain_row(3), b"\xff"])
    (directory / "empty.jsonl").touch()
    (directory / "empty.jsonl.gz").touch()
    (directory / "blank.jsonl").write_bytes(b"\n \r\n\n")
    (directory / "bomb.jsonl.gz").write_bytes(gzip.compress(bytes(2**26 + 1)))
    (directory / "utf16.jsonl").write_bytes('{"prompt": "p"}\n'.encode("utf-16"))
    (directory / "broken.jsonl").symlink_to("gone")
    os.mkfifo(directory / "fifo.jsonl")
    stages = run_stages(settings)
    raw = rows(stages[Stage.RAW], REJECTS)
    assert {(row["source"], row["line"], row["reason"], row["detail"]) for row in raw} == {
        ("-.jsonl", 2, "not_utf8", "byte 1 of the line is not UTF-8: save the file as UTF-8"),
        ("bomb.jsonl.gz", 0, "decompression_bomb", "expands beyond the limit"),
        ("broken.jsonl", 0, "unreadable_file", "a broken link"),
        ("empty.jsonl.gz", 0, "damaged_archive", "it is empty"),
        ("fifo.jsonl", 0, "unreadable_file", "a FIFO"),
        ("utf16.jsonl", 1, "not_utf8", "the file is UTF-16 or UTF-32: save it as UTF-8"),
        ("utf16.jsonl", 2, "not_utf8", "the file is UTF-16 or UTF-32: save it as UTF-8"),
    }
    assert [row["source"] for row in rows(stages[Stage.RAW])] == ["-.jsonl", "good.jsonl", "latin%E9%0A.jsonl"]
    assert not [path for path in stages[Stage.RAW].paths() if path.name[0] in "-._"]
    assert stages[Stage.RAW].manifest.total("num_blank") == 3
    assert set(violations(stages).values()) == {0}
    assert all(len(row["line_sha256"]) == 64 for row in rows(publish_rejects(settings, stages, silent)))
    assert publish_raw(settings, silent).num_new_shards == 0


def test_a_bomb_is_read_again_under_another_limit(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rm_assets.data.sources.opened_file.EXPANSION_ALLOWANCE", 1000)
    path = Path(settings.annotations_path) / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"one\n" * 100_000))
    age(path.parent)
    settings = settings.model_copy(update={"max_expansion": 5})
    assert rejects(publish_raw(settings, silent)) == [("a.jsonl.gz", 0, "decompression_bomb")]
    settings = settings.model_copy(update={"max_expansion": 2000})
    assert len(texts(publish_raw(settings, silent))) == 100_000


# --- files that change while they are read -------------------------------------------------------------------


@pytest.fixture
def during_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], object]], list[int]]:
    """Have something happen each time a file has been opened and some of it was read; gives the list of times."""
    monkeypatch.setattr("rm_assets.data.stages.raw._PAUSES", (0.0,) * 4)

    def arrange(happen: Callable[[int], object]) -> list[int]:
        times: list[int] = []

        def hooked(*arguments: Any, **options: Any) -> Iterator[Block]:
            for shard in blocks_of_lines(*arguments, **options):
                yield shard
                if shard.first_line == 1:
                    times.append(len(times))
                    happen(times[-1])

        monkeypatch.setattr("rm_assets.data.stages.raw.blocks_of_lines", hooked)
        return times

    return arrange


def texts(snapshot: Snapshot) -> list[str]:
    return [row["text"] for row in rows(snapshot)]


def test_of_a_file_that_grows_the_lines_count_that_were_whole_when_it_was_opened(
    settings: Settings, during_reading
) -> None:
    path = Path(settings.annotations_path) / "a.jsonl"
    path.write_bytes(b"one\ntwo\nthr")
    age(path.parent)

    def append(_: int) -> None:
        with path.open("ab") as stream:
            stream.write(b"ee\nfou")

    times = during_reading(append)
    assert texts(publish_raw(settings, silent)) == ["one", "two"]
    assert len(times) == 3
    path.write_bytes(b"one\ntwo\nthree\n")
    during_reading(lambda _: None)
    assert texts(publish_raw(settings, silent)) == ["one", "two", "three"]


def test_a_file_that_is_written_over_while_it_is_read_is_read_again(settings: Settings, during_reading) -> None:
    path = Path(settings.annotations_path) / "a.jsonl"
    old, new = (b"".join(b"%s %d\n" % (word, n) for n in range(100_000)) for word in (b"old", b"new"))
    path.write_bytes(old)
    age(path.parent)
    times = during_reading(lambda time: path.write_bytes(new) if time == 0 else None)
    raw = publish_raw(settings.model_copy(update={"shard_bytes": 1000_000}), silent)
    assert {text[:3] for text in texts(raw)} == {"new"}
    assert len(times) == 2
    assert not list(raw.directory.parent.rglob(".staging"))


def test_a_file_that_never_holds_still_is_rejected_until_it_does(settings: Settings, during_reading) -> None:
    path = Path(settings.annotations_path) / "a.jsonl"
    write_lines(path.with_name("b.jsonl"), [plain_row(1)])
    path.write_bytes(b"one\ntwo\n")
    age(path.parent)

    def replace(time: int) -> None:
        (path.parent / "new").write_bytes(b"one\ntwo %d\n" % time)
        (path.parent / "new").replace(path)

    during_reading(lambda time: replace(time) if path.read_bytes().startswith(b"one") else None)
    stages = run_stages(settings)
    assert rejects(stages[Stage.RAW]) == [("a.jsonl", 0, "changing_file")]
    assert set(violations(stages).values()) == {0}
    during_reading(lambda _: None)
    assert len(texts(publish_raw(settings, silent))) == 3


def test_a_file_that_vanishes_while_it_is_read_is_rejected(settings: Settings, during_reading) -> None:
    path = write_lines(Path(settings.annotations_path) / "a.jsonl", [plain_row(1)])
    during_reading(lambda _: path.unlink(missing_ok=True))
    raw = publish_raw(settings, silent)
    assert [(row["reason"], row["detail"]) for row in rows(raw, REJECTS)] == [
        ("unreadable_file", "No such file or directory")
    ]
    assert not rows(raw)


def test_a_file_read_while_it_changed_is_read_again_by_the_next_run(settings: Settings, during_reading) -> None:
    path = Path(settings.annotations_path) / "a.jsonl"
    path.write_bytes(b"one\n")
    age(path.parent)

    def grow_once(time: int) -> None:
        if time == 0:
            with path.open("ab") as stream:
                stream.write(b"two\n")
            age(path.parent)

    during_reading(grow_once)
    assert texts(publish_raw(settings, silent)) == ["one"]
    assert texts(publish_raw(settings, silent)) == ["one", "two"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"[1]",
        b"null",
        b"\xff",
        b'{"a.jsonl": 5}',
        b'{"a.jsonl": {}}',
        b'{"a.jsonl": {"stamp": [], "keys": 5}}',
    ],
)
def test_damaged_stamps_cost_a_second_reading_and_no_more(settings: Settings, damage: bytes) -> None:
    write_lines(Path(settings.annotations_path) / "a.jsonl", [plain_row(1)])
    age(Path(settings.annotations_path))
    first = publish_raw(settings, silent)
    stamps = Path(settings.storage) / Stage.RAW / "stamps.json"
    sound = stamps.read_bytes()
    stamps.write_bytes(damage)
    again = publish_raw(settings, silent)
    assert (again.name, again.num_new_shards) == (first.name, 0)
    assert stamps.read_bytes() == sound
