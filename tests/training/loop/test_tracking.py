import sys
from pathlib import Path

import pytest

from rm_assets.settings import TrainingSettings
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.loop.tracking import open_tracker
from rm_assets.training.loop.training_log import StepFigures, TrainingLog


def test_the_curves_reach_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track = open_tracker(TrainingSettings(tracking="tensorboard"), tmp_path, "job", {})
    progress = TrainingLog(tmp_path / "metrics.jsonl", lambda text: None, track)
    for step in (1, 2):
        progress.step(StepFigures(step, 1, 0.5 / step, 0.75, 1e-3, 2.0), num_steps=2, num_pairs_done=4 * step)
    progress.validation(2, 0.25, 1.0, 7)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert [(event.step, event.value) for event in found.Scalars("validation_loss")] == [(2, 0.25)]


def test_the_curves_reach_weights_and_biases(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    track = open_tracker(TrainingSettings(tracking="wandb"), tmp_path, "job", {"epochs": 1})
    track({"step": 1, "loss": 0.5})
    track({"step": 2, "loss": 0.25})
    import wandb

    assert wandb.run.config["epochs"] == 1
    assert wandb.run.summary["loss"] == 0.5  # a step is told when the next one begins
    wandb.finish()
    assert list(Path(tmp_path).rglob("*.wandb"))


@pytest.mark.parametrize(("tracking", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, tracking, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TrainingError, match=rf"pip install 'rm_assets\[{tracking}\]'"):
        open_tracker(TrainingSettings(tracking=tracking), tmp_path, "job", {})


def test_without_tracking_nothing_is_written(tmp_path):
    open_tracker(TrainingSettings(), tmp_path, "job", {})({"step": 1, "loss": 0.5})
    assert list(tmp_path.iterdir()) == []
