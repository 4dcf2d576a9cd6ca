"""The job as users run it: in processes of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster_pipes
import pytest
import torch
from job_processes import MODULE, processes_with, wait_until
from toy_pairs import learnable_pairs

from rm_assets.training.__main__ import main, run_job
from rm_assets.training.jobs.entry import execute_job
from rm_assets.training.jobs.result import read_result
from rm_assets.training.model.reward_model import build_model
from rm_assets.training.processes.children import free_port, use_expandable_segments

NO_DAGSTER = """
import runpy, sys
sys.modules["dagster"] = sys.modules["dagster_pipes"] = None  # importing either raises ImportError
sys.argv = ["rm_assets.training", sys.argv[1]]
runpy.run_module("rm_assets.training", run_name="__main__")
"""
FOR_EVER = {"epochs": 100_000, "batch_pairs": 4}


def test_memory_of_a_gpu_grows_in_segments_unless_it_was_set_up_otherwise(monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "environ", environment := dict(os.environ))
    assert main(["no such job.json"]) == 2
    assert environment["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        given = {name: "max_split_size_mb:512"}
        use_expandable_segments(given)
        assert given == {name: "max_split_size_mb:512"}


@pytest.fixture
def write_job(make_job, tmp_path):
    """A function that writes the file of a job; returns its path and the job."""

    def write(name, **changes):
        job = make_job(name, **changes)
        path = tmp_path / f"{name}.json"
        path.write_text(job.model_dump_json())
        return path, job

    return write


def run(command, path, **environment):
    return subprocess.run(
        [*command, str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def pipes_environment(tmp_path):
    """What a launcher under Dagster Pipes passes, and the file that receives the messages."""
    context = dict.fromkeys(dagster_pipes.PipesContextData.__annotations__)
    context |= {"run_id": "run", "job_name": "job", "retry_number": 0, "extras": {}}
    (tmp_path / "context").write_text(json.dumps(context))
    environment = {
        "DAGSTER_PIPES_CONTEXT": dagster_pipes.encode_param({"path": str(tmp_path / "context")}),
        "DAGSTER_PIPES_MESSAGES": dagster_pipes.encode_param({"path": str(tmp_path / "messages")}),
    }
    return environment, tmp_path / "messages"


def start(path, job, begun=None, **options):
    """A job in a process group of its own, once its first step is done, or what `begun` says is so."""
    process = subprocess.Popen(
        [*MODULE, str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,
    )
    begun = begun or (Path(job.output_directory) / "metrics.jsonl").exists
    wait_until(lambda: process.poll() is not None or begun(), 60)
    assert process.poll() is None, process.stderr.read().decode()
    return process


def test_two_processes_give_the_losses_of_one_without_dagster(write_job, tmp_path, metrics_of):
    # steps of 3, 3 and 1 pairs: shares of 2 + 1, 2 + 1 and 1 + 0
    changes = {"splits": {"train": learnable_pairs(7), "validation": learnable_pairs(3, first=50)}}
    settings = {"batch_pairs": 3, "micro_batch_tokens": 20, "epochs": 2, "learning_rate": 1e-3}
    one_path, one = write_job("one", settings=settings, **changes)
    two_path, two = write_job("two", settings=settings | {"num_processes": 2}, **changes)
    alone = run([sys.executable, "-c", NO_DAGSTER], one_path)
    assert alone.returncode == 0, alone.stderr
    environment, messages_file = pipes_environment(tmp_path)
    together = run(MODULE, two_path, **environment)
    assert together.returncode == 0, together.stderr

    (one_steps, one_validations), (two_steps, two_validations) = metrics_of(one), metrics_of(two)
    assert [line["step"] for line in two_steps] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "accuracy", "learning_rate"):
        assert [line[name] for line in two_steps] == pytest.approx([line[name] for line in one_steps], abs=1e-6)
    name = "validation_loss"
    assert [line[name] for line in two_validations] == pytest.approx([line[name] for line in one_validations], abs=1e-6)
    found = read_result(Path(two.output_directory), two.key)["metrics"]
    assert found["validation_loss"] == pytest.approx(two_validations[-1]["validation_loss"], abs=1e-6)

    assert "step 6/6 · loss " in alone.stdout
    assert together.stdout == ""  # Dagster prints what it is told
    lines = messages_file.read_bytes().splitlines()
    messages = [json.loads(line) for line in lines]
    assert [message["method"] for message in messages if message["method"] != "log"] == ["opened", "closed"]
    told = [message["params"]["message"] for message in messages if message["method"] == "log"]
    assert told[0] == "loading torch"
    assert sum(text.startswith("a toy with random weights") for text in told) == 1
    assert sum(text.startswith("step 6/6 · loss ") for text in told) == 1
    assert max(len(line) for line in lines[1:]) < 2048


def test_a_loss_that_is_no_number_fails_with_the_pairs_on_stderr_and_in_a_file(make_job, tmp_path, monkeypatch, capsys):
    environment, messages_file = pipes_environment(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dagster_pipes.PipesContext, "_instance", None)
    model = build_model(make_job())
    torch.nn.init.constant_(model.score.weight, 3e38)  # finite, or the model would be refused
    torch.nn.init.constant_(model.model.norm.weight, 1e10)
    model.save_pretrained(tmp_path / "spoilt")
    job = make_job(
        "nan",
        splits={"train": learnable_pairs(200)},
        settings={"batch_pairs": 200},
        model=str(tmp_path / "spoilt"),
        toy=False,
    )
    assert execute_job(job, run_job) == 1
    told = capsys.readouterr().err
    assert "error: loss is nan and gradient norm nan at step 1, stopped before its update" in told
    assert "Traceback" not in told
    output = Path(job.output_directory)
    told = (output / "error.txt").read_text()
    assert "of 200 pairs these have the largest losses: " in told
    assert len(set(re.findall(r"pair\d+ \(loss nan, margin 0\)", told))) == 3
    assert not (output / "manifest.json").exists()
    lines = messages_file.read_bytes().splitlines()
    assert json.loads(lines[-1])["method"] == "closed"
    assert max(len(line) for line in lines[1:]) < 2048


@pytest.mark.soak
def test_torchrun_started_by_hand_on_two_nodes_trains_one_model(write_job):
    path, job = write_job("nodes", settings={"num_nodes": 2})
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    nodes = [
        subprocess.Popen([*command, f"--node-rank={rank}", *MODULE[1:], str(path)], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    first, _ = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert "2 processes on cpu" in first
    assert read_result(Path(job.output_directory), job.key)["metrics"]["num_steps"] == 3


def test_a_file_that_is_no_job_is_a_usage_error(tmp_path):
    (tmp_path / "job.json").write_text('{"key": 1}')
    done = run(MODULE, tmp_path / "job.json")
    assert done.returncode == 2
    assert "cannot read the job" in done.stderr


@pytest.mark.parametrize(
    "address", ["job.json", "memory://none/job.json", "https://name:kingfisher@127.0.0.1:9/job.json"]
)
def test_a_job_that_cannot_be_read_is_one_line_without_credentials(tmp_path, address):
    (tmp_path / "job.json").write_bytes(b'{"key": "\xff"}')
    done = run(MODULE, tmp_path / address if address == "job.json" else address)
    assert done.returncode == 2
    assert re.fullmatch(r"error: cannot read the .*job .*\n", done.stderr)
    assert "kingfisher" not in done.stdout + done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_process_at_once_while_it_computes(number, code):
    # a thread of numpy's or arrow's may receive the signal, and the main thread is deep in a call of a minute
    work = """if True:
        import hashlib, pyarrow
        from rm_assets.training.processes.signals import Stop, listen_for_signals
        listen_for_signals(Stop())
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)
    """
    process = subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    assert process.wait(timeout=3) == code
    assert process.stderr.read().decode() == f"stopped by {number.name}\n"


def test_where_a_loop_will_save_the_first_signal_waits_for_it_and_a_second_one_does_not():
    work = """if True:
        import hashlib
        from rm_assets.training.processes.signals import Stop, listen_for_signals
        stop = Stop()
        listen_for_signals(stop)
        with stop.deferred():
            print("ready", flush=True)
            while not stop.number:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 10**4)
            print("saved after", stop.number, flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)
    """
    process = subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"saved after 2\n"
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=3) == 143


@pytest.mark.parametrize("to_group", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_signal_saves_and_ends_a_job_of_two_processes_and_leaves_none(write_job, to_group):
    path, job = write_job("stopped-two", settings=FOR_EVER | {"num_processes": 2})
    process = start(path, job)
    assert len(processes_with(str(path))) == 4  # this module, torchrun, two workers
    os.killpg(process.pid, signal.SIGINT) if to_group else process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == (130 if to_group else 143)
    wait_until(lambda: not processes_with(str(path)), 3)
    [saved] = (Path(job.output_directory) / "checkpoints").glob("step-*")
    names = ["manifest.json", "metrics.jsonl", "process-0.safetensors", "process-1.safetensors"]
    assert sorted(path.name for path in saved.iterdir()) == names


def test_a_second_signal_ends_a_job_of_two_processes_that_does_not_answer(write_job):
    path, job = write_job("deaf", settings=FOR_EVER | {"num_processes": 2})
    process = start(path, job)
    workers = sorted(processes_with(str(path)))[2:]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == 130
    wait_until(lambda: not processes_with(str(path)), 3)


@pytest.mark.parametrize(
    "which", ["torchrun", pytest.param("the first worker", marks=pytest.mark.soak), "the last worker"]
)
def test_a_kill_of_a_process_below_is_told_by_the_exit_code(write_job, which):
    """The launcher then says that memory may be why, and what to do."""
    path, job = write_job("starved", settings=FOR_EVER | {"num_processes": 2})
    process = start(path, job)
    _, torchrun, first, last = sorted(processes_with(str(path)))
    os.kill({"torchrun": torchrun, "the first worker": first, "the last worker": last}[which], signal.SIGKILL)
    assert process.wait(timeout=30) == 128 + signal.SIGKILL
    wait_until(lambda: not processes_with(str(path)), 3)


def test_no_process_outlives_the_launcher(write_job):
    path, job = write_job("orphaned", settings=FOR_EVER | {"num_processes": 2})
    read_end, write_end = os.pipe()
    environment = os.environ | {"RM_PARENT_FD": str(read_end)}
    # this module, torchrun, two workers: what ends them is made before they import torch
    process = start(path, job, lambda: len(processes_with(str(path))) == 4, pass_fds=[read_end], env=environment)
    os.close(read_end)
    os.close(write_end)  # as the kernel does when the launcher ends, however it ends
    assert process.wait(timeout=3) == -signal.SIGKILL
    wait_until(lambda: not processes_with(str(path)), 3)


def test_no_process_outlives_the_outer_one(write_job):
    path, job = write_job("killed", settings=FOR_EVER | {"num_processes": 2})
    process = start(path, job)
    process.kill()  # nobody is there to kill its group
    wait_until(lambda: not processes_with(str(path)), 3)


def test_a_worker_that_comes_after_the_end_of_its_torchrun_leaves(write_job):
    """It would wait for the others of its job, for minutes."""
    path, _ = write_job("late", settings=FOR_EVER | {"num_processes": 2})
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    rank["MASTER_PORT"] = str(free_port())
    begun = "import os, subprocess, sys; os.environ['RM_PARENT'] = str(os.getpid()); "
    ended = "subprocess.Popen(sys.argv[1:]); os._exit(0)"
    command = [sys.executable, "-c", begun + ended, *MODULE, str(path)]
    assert subprocess.run(command, env=os.environ | rank, stderr=subprocess.DEVNULL, check=False).returncode == 0
    wait_until(lambda: not processes_with(str(path)), 10)


def test_a_wrapper_may_stand_between_a_process_and_its_parent():
    """As a profiler's or a tracer's command does that starts workers."""
    looks = "from rm_assets.training.processes import children; children.die_with_parent(); print('lives')"
    command = ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, looks]
    environment = os.environ | {"RM_PARENT": str(os.getpid())}
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout == "lives\n"
