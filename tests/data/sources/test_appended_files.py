"""A file that is read again after a change: what stands before the change is hashed, and not cut into shards anew."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import age, rows, silent

from rm_assets.data.sources.blocks import Block, blocks_of_lines
from rm_assets.data.stages import raw as raw_module
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.settings import Settings

LINES = [
    b"",
    b" ",
    b"one",
    b"\xef\xbb\xbfone",
    b"\xff\xfeo",
    b"o\r",
    b"12345678",
    b"x" * 30,
    b"x" * 70,
    b"\xe4\xb8\xad",
]


def read(settings: Settings, content: bytes, *, is_old: bool = True) -> Snapshot:
    path = Path(settings.annotations_path) / "a.jsonl"
    path.write_bytes(content)
    if is_old:
        age(path.parent)
    return publish_raw(settings, silent)


def shards(snapshot: Snapshot) -> list[dict[str, Any]]:
    return [{"name": shard.name, "key": shard.key, "stats": shard.stats} for shard in snapshot.manifest.shards]


@pytest.fixture
def first_lines(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first lines of all blocks that were cut."""
    found: list[int] = []

    def noted(*arguments: Any, **options: Any) -> Iterator[Block]:
        for block in blocks_of_lines(*arguments, **options):
            found.append(block.first_line)
            yield block

    monkeypatch.setattr(raw_module, "blocks_of_lines", noted)
    return found


@pytest.mark.parametrize("is_old", [True, False])
def test_of_a_file_that_was_appended_to_the_last_shards_alone_are_cut(
    settings: Settings, first_lines: list[int], is_old: bool
) -> None:
    settings = settings.model_copy(update={"shard_bytes": 10})
    read(settings, b"one\ntwo\n" * 10, is_old=is_old)
    assert first_lines == list(range(1, 21, 2))
    first_lines.clear()
    raw = read(settings, b"one\ntwo\n" * 10 + b"three\n", is_old=is_old)
    assert first_lines == [19, 21]
    assert (raw.manifest.num_rows(), raw.num_new_shards) == (21, 1)


def test_a_file_is_read_whole_where_that_is_asked(settings: Settings, first_lines: list[int]) -> None:
    settings = settings.model_copy(update={"shard_bytes": 10, "verify": "full"})
    read(settings, b"one\ntwo\n" * 10)
    first_lines.clear()
    read(settings, b"one\ntwo\n" * 10 + b"three\n")
    assert first_lines == list(range(1, 22, 2))


@pytest.mark.parametrize("two_line_files", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_whatever_a_file_becomes_its_shards_are_those_of_a_first_reading(
    settings: Settings, tmp_path: Path, seed: int, two_line_files: bool
) -> None:
    draw = random.Random(seed)
    options = {"shard_bytes": 32, "max_line_bytes": 64, "two_line_files": two_line_files}
    settings = settings.model_copy(update=options)

    def some_lines() -> bytes:
        lines = b"\n".join(draw.choices(LINES, k=draw.randrange(12)))
        return lines + draw.choice([b"", b"\n"])

    content = some_lines()
    for number in range(8):
        snapshot = read(settings, content)
        anew = read(settings.model_copy(update={"storage": str(tmp_path / f"anew-{number}")}), content)
        assert snapshot.name == anew.name
        assert shards(snapshot) == shards(anew)
        begin, end = sorted(draw.choices(range(len(content) + 1), k=2))
        content = draw.choice([content + some_lines(), content[:begin] + some_lines() + content[end:], content[:begin]])


def test_lines_that_come_to_lie_in_an_earlier_shard_share_no_file_with_later_ones(settings: Settings) -> None:
    settings = settings.model_copy(update={"shard_bytes": 5})
    read(settings, b"aaaa\nbbbb\ncccc\n")
    raw = read(settings, b"a\nb\ncccc\ndddd\n")
    assert [row["text"] for row in rows(raw)] == ["a", "b", "cccc", "dddd"]
    assert len({shard.name for shard in raw.manifest.shards}) == 3
