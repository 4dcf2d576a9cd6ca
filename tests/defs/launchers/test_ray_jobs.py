"""The launcher ray for real: dagster-ray's client, and a Ray cluster on loopback with its job server."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import QUICK, polite_rows, write_lines

from rm_assets.defs.launchers.base import JobExit
from rm_assets.defs.launchers.ray_jobs import RayLauncher, job_exit
from rm_assets.defs.snapshots.models import required_model
from rm_assets.settings import LaunchSettings, SettingsError
from rm_assets.training.jobs.result import read_result

pytest.importorskip("dagster_ray")

COMMAND = ["from dagster._cli import main; main()", "asset", "materialize", "-m", "rm_assets.definitions"]
CONFIG = json.dumps({"resources": {"launcher": {"config": {"poll_seconds": 0.5}}}})
_NODE = {"num_cpus": 4, "node_ip_address": "127.0.0.1", "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def job_server() -> Iterator[str]:
    """The address of the job server of a cluster of one node."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback alone; read when ray is imported
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # for the nodes' `python`
        from ray.cluster_utils import Cluster

        head = {**_NODE, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        address = f"http://{nodes.head_node.webui_url}"
        patch.setenv("RAY_API_SERVER_ADDRESS", address)
        yield address
        nodes.shutdown()


def started(directory: Path, **settings: Any) -> subprocess.Popen[str]:
    """A run of the command line, its output in the file `log`."""
    given = {"annotations": directory / "a.jsonl", "storage": directory / "snapshots", **QUICK}
    given |= {"launcher": "ray", "shared_storage": True, "num_gpus": 0, **settings}
    named = {f"RM_{name.upper()}": str(value) for name, value in given.items()}
    with (directory / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-c", *COMMAND, "--select", "*reward_model", "--config-json", CONFIG],
            env={**os.environ, **named, "DAGSTER_HOME": str(directory)},
            cwd=directory,
            stdout=log,
            stderr=log,
            text=True,
        )


def processes_of(directory: Path) -> list[int]:
    """Every training process whose command line names the directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            told = (process / "cmdline").read_bytes()
            if str(directory).encode() in told and b"rm_assets.training" in told:
                found.append(int(process.name))
    return found


def wait_for(condition: Any, log: Path, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.mark.soak
def test_a_ray_job_trains_a_model(job_server: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", polite_rows(60))
    assert started(tmp_path).wait(300) == 0, (tmp_path / "log").read_text()
    model = required_model(tmp_path / "snapshots")
    assert read_result(model.directory, model.key) == model.manifest
    assert "1 process on cpu" in (tmp_path / "log").read_text()  # by Dagster Pipes, from the Ray job's log
    assert list((tmp_path / "snapshots" / ".jobs").iterdir()) == []


@pytest.mark.soak
def test_a_cancelled_run_stops_its_ray_job_which_saves_first(job_server: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", polite_rows(60))
    log = tmp_path / "log"
    run = started(tmp_path, epochs=1_000_000, micro_batch_tokens=200)
    try:
        wait_for(lambda: "step 1/" in log.read_text() or run.poll() is not None, log)
        assert run.poll() is None, log.read_text()
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) != 0
        wait_for(lambda: processes_of(tmp_path) == [], log, 30)
    finally:
        for process in processes_of(tmp_path):
            os.kill(process, signal.SIGKILL)
    home = tmp_path / "snapshots" / "reward_model"
    assert list(home.glob(".training/*/checkpoints/step-*/manifest.json"))


@pytest.mark.soak
def test_what_a_killed_run_left_is_stopped_by_the_next_one(job_server: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", polite_rows(60))
    log = tmp_path / "log"
    run = started(tmp_path, epochs=1_000_000, micro_batch_tokens=200)
    wait_for(lambda: "step 1/" in log.read_text() or run.poll() is not None, log)
    run.kill()
    run.wait()
    [left] = [pid for pid in processes_of(tmp_path) if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"python")]
    run = started(tmp_path, epochs=1_000_000, micro_batch_tokens=200)
    try:
        wait_for(lambda: not Path(f"/proc/{left}").exists(), log)
        wait_for(lambda: "resumes after step" in log.read_text(), log)
    finally:
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) != 0


def test_a_job_server_that_is_not_named_or_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = RayLauncher(LaunchSettings(launcher="ray"), num_processes=1, poll_seconds=1)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(SettingsError, match=r"launcher \(or RM_LAUNCHER\) is 'ray': RAY_API_SERVER_ADDRESS must name"):
        launcher.remove_leftovers("job")
    for wrong in ("head:8265", "ray://head:10001"):
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", wrong)
        with pytest.raises(SettingsError, match=f"RAY_API_SERVER_ADDRESS is '{wrong}': it must begin with http://"):
            launcher.remove_leftovers("job")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(SettingsError, match=r"RAY_API_SERVER_ADDRESS is 'http://127.0.0.1:9': ") as error:
        launcher.remove_leftovers("job")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("status", "code", "message", "expected"),
    [
        ("FAILED", 143, "Job entrypoint command failed: ...", JobExit(code=143)),
        (
            "FAILED",
            None,
            "the runtime environment cannot be set up",
            JobExit(code=1, detail="the runtime environment cannot be set up"),
        ),
        ("RUNNING", None, "Job is currently running.", JobExit(code=1, detail="the connection was lost")),
        ("SUCCEEDED", 0, "Job finished successfully.", JobExit(code=0)),
    ],
)
def test_what_ended_a_ray_job_is_its_own_account_if_it_has_ended(
    status: str, code: int | None, message: str, expected: JobExit
) -> None:
    from ray.job_submission import JobStatus

    info = SimpleNamespace(status=JobStatus(status), driver_exit_code=code, message=message)
    client = SimpleNamespace(get_job_info=lambda submission: info)
    assert job_exit(client, "id", ConnectionError("the connection was lost")) == expected


def test_a_job_asks_for_a_gpu_per_process_unless_a_number_is_set() -> None:
    launcher = RayLauncher(LaunchSettings(launcher="ray"), num_processes=4, poll_seconds=1)
    asked = launcher.parameters(["-m", "rm_assets.training", "/a b/job.json"], "name", "id")
    assert asked["entrypoint"] == "python -m rm_assets.training '/a b/job.json'"
    assert (asked["entrypoint_num_gpus"], asked["metadata"]) == (4, {"rm_assets/job": "name"})
    launcher = RayLauncher(LaunchSettings(launcher="ray", num_gpus=8), num_processes=4, poll_seconds=1)
    assert launcher.parameters(["-m", "rm_assets.training", "job.json"], "name", "id")["entrypoint_num_gpus"] == 8
