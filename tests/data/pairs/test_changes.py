"""How much data changed between two snapshots, in pairs."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support import plain_row, run_stages, write_lines

from rm_assets.data.pairs import changes
from rm_assets.data.pairs.changes import num_changed_pairs, pair_changes, reject_changes
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.data.tables import schemas
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


def lines_of(rows: pa.Table) -> list[tuple[str, int]]:
    return list(zip(rows["source"].to_pylist(), rows["line"].to_pylist(), strict=True))


def flipped(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def test_added_removed_and_flipped_pairs_are_told_apart(tmp_path: Path) -> None:
    rows = [plain_row(number) for number in range(12)]
    write_lines(tmp_path / "annotations" / "a.jsonl", rows)
    before = padded(tmp_path)
    write_lines(tmp_path / "annotations" / "a.jsonl", [*rows[:3], flipped(rows[3]), *rows[5:]])
    write_lines(tmp_path / "annotations" / "b.jsonl", [plain_row(50), rows[0], plain_row(51)])
    found = pair_changes(before, padded(tmp_path))
    assert found.counts() == {"added": 2, "removed": 1, "flipped": 1, "moved": 0}
    assert lines_of(found.added) == [("b.jsonl", 1), ("b.jsonl", 3)]
    assert lines_of(found.removed) == [("a.jsonl", 5)]
    assert lines_of(found.flipped) == [("a.jsonl", 4)]


def test_pairs_in_another_file_or_on_another_line_are_the_same(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", 0, 12)
    before = padded(tmp_path)
    write_lines(tmp_path / "annotations" / "z.jsonl", [plain_row(number) for number in reversed(range(12))])
    (tmp_path / "annotations" / "a.jsonl").unlink()
    assert not any(pair_changes(before, padded(tmp_path)).counts().values())


def test_pairs_that_change_their_split_have_moved(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", 0, 40)
    before, now = padded(tmp_path, split_seed="one"), padded(tmp_path, split_seed="two")
    found = pair_changes(before, now)
    splits = [
        {row["line"]: folder for folder in ("train", "validation", "test") for row in read(snapshot, folder)}
        for snapshot in (before, now)
    ]
    moved = [line for line in range(1, 41) if splits[0][line] != splits[1][line]]
    assert [line for _, line in lines_of(found.moved)] == moved
    assert found.counts() == {"added": 0, "removed": 0, "flipped": 0, "moved": len(moved)}
    assert moved
    assert found.moved["folder_before"].to_pylist() == [splits[0][line] for line in moved]
    assert found.moved["folder"].to_pylist() == [splits[1][line] for line in moved]


def read(snapshot: Snapshot, folder: str) -> list[dict[str, Any]]:
    return read_table(snapshot.paths(folder), schemas.PADDED, ["line"]).to_pylist()


def rejects(*rows: tuple[int, str, str]) -> pa.Table:
    """Rejects of one file, each from a line, a hash and a reason."""
    named = [{"source": "a", "line": line, "line_sha256": sha256, "reason": why} for line, sha256, why in rows]
    return pa.Table.from_pylist([{"stage": "", "detail": "", **row} for row in named], schema=schemas.REJECTS)


def test_lines_move_between_reasons() -> None:
    before = rejects((1, "x", "not_json"), (2, "y", "tie"), (3, "z", "too_long"))
    now = rejects((2, "y", "tie"), (7, "z", "duplicate"), (8, "w", "tie"))
    assert reject_changes(before, now) == {("not_json", ""): 1, ("too_long", "duplicate"): 1, ("", "tie"): 1}
    assert reject_changes(before, before) == {}


def test_equal_lines_count_as_often_as_they_occur() -> None:
    before = rejects((1, "x", "tie"), (2, "x", "tie"), (3, "x", "tie"))
    now = rejects((1, "x", "tie"), (2, "x", "too_long"))
    assert reject_changes(before, now) == {("tie", "too_long"): 1, ("tie", ""): 1}


def test_the_reasons_of_one_line_are_one_change() -> None:
    before = rejects((1, "x", "too_long"), (1, "x", "duplicate"))
    now = rejects((1, "x", "duplicate"))
    assert reject_changes(before, now) == {("duplicate, too_long", "duplicate"): 1}
