"""The lengths of a snapshot's pairs: measured once, kept beside its data, and removed with it."""

from pathlib import Path

import pytest
from support import plain_row, run_stages, write_lines

from rm_assets.data.storage.ownership import LENGTHS
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.results import lengths
from rm_assets.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    annotations = write_lines(tmp_path / "annotations.jsonl", [plain_row(number) for number in range(30)])
    return Settings(annotations=str(annotations), storage=str(tmp_path / "storage"), keep_snapshots=1)


def test_lengths_of_an_unchanged_snapshot_are_not_measured_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lengths.lengths_metadata(run_stages(settings)[Stage.PADDED])
    assert first["median_length"] > 0
    with monkeypatch.context() as patched:
        for name in ("read_table", "length_histogram"):
            patched.setattr(lengths, name, lambda *_: pytest.fail("the lengths were measured again"))
        snapshot = run_stages(settings)[Stage.PADDED]
        assert lengths.lengths_metadata(snapshot) == first
    directory = snapshot.directory
    del snapshot  # and its pin
    write_lines(Path(settings.annotations_path), [plain_row(number) for number in range(31)])
    assert lengths.lengths_metadata(run_stages(settings)[Stage.PADDED]) != first
    assert not directory.exists()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"median": 1.0, "percentiles": {}, "png": "?"}'])
def test_damaged_lengths_are_measured_again(settings: Settings, content: bytes) -> None:
    snapshot = run_stages(settings)[Stage.PADDED]
    first = lengths.lengths_metadata(snapshot)
    (snapshot.directory / LENGTHS).write_bytes(content)
    assert lengths.lengths_metadata(snapshot) == first
    assert (snapshot.directory / LENGTHS).read_bytes() != content
