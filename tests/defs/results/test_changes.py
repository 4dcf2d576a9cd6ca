"""What a refresh shows of the changes since the previous snapshot."""

from pathlib import Path
from typing import Any

import pytest
from support import plain_row, run_stages, silent, write_lines

from rm_assets.data.stages.rejects import publish_rejects
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.results.changes import pair_changes_metadata, reject_changes_metadata
from rm_assets.settings import Settings

Refresh = tuple[Snapshot, Snapshot]


def refresh(directory: Path, lines: list[Any]) -> Refresh:
    """padded_pairs and rejected_annotations of these lines."""
    write_lines(directory / "annotations" / "a.jsonl", lines)
    settings = Settings(annotations=str(directory / "annotations"), storage=str(directory / "storage"))
    stages = run_stages(settings)
    return stages[Stage.PADDED], publish_rejects(settings, stages, silent)


@pytest.fixture
def refreshes(tmp_path: Path) -> tuple[Refresh, Refresh]:
    """A mended line, a pair more and a pair less."""
    rows = [plain_row(number) for number in range(20)]
    return refresh(tmp_path, [b"{broken", *rows]), refresh(tmp_path, [plain_row(30), *rows[1:], plain_row(31)])


def records(metadata: Any) -> list[dict[str, Any]]:
    return [dict(record.data) for record in metadata.records]


def test_changed_pairs_and_rejects_are_counted(refreshes: tuple[Refresh, Refresh]) -> None:
    before, now = refreshes
    pairs = pair_changes_metadata(before[0], now[0])
    assert pairs["compared_with"] == before[0].name
    counts = {row["change"]: row["pairs"] for row in records(pairs["changed_pairs"])}
    assert counts == {"added": 2, "removed": 1, "flipped": 0, "moved": 0}
    rejects = reject_changes_metadata(before[1], now[1])
    assert records(rejects["changed_rejects"]) == [{"before": "not_json", "now": "not rejected", "lines": 1}]


def test_nothing_is_shown_of_the_first_and_of_an_unchanged_refresh(refreshes: tuple[Refresh, Refresh]) -> None:
    _, (pairs, rejects) = refreshes
    assert pair_changes_metadata(None, pairs) == reject_changes_metadata(rejects, rejects) == {}


def test_a_damaged_snapshot_before_fails_no_refresh(refreshes: tuple[Refresh, Refresh]) -> None:
    before, now = refreshes
    for path in before[0].paths():
        path.write_bytes(path.read_bytes()[:-10])
    assert "cannot be read" in pair_changes_metadata(before[0], now[0])["compared_with"]
