"""The benchmarks run, and compare what they say they compare. They take minutes: `pytest -m soak`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.soak
def test_both_trainers_have_the_same_losses_on_the_sample() -> None:
    command = [sys.executable, str(BENCHMARKS / "training.py"), "--steps", "3", "--threads", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["steps"] == 3
    assert found["packing"] == "shared"
    assert found["largest_loss_difference"] < 2e-5
    assert found["losses_every_tenth"]["ours"] != []
    assert 0 < found["ratio_per_step"]["least"] <= found["ratio_per_step"]["median"] <= found["ratio_per_step"]["most"]
    assert found["saved_by_sharing"] > 0
    assert found["peak_memory_mib"].keys() == {"ours", "trl"}
