"""Which runs live, told by the locks of real processes; and what becomes of the others."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import dagster as dg
import pytest
from dagster import DagsterEventType
from dagster._core.storage.runs import InMemoryRunStorage
from real_runs import ROOT, Site, wait_until

from rm_assets.defs.runs import dead_runs as dead_runs_module
from rm_assets.defs.runs.dead_runs import dead_runs, end_dead_runs, records_directory
from rm_assets.defs.runs.pool import POOL
from rm_assets.defs.runs.run_records import abandoned

OF_ANOTHER_KERNEL = "00000000-0000-0000-0000-000000000000"
KEEP = "import sys, pathlib; from rm_assets.defs.runs.run_records import keep_record; "
KEEP += "keep_record(pathlib.Path(sys.argv[1]), sys.argv[2]); print('kept', flush=True); sys.stdin.read()"


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
    [reason] = [entry.message for entry in instance.all_logs(run_id) if "is gone without a word" in entry.message]
    assert f"the process of this run, {process.pid} on {socket.gethostname()}, is gone" in reason
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


@pytest.mark.parametrize("is_served", [True, False])
def test_a_run_that_waits_for_a_code_server_which_is_gone_is_ended(instance, tmp_path, monkeypatch, is_served) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    run = instance.create_run_for_job(some_job, status=dg.DagsterRunStatus.STARTING)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        server.listen()
        instance.add_run_tags(run.run_id, {".dagster/grpc_info": json.dumps({"host": "localhost", "socket": "socket"})})
        if not is_served:
            server.close()
        assert end_dead_runs(instance) == ([] if is_served else [run.run_id])


def waiting_for(address: Path, instance: dg.DagsterInstance) -> str:
    """The id of a run that the code server with this socket was told to start just now."""
    run = instance.create_run_for_job(some_job)
    instance.add_run_tags(run.run_id, {".dagster/grpc_info": json.dumps({"host": "localhost", "socket": str(address)})})
    instance.report_dagster_event(dg.DagsterEvent(DagsterEventType.RUN_STARTING.value, some_job.name), run.run_id)
    assert status(instance, run.run_id) == "STARTING"
    return run.run_id


def test_a_run_whose_code_server_went_with_the_temporary_files_is_ended_a_while_later(
    instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = waiting_for(tmp_path / "gone", instance)
    (tmp_path / "no socket").touch()
    waiting_for(tmp_path / "no socket", instance)
    waiting_for(tmp_path / ("x" * 300), instance)  # there is no telling, as in a directory of another user
    present = time.time
    for seconds in (0, -3600):  # it may be one of a container that shares the instance's files alone
        monkeypatch.setattr(dead_runs_module.time, "time", lambda seconds=seconds: present() + seconds)
        assert end_dead_runs(instance) == []
    monkeypatch.setattr(dead_runs_module.time, "time", lambda: present() + 31)
    assert end_dead_runs(instance) == [run_id]
    assert "the code server that was to start this run is gone" in "".join(
        entry.message for entry in instance.all_logs(run_id)
    )


def test_a_run_whose_log_was_removed_keeps_nobody_from_the_others(instance, tmp_path: Path, monkeypatch) -> None:
    address = {".dagster/grpc_info": json.dumps({"host": "localhost", "socket": str(tmp_path / "gone")})}
    run_id = waiting_for(tmp_path / "gone", instance)
    for status_ in (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED):
        instance.create_run_for_job(some_job, status=status_, tags=address)
    present = time.time
    monkeypatch.setattr(dead_runs_module.time, "time", lambda: present() + 31)
    assert end_dead_runs(instance) == [run_id]


def test_a_code_server_of_another_machine_is_not_looked_for_on_this_one(
    instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instances in files are of one machine; those in a database are shared by many."""
    waiting_for(tmp_path / "elsewhere", instance)
    present = time.time
    monkeypatch.setattr(dead_runs_module.time, "time", lambda: present() + 31)
    monkeypatch.setattr(dead_runs_module, "SqliteRunStorage", InMemoryRunStorage)
    assert end_dead_runs(instance) == []


