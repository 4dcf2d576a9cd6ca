"""A run whose training is killed, and what the next ones make of it."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import polite_rows, write_lines

from rm_assets.data.storage.retention import referenced_snapshots
from rm_assets.data.tables.schemas import Stage

SETTINGS = {"epochs": 6, "batch_pairs": 4, "learning_rate": 1e-3, "checkpoint_every_steps": 5}
SPLITS = {"test_fraction": 0.3, "validation_fraction": 0.2}
SELECTION = "*reward_model"


def kill_training_with_a_checkpoint(home: Path) -> None:
    """SIGKILL the one training below a directory once it has a checkpoint."""
    while not list((home / ".training").glob("*/checkpoints/step-*")):
        time.sleep(0.01)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(home / ".training").encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


def models(home: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in home.glob("*/manifest.json")}


def latest(directory: Path) -> str:
    return str(json.loads((directory / "latest.json").read_text())["snapshot"])


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the training by /proc")
def test_a_killed_training_is_finished_on_its_own_pairs_before_todays_and_is_not_lost_to_other_settings(
    tmp_path: Path, run_graph, monkeypatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_lines(tmp_path / "annotations" / "a.jsonl", polite_rows(60))
    storage, home = tmp_path / "storage", tmp_path / "storage" / "reward_model"
    settings = {"annotations": str(tmp_path / "annotations"), "storage": str(storage), **SETTINGS, **SPLITS}
    killer = threading.Thread(target=kill_training_with_a_checkpoint, args=(home,), daemon=True)
    killer.start()
    result = run_graph(SELECTION, **settings)
    killer.join(10)
    assert not killer.is_alive(), "the run ended without a checkpoint"
    assert "it was ended by SIGKILL" in str(result.get_step_failure_events()[0])
    [description] = [json.loads(path.read_text()) for path in (home / ".training").glob("*.json")]
    before = latest(storage / "padded_pairs")
    assert description["data_snapshot"] == before
    assert (Stage.PADDED, before) in referenced_snapshots(storage)

    # another training, which leaves this one where it is
    assert run_graph(SELECTION, **{**settings, "epochs": 1}).success
    [other] = models(home)
    stopped = home / ".training" / description["key"][:16]
    saved = max(int(path.name[5:13]) for path in stopped.glob("checkpoints/step-*"))
    assert saved >= 5

    write_lines(tmp_path / "annotations" / "b.jsonl", polite_rows(90)[60:])
    assert run_graph(SELECTION, **{**settings, "checkpoint_every_steps": 0, "keep_snapshots": 5}).success
    now = latest(storage / "padded_pairs")
    assert now != before
    found = models(home)
    finished, todays = stopped.name, latest(home)
    assert set(found) == {other, finished, todays}
    assert (found[finished]["data_snapshot"], found[todays]["data_snapshot"]) == (before, now)
    assert found[finished]["key"] == description["key"]
    assert list((home / ".training").iterdir()) == []
    assert list(storage.rglob("checkpoints")) == []
