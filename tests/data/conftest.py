"""Settings that keep a test in its own directory."""

from pathlib import Path

import pytest

from rm_assets.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings that read `annotations/` and write `storage/` in a directory of the test's own."""
    (tmp_path / "annotations").mkdir()
    return Settings(annotations=str(tmp_path / "annotations"), storage=str(tmp_path / "storage"), num_workers=1)
