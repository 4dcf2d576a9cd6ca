"""The long kill loops: `pytest -m soak`. Each has a short one of its kind in test_resume.py.

The seed is drawn and printed; SOAK_SEED repeats one.
"""

import os
import random
import secrets
import signal
import subprocess
import time
from pathlib import Path

import pytest
from job_processes import MODULE, processes_with, wait_until
from toy_pairs import learnable_pairs
from training_jobs import finish, kill_inside_a_save, start_job, trained

from .test_resume import FORTY_STEPS, exact_metrics

pytestmark = pytest.mark.soak
KILLS_INSIDE_SAVES = 50
KILLS_PER_JOB = 5


@pytest.fixture
def generator(capfd):
    seed = int(os.environ.get("SOAK_SEED", secrets.randbelow(2**32)))
    with capfd.disabled():
        print(f"\nSOAK_SEED={seed}", flush=True)
    return random.Random(seed)


@pytest.fixture
def forty_steps(make_job):
    def make(name, **settings):
        splits = {"train": learnable_pairs(38), "validation": learnable_pairs(5, first=50)}
        return make_job(name, splits=splits, settings=FORTY_STEPS | settings)

    return make


def test_a_kill_at_every_step_of_forty_changes_no_bit(forty_steps):
    whole = forty_steps("whole")
    expected = finish(whole), exact_metrics(whole)
    for step in range(1, 41):
        job = forty_steps(f"killed-{step}", checkpoint_every_steps=1 + step % 4)
        process = start_job(job, kill_after=step)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert (finish(job), exact_metrics(job)) == expected, f"killed after step {step}"


def test_kills_at_random_moments_inside_a_save_change_no_bit(forty_steps, generator, capfd):
    whole = forty_steps("whole")
    expected = finish(whole), exact_metrics(whole)
    hits = attempts = 0
    longest = 0.02  # seconds; kept where some kills come too late, so that every moment of a save is hit
    while hits < KILLS_INSIDE_SAVES:
        job = forty_steps(f"killed-{attempts}", checkpoint_every_steps=1)
        own = 0
        while own < KILLS_PER_JOB and not (Path(job.output_directory) / "manifest.json").exists():
            attempts += 1
            is_hit = kill_inside_a_save(job, generator.uniform(0, longest), first=generator.randrange(1, 6))
            longest *= 1.25 if is_hit else 0.6
            own += is_hit
        hits += own
        assert (finish(job), exact_metrics(job)) == expected
    with capfd.disabled():
        print(f"{hits} kills inside a save, in {attempts} attempts", flush=True)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_two_processes_killed_at_random_moments_end_bit_equal_and_with_the_losses_of_one(
    forty_steps, tmp_path, generator, lora_rank
):
    def run(job, seconds=None):
        """Run a job of two processes to its end, or for some seconds after its first new checkpoint."""
        path = tmp_path / f"{Path(job.output_directory).parent.name}.json"
        path.write_text(job.model_dump_json())
        before = set((Path(job.output_directory) / "checkpoints").glob("step-*"))
        process = subprocess.Popen([*MODULE, str(path)], stdout=subprocess.DEVNULL, start_new_session=True)
        if seconds is not None:
            wait_until(lambda: set((Path(job.output_directory) / "checkpoints").glob("step-*")) - before, 120)
            time.sleep(seconds)
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        wait_until(lambda: not processes_with(str(path)), 10)
        return code

    settings = {"epochs": 8, "lora_rank": lora_rank}
    one = forty_steps("one", **settings)
    finish(one)
    whole = forty_steps("whole", num_processes=2, **settings)
    assert run(whole) == 0
    expected = trained(whole), exact_metrics(whole)
    losses, others = ([line["loss"] for line in exact_metrics(job) if "loss" in line] for job in (whole, one))
    assert losses == pytest.approx(others, abs=1e-5)
    assert losses[:10] == pytest.approx(others[:10], abs=1e-6)

    job = forty_steps("killed", num_processes=2, checkpoint_every_steps=1, **settings)
    for _ in range(3):
        assert run(job, generator.uniform(0, 0.3)) == -signal.SIGKILL
    assert run(job) == 0
    assert (trained(job), exact_metrics(job)) == expected
