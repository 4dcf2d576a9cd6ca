"""A real run whose training is killed: what the next one makes of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import polite_rows, write_lines

from rm_assets.data.publication import pinned_snapshots
from rm_assets.data.records import Stage

SETTINGS = {"epochs": 20, "batch_pairs": 4, "learning_rate": 1e-3, "checkpoint_every_steps": 5}
SPLITS = {"test_fraction": 0.3, "validation_fraction": 0.2}


def environment(directory: Path, **settings: object) -> dict[str, str]:
    given = {
        "annotations": directory / "annotations",
        "storage": directory / "storage",
        **SETTINGS,
        **SPLITS,
        **settings,
    }
    return {
        **os.environ,
        **{f"RM_{name.upper()}": str(value) for name, value in given.items()},
        "DAGSTER_HOME": str(directory),
    }


def command() -> list[str]:
    materialize = ["from dagster._cli import main; main()", "asset", "materialize", "-m", "rm_assets.definitions"]
    return [sys.executable, "-c", *materialize, "--select", "*"]


def run(directory: Path, **settings: object) -> str:
    done = subprocess.run(
        command(), env=environment(directory, **settings), cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def killed_run(directory: Path, **settings: object) -> Path:
    """Kill a run once its training has a checkpoint, and the training with it; the directory of the training."""
    log = directory / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command(), env=environment(directory, **settings), cwd=directory, stdout=stream, stderr=stream
        )
    try:
        deadline = time.monotonic() + 120
        while not (found := list((directory / "storage" / "reward_model" / ".training").glob("*/checkpoints/step-*"))):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(1)  # the training notices within a moment that its launcher is gone
    return found[0].parents[1]


def models(directory: Path) -> dict[str, dict[str, object]]:
    paths = (directory / "storage" / "reward_model").glob("*/manifest.json")
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def latest(directory: Path, asset: str) -> str:
    return str(json.loads((directory / "storage" / asset / "latest.json").read_text())["snapshot"])


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="kills processes")
def test_a_killed_training_is_finished_on_its_own_pairs_and_then_todays_are_trained_on(tmp_path: Path) -> None:
    write_lines(tmp_path / "annotations" / "a.jsonl", polite_rows(60))
    training = killed_run(tmp_path)
    description = json.loads(training.with_suffix(".json").read_text())
    before = latest(tmp_path, "padded_pairs")
    assert description["data_snapshot"] == before
    assert (Stage.PADDED, before) in pinned_snapshots(tmp_path / "storage")

    write_lines(tmp_path / "annotations" / "b.jsonl", polite_rows(90)[60:])
    told = run(tmp_path, keep_snapshots=2)
    assert f"a training on padded_pairs {before} was stopped" in told
    assert "goes on after step " in told
    now = latest(tmp_path, "padded_pairs")
    assert now != before
    found = models(tmp_path)
    assert sorted(str(manifest["data_snapshot"]) for manifest in found.values()) == sorted([before, now])
    assert found[latest(tmp_path, "reward_model")]["data_snapshot"] == now
    assert found[training.name]["key"] == description["key"]
    assert list(training.parent.iterdir()) == []
    assert list((tmp_path / "storage").rglob("checkpoints")) == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="kills processes")
def test_other_settings_begin_anew_and_leave_the_stopped_training_where_it_is(tmp_path: Path) -> None:
    write_lines(tmp_path / "annotations" / "a.jsonl", polite_rows(60))
    training = killed_run(tmp_path)
    told = run(tmp_path, epochs=1)
    assert "goes on after step " not in told
    assert len(models(tmp_path)) == 1
    assert list(training.glob("checkpoints/step-*"))
    assert "goes on after step " in run(tmp_path, checkpoint_every_steps=7, tracking="none")
    assert training.name in models(tmp_path)
