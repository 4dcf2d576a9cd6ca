"""A training whose disk is full, or whose directory somebody moves away, ends with a reason, and the next one heals."""

import subprocess
import threading
import time
from pathlib import Path

import pytest
from support import small_disk
from training_jobs import trained

from rm_assets.training.__main__ import run_job
from rm_assets.training.jobs.entry import execute_job
from rm_assets.training.jobs.result import ERROR, METRICS

SETTINGS = {"epochs": 20}


@pytest.fixture(scope="module")
def undisturbed(job_in, tmp_path_factory):
    """The hash of the weights of a training that nothing happened to."""
    job = job_in(tmp_path_factory.mktemp("undisturbed"), settings=SETTINGS)
    assert execute_job(job, run_job) == 0
    return trained(job)


def test_a_disk_that_fills_up_at_a_checkpoint_is_told_and_the_next_run_goes_on(make_job, undisturbed, tmp_path, capfd):
    disk = tmp_path / "small"
    with small_disk(disk, kilobytes=200):
        settings = SETTINGS | {"checkpoint_every_steps": 5}
        job = make_job("full", settings=settings, output_directory=str(disk / "output"))
        assert execute_job(job, run_job) == 1
        told = capfd.readouterr().err.splitlines()[-1]
        assert told.startswith("error: ") and "No space left on device" in told
        assert (disk / "output" / ERROR).read_text() == told.removeprefix("error: ") + "\n"
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        assert execute_job(job, run_job) == 0
        assert "resumes after step 5/60, from its checkpoint" in capfd.readouterr().out
        assert trained(job) == undisturbed


def test_an_output_directory_that_is_moved_away_is_told_and_the_next_run_begins_anew(make_job, undisturbed, capfd):
    job = make_job("moved", settings=SETTINGS)
    output = Path(job.output_directory)

    def move_away():
        while not (output / METRICS).exists():
            time.sleep(0.001)
        output.rename(output.with_name("elsewhere"))

    mover = threading.Thread(target=move_away)
    mover.start()
    assert execute_job(job, run_job) == 1
    mover.join()
    reason = f"FileNotFoundError: [Errno 2] No such file or directory: '{output / METRICS}'"
    assert capfd.readouterr().err.splitlines()[-1] == f"error: {reason}"
    assert not output.exists()
    assert execute_job(job, run_job) == 0
    assert "resumes after" not in capfd.readouterr().out
    assert trained(job) == undisturbed
