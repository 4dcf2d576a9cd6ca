"""The checks of reward_model."""

from pathlib import Path

import dagster as dg
import pytest

from rm_assets.defs.results.models import _steps
from rm_assets.defs.snapshots.models import ModelSnapshot


@pytest.mark.parametrize(("num_steps", "passed"), [(1, False), (29, False), (30, True), (3000, True)])
def test_a_training_of_few_steps_is_a_warning(num_steps: int, passed: bool) -> None:
    manifest = {"key": "key", "metrics": {"num_steps": num_steps}}
    check = _steps(ModelSnapshot(directory=Path("model"), manifest=manifest, trained_now=True))
    assert (check.passed, check.severity) == (passed, dg.AssetCheckSeverity.WARN)
    assert ("lower batch_pairs" in (check.description or "")) is not passed
