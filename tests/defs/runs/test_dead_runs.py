"""Which runs live, told by the locks of real processes; and what becomes of the others."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import dagster as dg
import pytest
from dagster._core.launcher.sync_in_memory_run_launcher import SyncInMemoryRunLauncher
from real_runs import ROOT, Site

from rm_assets.defs.automation.dead_runs import dead_runs
from rm_assets.defs.runs import dead_runs as dead_runs_module
from rm_assets.defs.runs.dead_runs import abandoned, end_dead_runs, records_directory
from rm_assets.defs.runs.pool import POOL

OF_ANOTHER_KERNEL = "00000000-0000-0000-0000-000000000000"
KEEP = "import sys, pathlib; from rm_assets.defs.runs.dead_runs import register_run; "
KEEP += "register_run(pathlib.Path(sys.argv[1]), sys.argv[2]); print('kept', flush=True); sys.stdin.read()"


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setattr(dead_runs_module, "SECONDS_FOR_THE_SERVER", 0)  # there is none here
    site = Site(
        tmp_path, instance_file=(ROOT / "dagster.yaml").read_text() + "concurrency: {pools: {default_limit: 1}}\n"
    )
    with site.instance() as instance:
        yield instance


@dg.job
def some_job() -> None:
    pass


def running(instance: dg.DagsterInstance, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED) -> str:
    return instance.create_run_for_job(some_job, run_id=str(uuid.uuid4()), status=status).run_id


def status(instance: dg.DagsterInstance, run_id: str) -> str:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status.value


def process_of(instance: dg.DagsterInstance, run_id: str) -> subprocess.Popen[str]:
    """A process that says that it runs the run, and goes on."""
    process = subprocess.Popen(
        [sys.executable, "-c", KEEP, str(records_directory(instance)), run_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None and process.stdout.readline() == "kept\n"
    return process


def test_a_run_is_left_alone_while_its_process_lives_and_ended_once_it_is_killed(instance) -> None:
    run_id = running(instance)
    process = process_of(instance, run_id)
    try:
        os.kill(process.pid, signal.SIGSTOP)  # one that does nothing lives, too
        assert end_dead_runs(instance) == []
    finally:
        process.kill()
        process.wait()
    assert end_dead_runs(instance) == [run_id]
    assert status(instance, run_id) == "FAILURE"
    [reason] = [entry.message for entry in instance.all_logs(run_id) if "ended without a report" in entry.message]
    assert f"the process of this run, {process.pid} on {socket.gethostname()}, ended" in reason
    assert list(records_directory(instance).iterdir()) == []
    assert end_dead_runs(instance) == []


def test_a_killed_run_that_was_being_cancelled_is_cancelled_and_a_finished_one_stays_as_it_ended(instance) -> None:
    cancelled = running(instance, dg.DagsterRunStatus.CANCELING)
    finished = running(instance, dg.DagsterRunStatus.SUCCESS)
    for run_id in (cancelled, finished):
        process = process_of(instance, run_id)
        process.kill()
        process.wait()
    assert end_dead_runs(instance) == [cancelled]
    assert (status(instance, cancelled), status(instance, finished)) == ("CANCELED", "SUCCESS")
    assert list(records_directory(instance).iterdir()) == []


def test_the_slot_of_a_killed_run_is_free(instance) -> None:
    storage = instance.event_log_storage
    storage.initialize_concurrency_limit_to_default("gpu")
    killed, waiting = running(instance), running(instance)
    process = process_of(instance, killed)
    assert storage.claim_concurrency_slot("gpu", killed, "reward_model").is_claimed
    assert not storage.claim_concurrency_slot("gpu", waiting, "reward_model").is_claimed
    process.kill()
    process.wait()
    end_dead_runs(instance)
    assert storage.claim_concurrency_slot("gpu", waiting, "reward_model").is_claimed


def left_by(instance: dg.DagsterInstance, run_id: str, **changed: str) -> Path:
    """The record of a killed process, as another machine or an earlier boot would have written it."""
    process = process_of(instance, run_id)
    process.kill()
    process.wait()
    path = records_directory(instance) / run_id
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return path


@pytest.mark.parametrize(
    ("changed", "is_ended"),
    [
        ({}, True),
        ({"kernel": OF_ANOTHER_KERNEL}, True),  # this machine, before it was started anew
        ({"machine": "another"}, True),  # another container of this machine, whose locks are seen here
        ({"kernel": OF_ANOTHER_KERNEL, "machine": "another"}, False),  # its locks may not be seen here
        ({"kernel": "", "machine": "another"}, False),
    ],
)
def test_a_run_is_judged_by_its_own_machine_alone(instance, changed: dict[str, str], is_ended: bool) -> None:
    run_id = running(instance)
    path = left_by(instance, run_id, **changed)
    assert end_dead_runs(instance) == ([run_id] if is_ended else [])
    assert path.exists() is not is_ended


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kernel": "x"}', "\x00" * 80])
def test_a_damaged_record_proves_nothing(instance, content: str) -> None:
    run_id = running(instance)
    left_by(instance, run_id).write_text(content)
    assert end_dead_runs(instance) == []
    assert status(instance, run_id) == "STARTED"


def test_of_two_that_look_at_once_one_sees_the_dead_run(instance) -> None:
    path = left_by(instance, running(instance))
    with abandoned(path) as first, abandoned(path) as second:
        assert first is not None
        assert second is None


def test_the_sensor_is_on_by_itself_and_asks_for_no_run(instance) -> None:
    assert dead_runs.default_status == dg.DefaultSensorStatus.RUNNING
    run_id = running(instance)
    left_by(instance, run_id)
    told = [dead_runs(dg.build_sensor_context(instance=instance)) for _ in range(2)]
    assert [getattr(skip, "skip_message", None) for skip in told] == [
        f"ended as failed: {run_id}",
        "every run's process is alive",
    ]


def test_the_runs_of_another_launcher_are_left_to_it(instance, monkeypatch: pytest.MonkeyPatch) -> None:
    left_by(instance, running(instance))
    monkeypatch.setattr(type(instance), "run_launcher", SyncInMemoryRunLauncher())
    skip = dead_runs(dg.build_sensor_context(instance=instance))
    assert isinstance(skip, dg.SkipReason)
    assert skip.skip_message == "the instance's run launcher watches over its runs itself"


def test_the_sensor_gives_the_pool_its_default_limit_and_leaves_a_limit_of_its_own_alone(instance) -> None:
    storage = instance.event_log_storage
    assert POOL not in storage.get_concurrency_keys()
    dead_runs(dg.build_sensor_context(instance=instance))
    assert storage.get_concurrency_info(POOL).limit == 1
    storage.set_concurrency_slots(POOL, 3)
    dead_runs(dg.build_sensor_context(instance=instance))
    assert storage.get_concurrency_info(POOL).limit == 3


def test_a_record_that_another_reader_removes_before_it_is_locked_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / "run", fcntl.flock
    subprocess.run([sys.executable, "-c", KEEP, str(tmp_path), "run"], stdin=subprocess.DEVNULL, check=True)

    def removed_meanwhile(stream: IO[str], operation: int) -> None:
        path.unlink()
        flock(stream, operation)

    with abandoned(path) as record:
        assert record is not None
    monkeypatch.setattr("fcntl.flock", removed_meanwhile)
    with abandoned(path) as record:
        assert record is None