def test_a_code_server_that_accepts_nobody_keeps_nobody_waiting(instance, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = instance.create_run_for_job(some_job, status=dg.DagsterRunStatus.STARTING)
    instance.add_run_tags(run.run_id, {".dagster/grpc_info": json.dumps({"host": "localhost", "socket": "socket"})})
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind("socket")
        server.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:  # until its queue is full
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect("socket")
        ended: list[list[str]] = []
        look = threading.Thread(target=lambda: ended.append(end_dead_runs(instance)), daemon=True)
        look.start()
        look.join(10)
        server.close()  # lets a look that waits go on
        look.join()
    assert ended == [[]]


# --- killed before a record was kept -------------------------------------------------------------------------


def run_killed_at(place: str, site: Site) -> str:
    """The id of a run of the command line whose process was killed where it came to a function of dead_runs.py."""
    dies = f"import os; from rm_assets.defs import dead_runs; dead_runs.{place} = lambda *_: os.kill(os.getpid(), 9); "
    command = [sys.executable, "-c", f"{dies}from dagster._cli import main; main()", "asset", "materialize"]
    options = ["-m", "rm_assets.definitions", "--select", "raw_preferences"]
    made = subprocess.run(
        [*command, *options], env=site.environment(), cwd=site.directory, capture_output=True, check=False
    )
    assert made.returncode == -signal.SIGKILL, made.stderr.decode()
    [run_id] = site.run_ids()
    assert site.status(run_id) == "STARTED"
    return run_id


DIES_AS_A_LOG_IS_FOLLOWED = """
import os
from dagster._core.execution import compute_logs

class Watcher:
    __file__ = property(lambda _: os.kill(os.getpid(), 9))

compute_logs.watch_orphans = Watcher()
from dagster._cli import main
main()
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes by /proc")
def test_what_follows_the_log_of_a_run_that_was_killed_before_it_was_watched_is_ended(tmp_path: Path) -> None:
    site = Site(tmp_path)
    command = [sys.executable, "-c", DIES_AS_A_LOG_IS_FOLLOWED, "asset", "materialize"]
    options = ["-m", "rm_assets.definitions", "--select", "raw_preferences"]
    with (tmp_path / "said").open("w") as said:
        made = subprocess.run(
            [*command, *options], env=site.environment(), cwd=tmp_path, stdout=said, stderr=said, check=False
        )
    try:
        assert made.returncode == -signal.SIGKILL, (tmp_path / "said").read_text()
        [follower] = site.living()
        assert b"tail" in Path(f"/proc/{follower}/cmdline").read_bytes()
        with site.instance() as instance:
            assert end_dead_runs(instance) == list(site.run_ids())
        assert wait_until(lambda: not site.living(), 5)
    finally:
        site.kill_everything()


# a clock that was set back proves nothing either
@pytest.mark.parametrize("seconds", [pytest.param(31, marks=pytest.mark.soak), -3600])
def test_a_run_that_was_killed_before_it_left_a_record_is_ended_a_while_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    site = Site(tmp_path)
    run_id = run_killed_at("keep_record", site)
    with site.instance() as instance:
        assert not records_directory(instance).exists()
        assert end_dead_runs(instance) == []  # it may be about to leave one
        present = time.time
        monkeypatch.setattr(dead_runs_module.time, "time", lambda: present() + seconds)
        assert end_dead_runs(instance) == [run_id]
        assert status(instance, run_id) == "FAILURE"
        assert "nothing was heard of this run" in "".join(entry.message for entry in instance.all_logs(run_id))
        assert end_dead_runs(instance) == []


def test_a_run_without_a_record_that_said_a_word_is_left_alone(tmp_path: Path, monkeypatch) -> None:
    """One of another machine, whose records are not here, or one that could not write its own."""
    site = Site(tmp_path)
    run_id = run_killed_at("end_dead_runs", site)
    monkeypatch.setattr(dead_runs_module, "SECONDS_TO_SAY_A_WORD", 0.0)
    with site.instance() as instance:
        (records_directory(instance) / run_id).unlink()
        assert end_dead_runs(instance) == []


def test_a_run_that_says_its_first_word_at_the_second_look_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path)
    run_id = run_killed_at("keep_record", site)
    monkeypatch.setattr(dead_runs_module, "SECONDS_TO_SAY_A_WORD", 0.0)
    with site.instance() as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        monkeypatch.setattr(dead_runs_module.time, "sleep", lambda _: instance.report_engine_event("a word", run))
        assert end_dead_runs(instance) == []


def test_a_silent_run_of_another_project_is_left_alone(instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its executor may say nothing for as long as it likes."""
    monkeypatch.setattr(dead_runs_module, "SECONDS_TO_SAY_A_WORD", 0.0)
    run = instance.create_run_for_job(some_job)
    instance.report_dagster_event(dg.DagsterEvent(DagsterEventType.RUN_START.value, some_job.name), run.run_id)
    assert status(instance, run.run_id) == "STARTED"
    assert end_dead_runs(instance) == []


def test_the_sensor_is_on_by_itself_and_asks_for_no_run(instance) -> None:
    assert dead_runs.default_status == dg.DefaultSensorStatus.RUNNING
    run_id = running(instance)
    left_by(instance, run_id)
    told = [dead_runs(dg.build_sensor_context(instance=instance)) for _ in range(2)]
    assert [getattr(skip, "skip_message", None) for skip in told] == [
        f"ended as failed: {run_id}",
        "no run's process is gone",
    ]


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
