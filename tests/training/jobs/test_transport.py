"""Jobs on another machine: what is sent, what comes back, and a training that goes on there after it was stopped."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from s3 import s3_server

from rm_assets.data.storage.files import file_sizes, resolve_path
from rm_assets.training.jobs.transport import read_job, sent_job


def checkpoints(directory):
    """The names of the checkpoints in a job's output, which may be in a storage."""
    names = [name.split("/") for name in file_sizes(directory)]
    return {name[1] for name in names if name[0] == "checkpoints" and name[-1] == "manifest.json"}


def stopped_there(uri):
    """What the other machine does; SIGTERM comes once a new checkpoint is in the storage."""
    known = checkpoints(resolve_path(uri).parent / "output")
    process = subprocess.Popen(
        [sys.executable, "-m", "rm_assets.training", uri],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 90
    while not checkpoints(resolve_path(uri).parent / "output") - known:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=90)
    return process.returncode, told


def test_a_training_on_a_machine_that_shares_nothing_but_s3_is_stopped_and_goes_on(make_job):
    job = make_job("far", settings={"epochs": 100_000, "checkpoint_every_steps": 20})
    output = Path(job.output_directory)
    with s3_server() as bucket:
        storage = resolve_path(f"{bucket}/team")
        with sent_job(job, storage, "name") as sent:
            home = str(sent.place.parent)
            assert str(sent.place.parent.parent) == f"{bucket}/team/.jobs/name"
            described = json.loads(sent.place.read_bytes())
            paths = [described["model"], described["tokenizer"], *described["splits"]["train"]]
            assert all(path.startswith(f"{home}/inputs/") for path in paths)
            code, told = stopped_there(str(sent.place))
            assert code == 143, told
        assert file_sizes(storage) == {}
        before = checkpoints(output)
        assert before != set()

        with sent_job(job, storage, "name") as sent:
            code, told = stopped_there(str(sent.place))
        assert code == 143, told
        last = max(int(name.split("-")[1]) for name in before)
        assert f"resumes after step {last}/" in told
        assert checkpoints(output) - before != set()


def test_what_an_attempt_left_in_the_storage_when_its_run_was_killed_comes_back_first(make_job, tmp_path):
    job = make_job("left")
    attempts = tmp_path / "shared" / ".jobs" / "name"
    names = ["step-00000001-a", "step-00000002-b"]
    for attempt, name in zip(["1" * 32, "2" * 32], names, strict=True):
        checkpoint = attempts / attempt / "output" / "checkpoints" / name
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")
    (attempts / "notes").mkdir()
    with sent_job(job, tmp_path / "shared", "name") as sent:
        assert set(attempts.iterdir()) == {sent.place.parent, attempts / "notes"}
        for name in names:
            assert (sent.output / "checkpoints" / name / "manifest.json").read_text() == "{}"
    for name in names:
        assert (Path(job.output_directory) / "checkpoints" / name / "manifest.json").read_text() == "{}"
    assert list((tmp_path / "shared" / ".jobs").rglob("*")) == [attempts, attempts / "notes"]


def test_an_attempt_that_another_one_ended_leaves_the_other_ones_files(make_job, tmp_path):
    first, second = make_job("first"), make_job("second")
    checkpoint = Path("checkpoints") / "step-00000001-a" / "manifest.json"
    with contextlib.ExitStack() as ended:
        sent = ended.enter_context(sent_job(first, tmp_path / "storage", "name"))
        (sent.output / checkpoint).parent.mkdir(parents=True)
        (sent.output / checkpoint).write_text("{}")
        with sent_job(second, tmp_path / "storage", "name") as other:
            ended.close()
            assert read_job(str(other.place)).output_directory == str(other.output)
            assert all(Path(name).is_file() for name in read_job(str(other.place)).splits["train"])
            assert (other.output / checkpoint).read_text() == "{}"
    assert (Path(second.output_directory) / checkpoint).read_text() == "{}"


ROTATING = """
import json, os, shutil, sys, time
from pathlib import Path

there = Path(os.environ["THERE"]) / "checkpoints"
here = Path(json.loads(Path(sys.argv[1]).read_text())["output_directory"]) / "checkpoints"

def write(name):
    (here / name).mkdir(parents=True)
    for file in ("a", "b"):
        (here / name / file).write_text(file)

def wait(reached):
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)

write("step-1")
wait((there / "step-1" / "a").is_file)
time.sleep(0.2)
(there / "step-1" / "b").rmdir()
wait((there / "step-1" / "b").is_file)
write("step-2")
wait((there / "step-2" / "a").is_file)
shutil.rmtree(here / "step-2")
wait(lambda: not (there / "step-2").exists())
"""
RECEIVE = (
    "import sys; from rm_assets.training.jobs import receiving; receiving.SECONDS_BETWEEN_UPLOADS = 0.3; "
    "receiving.MODULE = sys.argv[2]; sys.exit(receiving.run_sent_job(sys.argv[1]))"
)
FAILING = """
import json, sys
from pathlib import Path

output = Path(json.loads(Path(sys.argv[1]).read_text())["output_directory"])
(output / "error.txt").write_text("no pairs")
sys.exit(1)
"""


def receive(place, module, directory, **environment):
    """What the other machine does, with a module of this directory in place of the training."""
    return subprocess.run(
        [sys.executable, "-c", RECEIVE, str(place), module],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{directory}:{Path.cwd()}"} | environment,
        timeout=90,
        check=False,
    )


def test_a_job_that_fails_brings_its_reason(make_job, tmp_path):
    job = make_job("failed")
    (tmp_path / "failing.py").write_text(FAILING)
    with s3_server() as bucket, sent_job(job, resolve_path(f"{bucket}/team"), "name") as sent:
        run = receive(sent.place, "failing", tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    assert (Path(job.output_directory) / "error.txt").read_text() == "no pairs"


def test_a_checkpoint_that_cannot_be_uploaded_is_tried_again_and_removed_once_it_is_old(make_job, tmp_path):
    job = make_job("unreached")
    (tmp_path / "rotating.py").write_text(ROTATING)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    checkpoints_there = Path(job.output_directory) / "checkpoints"
    for name in ("step-1", "step-2"):
        (checkpoints_there / name / "b").mkdir(parents=True)  # where the file b cannot be written
    run = receive(tmp_path / "job.json", "rotating", tmp_path, THERE=job.output_directory)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "a checkpoint is not uploaded yet: " in run.stdout
    assert sorted(path.name for path in (checkpoints_there / "step-1").iterdir()) == ["a", "b"]
    assert not (checkpoints_there / "step-2").exists()


def test_what_lies_in_a_shared_directory_is_left_where_it_is(make_job, tmp_path):
    job = make_job("near")  # splits and output below tmp_path, model and tokenizer elsewhere
    with sent_job(job, tmp_path, "name") as sent:
        moved = read_job(str(sent.place))
        assert (moved.splits, moved.output_directory) == (job.splits, job.output_directory)
        for before, after in ((job.model, moved.model), (job.tokenizer, moved.tokenizer)):
            assert Path(after).is_relative_to(sent.place.parent / "inputs")
            assert sorted(path.name for path in Path(after).iterdir()) == sorted(
                path.name for path in Path(before).iterdir()
            )
    assert list((tmp_path / ".jobs").iterdir()) == []


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "s3://bucket/model"])
def test_a_name_on_the_hub_or_a_uri_travels_as_it_is(make_job, tmp_path, name):
    job = make_job("hub", model=name, toy=False)
    with sent_job(job, tmp_path / "storage", "name") as sent:
        assert read_job(str(sent.place)).model == name
