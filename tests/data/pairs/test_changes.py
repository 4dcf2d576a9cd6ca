"""How much data changed between two snapshots, in pairs."""

from pathlib import Path

import pytest
from support import plain_row, run_stages, write_lines

from rm_assets.data.pairs import changes
from rm_assets.data.pairs.changes import num_changed_pairs
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings


def padded(directory: Path, **options) -> Snapshot:
    settings = Settings(annotations=str(directory / "annotations"), storage=str(directory / "storage"), **options)
    return run_stages(settings)[Stage.PADDED]


def write(directory: Path, name: str, first: int, last: int) -> None:
    write_lines(directory / "annotations" / name, [plain_row(number) for number in range(first, last)])


def test_pairs_that_came_and_pairs_that_went_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", 0, 20)
    write(tmp_path, "b.jsonl", 20, 25)
    before = padded(tmp_path)
    assert num_changed_pairs(before, before) == 0
    write(tmp_path, "a.jsonl", 0, 23)  # 3 more, which now make duplicates of 3 in b.jsonl
    assert num_changed_pairs(before, padded(tmp_path)) == 0
    write(tmp_path, "a.jsonl", 4, 20)  # 4 fewer
    write(tmp_path, "c.jsonl", 25, 32)  # 7 more
    now = padded(tmp_path)
    assert num_changed_pairs(before, now) == 11
    assert num_changed_pairs(now, before) == 11


def test_other_settings_change_every_pair(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", 0, 20)
    assert num_changed_pairs(padded(tmp_path), padded(tmp_path, max_length=900)) == 40


def test_files_that_both_have_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.jsonl", 0, 20)
    before = padded(tmp_path)
    write(tmp_path, "b.jsonl", 20, 25)
    now = padded(tmp_path)
    read: list[str] = []
    real = changes.read_table
    monkeypatch.setattr(
        changes,
        "read_table",
        lambda paths, *rest: read.extend(path.name[0] for path in paths) or real(paths, *rest),
    )
    assert num_changed_pairs(before, now) == 5
    assert set(read) == {"b"}
