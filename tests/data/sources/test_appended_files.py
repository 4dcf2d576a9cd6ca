"""A file that is read again after a change: what stands before the change is hashed, and not cut into shards anew."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import age, rows, silent

from rm_assets.data.sources import blocks, content_version
from rm_assets.data.sources.blocks import Block, blocks_of_lines, plain_block_sha256
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


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The listing hashes files in blocks of 20 bytes."""
    monkeypatch.setattr(content_version, "_BLOCK_BYTES", 20)


@pytest.fixture
def hashed_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all shards that were compared by their bytes."""
    found: list[int] = []

    def noted(parts: Iterator[bytes], num_bytes: int) -> str:
        found.append(num_bytes)
        return plain_block_sha256(parts, num_bytes)

    monkeypatch.setattr(raw_module, "plain_block_sha256", noted)
    return found


def test_what_the_listing_found_unchanged_is_not_hashed_again(settings: Settings, hashed_bytes: list[int]) -> None:
    settings = settings.model_copy(update={"shard_bytes": 10})
    content = b"one\ntwo\n" * 11  # 88 bytes in shards of 8 and blocks of 20
    read(settings, content)
    read(settings, content + b"three\n")
    assert hashed_bytes == [8, 8]  # the first shard always; the last one is in a block that was not full
    hashed_bytes.clear()
    raw = read(settings, content[:48] + b"ONE\n" + content[52:] + b"three\n")
    # the first, and from byte 40 on up to the changed one at least: those that no thread has begun by then are left out
    assert 8 + 16 <= sum(hashed_bytes) <= 8 + 94 - 40
    assert (raw.manifest.num_rows(), raw.num_new_shards) == (23, 1)


@pytest.mark.parametrize(("change", "num_new_shards"), [("recent", 1), ("no blocks", 1), ("other settings", 11)])
def test_all_is_hashed_again_where_the_listing_does_not_tell(
    settings: Settings, hashed_bytes: list[int], change: str, num_new_shards: int
) -> None:
    settings = settings.model_copy(update={"shard_bytes": 10})
    content = b"one\ntwo\n" * 10
    first = read(settings, content)
    stamps = first.directory.parent / "stamps.json"
    if change == "no blocks":  # as written by an older version
        noted = json.loads(stamps.read_text())
        del noted["a.jsonl"]["blocks"]
        stamps.write_text(json.dumps(noted))
    if change == "other settings":
        settings = settings.model_copy(update={"max_line_bytes": settings.max_line_bytes + 1})
    raw = read(settings, content + b"three\n", is_old=change != "recent")
    assert hashed_bytes[0] == 8
    assert sum(hashed_bytes) == 80 or change == "other settings"  # where the first one differs already
    assert (raw.manifest.num_rows(), raw.num_new_shards) == (21, num_new_shards)


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


def test_a_line_more_makes_only_the_end_of_a_file_anew(
    settings: Settings, first_lines: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "LEAST_BYTES", 8)
    settings = settings.model_copy(update={"shard_bytes": 64})
    line = b"1234567\n"
    raw = read(settings, line * 31)
    sizes = [64, 64, 64, 32, 16, 8]  # 31 lines of 8 bytes: 3 blocks, and 4 + 2 + 1 lines
    assert [shard.stats["num_bytes"] for shard in raw.manifest.shards] == sizes
    first_lines.clear()
    raw = read(settings, line * 31 + b"open")
    assert [shard.stats["num_bytes"] for shard in raw.manifest.shards] == [*sizes, 4]
    assert (first_lines, raw.num_new_shards) == ([17, 25, 29, 31, 32], 1)
    raw = read(settings, line * 32)
    assert [shard.stats["num_bytes"] for shard in raw.manifest.shards] == [64] * 4
    assert raw.num_new_shards == 1


def test_a_file_that_was_cut_in_another_way_is_cut_anew(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings.model_copy(update={"shard_bytes": 64})
    content = b"1234567\n" * 31
    read(settings, content)
    monkeypatch.setattr(blocks, "LEAST_BYTES", 8)
    monkeypatch.setattr(raw_module, "_CUT", raw_module._CUT + 1)
    raw = read(settings, content)
    assert [shard.stats["num_bytes"] for shard in raw.manifest.shards] == [64, 64, 64, 32, 16, 8]
    assert raw.num_new_shards == 3


def test_a_file_is_read_whole_where_that_is_asked(settings: Settings, first_lines: list[int]) -> None:
    settings = settings.model_copy(update={"shard_bytes": 10, "verify": "full"})
    read(settings, b"one\ntwo\n" * 10)
    first_lines.clear()
    read(settings, b"one\ntwo\n" * 10 + b"three\n")
    assert first_lines == list(range(1, 22, 2))


@pytest.mark.parametrize("least_bytes", [4, 16, 2**22])
@pytest.mark.parametrize("two_line_files", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_whatever_a_file_becomes_its_shards_are_those_of_a_first_reading(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    two_line_files: bool,
    least_bytes: int,
) -> None:
    monkeypatch.setattr(blocks, "LEAST_BYTES", least_bytes)
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
