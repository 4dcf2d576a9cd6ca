"""Stopping a training anywhere and going on: equal to the bit, or said to be otherwise."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from toy_pairs import learnable_pairs
from training_jobs import finish, kill_inside_a_save, said, start_job

from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.loop.checkpoint import Checkpoints
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.packing.checks import read_splits
from rm_assets.training.packing.planning import epoch_steps
from rm_assets.training.run import train_and_publish

FORTY_STEPS = {"epochs": 4, "batch_pairs": 4, "learning_rate": 1e-3, "micro_batch_tokens": 40}


@pytest.fixture
def forty_steps(make_job):
    """A function that makes a job of 4 epochs of 10 steps, equal to any other but for its name and saving."""

    def make(name, **settings):
        splits = {"train": learnable_pairs(38), "validation": learnable_pairs(5, first=50)}
        return make_job(name, splits=splits, settings=FORTY_STEPS | settings)

    return make


def checkpoints(job):
    return sorted(path.name for path in (Path(job.output_directory) / "checkpoints").glob("step-*"))


def exact_metrics(job):
    """The curves, without what depends on the clock."""
    lines = (Path(job.output_directory) / "metrics.jsonl").read_text().splitlines()
    clock = {"pairs_per_second", "seconds_left"}
    return [{name: value for name, value in json.loads(line).items() if name not in clock} for line in lines]


def killed(job, step, saved=0):
    process = start_job(job, step, saved)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return job


@pytest.mark.parametrize("settings", [{}, pytest.param({"lora_rank": 2}, marks=pytest.mark.soak)])
def test_a_training_that_was_killed_twice_ends_bit_equal_in_weights_and_curves(forty_steps, settings):
    whole = forty_steps("whole", **settings)
    expected = finish(whole)
    job = forty_steps("killed", checkpoint_every_steps=3, **settings)
    killed(job, 8, saved=6)
    assert [name[:13] for name in checkpoints(job)] == ["step-00000003", "step-00000006"]
    killed(job, 31, saved=30)
    assert finish(job) == expected
    assert exact_metrics(job) == exact_metrics(whole)
    told = said(job)
    assert "resumes after step 6/40" in told
    assert "resumes after step 30/40" in told
    metrics = json.loads((Path(job.output_directory) / "manifest.json").read_text())["metrics"]
    others = json.loads((Path(whole.output_directory) / "manifest.json").read_text())["metrics"]
    for name in ("train_loss", "saved_by_sharing", "padding", "num_steps", "validation_loss"):
        assert metrics[name] == others[name], name


def test_a_training_killed_inside_a_save_goes_on_from_the_one_before(forty_steps):
    expected = finish(forty_steps("whole"))
    job = forty_steps("killed", checkpoint_every_steps=1)
    killed(job, 5)
    generator = random.Random(0)
    while not kill_inside_a_save(job, generator.uniform(0, 0.003)):
        assert not (Path(job.output_directory) / "manifest.json").exists(), "no kill hit a save"
    assert finish(job) == expected


def test_sigterm_and_sigint_save_at_the_next_step_and_leave(forty_steps):
    endless = forty_steps("endless", epochs=100_000)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = checkpoints(endless)
        process = start_job(endless)
        metrics = Path(endless.output_directory) / "metrics.jsonl"
        size = metrics.stat().st_size if before else 0
        while not metrics.exists() or metrics.stat().st_size <= size:
            assert process.is_alive()
            time.sleep(0.01)
        os.kill(process.pid, number)
        process.join(10)
        assert process.exitcode == code
        [*_, newest] = checkpoints(endless)
        assert newest not in before
        assert f"stops after step {int(newest[5:13])}/1000000, which is saved" in said(endless)


def test_a_step_that_is_no_number_leaves_the_last_checkpoint_good(make_job, tmp_path):
    settings = {"batch_pairs": 4, "micro_batch_tokens": 1000, "checkpoint_every_steps": 1, "loss": "scaled"}
    plain = make_job("plain", splits={"train": learnable_pairs(16)}, settings=settings)
    [*_, of_step_3, _] = epoch_steps(read_splits(plain, tmp_path)["train"], seed=0, epoch=1, batch_pairs=4)
    # each margin is a float32, and so is the loss that it multiplies, but not its gradient
    pairs = [(*pair, 3e38 if number in of_step_3 else 0.0) for number, pair in enumerate(learnable_pairs(16))]
    job = make_job("spoilt", splits={"train": pairs}, settings=settings)
    for attempt in (1, 2):
        with pytest.raises(TrainingError, match=r"norm nan at step 3, stopped before its update") as caught:
            train_and_publish(job, SINGLE_PROCESS, TrainingLog())
        named = set(re.findall(r"(pair\d+) \(", str(caught.value)))
        assert len(named) == 3 and named < {f"pair{number}" for number in of_step_3}
        told = []
        position, _ = Checkpoints(Path(job.output_directory), job.key, SINGLE_PROCESS, told.append).latest()
        assert (attempt, position.step, told) == (attempt, 2, [])
    assert not (Path(job.output_directory) / "manifest.json").exists()
