"""Runs that were killed: each is ended as failed, with a reason, and what it held is freed.

Dagster's own monitoring cannot see them, for the default run launcher never asks whether the process of a run lives.
Here a sensor looks, which runs where the runs do, and each run before it begins: a command line needs no daemon for it.
"""

import contextlib
import json
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.storage.runs import SqliteRunStorage

from rm_assets.defs.runs import pool
from rm_assets.defs.runs.failure_reason import tell_at_exit
from rm_assets.defs.runs.run_records import Record, abandoned, keep_record
from rm_assets.defs.runs.stop_requests import is_asked, is_being_heard, remembered_requests

SECONDS_BETWEEN_LOOKS = 15
SECONDS_TO_HEAR_OF_A_CANCEL = 3.0
SECONDS_TO_LEAVE = 5.0  # of a run that was interrupted, unless it is ending a job, which may take its time to save
SECONDS_FOR_THE_SERVER = 2.0  # a code server that lives reports the death of a run within one
SECONDS_TO_SAY_A_WORD = 30.0  # of a run that started, which takes milliseconds, or is being started
SECONDS_FOR_AN_ANSWER = 1.0
_SERVER_TAG = ".dagster/grpc_info"
_PROJECT = "rm_assets.definitions"


def records_directory(instance: dg.DagsterInstance) -> Path:
    """Where the runs of this machine keep their records: beside the instance's other files, as an absolute path."""
    return Path(instance.storage_directory()).absolute().parent / "running"


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """End the runs whose process on this machine is gone, and those of any machine that died without a word.

    Returns the ids of the ended runs.
    """
    ended = []
    for path in sorted(records_directory(instance).glob("[!.]*")):
        with abandoned(path) as record:
            if record is None:
                continue
            _end_followers(path.name)
            if _is_running(instance, path.name):
                time.sleep(SECONDS_FOR_THE_SERVER)
            if _is_running(instance, path.name):
                _end(instance, path.name, _reason(record))
                ended.append(path.name)
            path.unlink(missing_ok=True)
    for find, reason in (
        (_runs_without_a_server, "the code server that was to start this run is gone: materialize again"),
        (_runs_without_a_word, "nothing was heard of this run since it started: it was killed. Materialize again"),
    ):
        if found := find(instance):
            time.sleep(SECONDS_FOR_THE_SERVER)
            for run_id in sorted(found & find(instance)):
                _end(instance, run_id, reason)
                ended.append(run_id)
    return ended


def _end_followers(run_id: str) -> None:
    """End the `tail` that shows the log of a dead run's step, if it was killed before Dagster had that watched.

    Dagster starts a watcher after it (`execute_posix_tail`), milliseconds too late for a run that is killed meanwhile.
    """
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().split(b"\0")
            if command[:2] == [b"tail", b"-F"] and any(run_id.encode() in word.split(b"/") for word in command[2:]):
                os.kill(int(process.name), signal.SIGTERM)


def _runs_without_a_server(instance: dg.DagsterInstance) -> set[str]:
    """Runs that no process runs yet, and whose code server is gone."""
    starting = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING])
    return {run.run_id for run in instance.get_runs(filters=starting) if _has_lost_its_server(instance, run)}


def _runs_without_a_word(instance: dg.DagsterInstance) -> set[str]:
    """Started runs of this project, of whatever machine, which died before they left a record and said so.

    Theirs may be another clock, or one that was set since: only who looks twice, and hears nothing meanwhile, knows.
    """
    found = set()
    for record in instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        run = record.dagster_run
        # by a clock that may have been set back since
        is_new = record.start_time is None or abs(time.time() - record.start_time) < SECONDS_TO_SAY_A_WORD
        if is_new or not _is_of_this_project(run):
            continue
        if (records_directory(instance) / run.run_id).exists():
            continue
        last = _last_entry(instance, run)
        if last is not None and last.dagster_event_type == dg.DagsterEventType.RUN_START:
            found.add(run.run_id)
    return found


def _is_of_this_project(run: dg.DagsterRun) -> bool:
    """Whether its executor is the one below; those of other projects may be silent."""
    origin = run.job_code_origin
    return origin is not None and getattr(origin.repository_origin.code_pointer, "module", "") == _PROJECT


def _is_running(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is not None and not run.is_finished


def _reason(record: Record) -> str:
    host = record.machine.partition(" ")[0]
    return (
        f"the process of this run, {record.process} on {host}, is gone without a word: it was killed, or its machine "
        "stopped. Materialize again: finished shards and checkpoints are found"
    )


def _end(instance: dg.DagsterInstance, run_id: str, reason: str) -> None:
    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished:
        return
    if run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, message=reason)
    else:
        instance.report_run_failed(run, message=reason)
    if instance.event_log_storage.supports_global_concurrency_limits:
        instance.event_log_storage.free_concurrency_slots_for_run(run_id)


def _has_lost_its_server(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether the code server that was to start the run is gone: its socket is here, and answers nobody.

    Where there is no socket, as after a start of the machine that empties /tmp, it is gone if the instance is kept in
    files of this machine. Should a process of that server have survived it and begin the run after all, Dagster turns
    it away as too late.
    """
    address = json.loads(run.tags.get(_SERVER_TAG, "{}")).get("socket")
    if not address:
        return False
    try:
        is_socket = stat.S_ISSOCK(os.lstat(address).st_mode)
    except FileNotFoundError:
        # with some patience, as the files may be shared with a container that has a /tmp of its own
        last = _last_entry(instance, run)
        is_of_this_machine = isinstance(instance.run_storage, SqliteRunStorage)
        return is_of_this_machine and last is not None and time.time() - last.timestamp > SECONDS_TO_SAY_A_WORD
    except OSError:  # in a directory of another user
        return False
    if not is_socket:
        return False
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS_FOR_AN_ANSWER)
        try:
            client.connect(address)
        except ConnectionRefusedError:
            return True
        except OSError:  # another user's, busy, or gone by now: nothing is known of the server
            return False
    return False


def _last_entry(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.EventLogEntry | None:
    """The newest event of a run; none where its log was removed."""
    records = instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
    return records[0].event_log_entry if records else None


@dg.sensor(
    minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ends runs as failed whose process was killed, and frees what they held.",
)
def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Looks at once after a start, then every 15 s; asks for no runs. Being always on, it sees to the pool as well."""
    pool.make_known(context.instance)
    ended = end_dead_runs(context.instance)
    return dg.SkipReason(f"ended as failed: {', '.join(ended)}" if ended else "no run's process is gone")


class WatchedExecutor(dg.Executor):
    """An executor in this process, whose death others can see, and which hears that its run is cancelled."""

    def __init__(self, executor: dg.Executor) -> None:
        self._executor = executor

    @property
    def retries(self) -> Any:
        return self._executor.retries

    @property
    def step_dependency_config(self) -> Any:
        return self._executor.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        run, instance = plan_context.dagster_run, plan_context.instance
        with remembered_requests():
            self._keep_record(plan_context)
            instance.report_engine_event(f"Process {os.getpid()} runs this run.", run)  # its first word
            is_over = threading.Event()
            self._look_around(plan_context, is_over)
            try:
                yield from self._executor.execute(plan_context, execution_plan)
            finally:
                is_over.set()
                tell_at_exit(instance, run.run_id)

    def _keep_record(self, plan_context: Any) -> None:
        """Let others see that this run lives."""
        try:
            keep_record(records_directory(plan_context.instance), plan_context.dagster_run.run_id)
        except OSError as error:
            plan_context.log.warning(f"should this run be killed, nobody will know at once: {error}")

    def _look_around(self, plan_context: Any, is_over: threading.Event) -> None:
        """End the runs that do not live, and watch out for a cancel of this one."""
        run, instance = plan_context.dagster_run, plan_context.instance
        try:
            for run_id in end_dead_runs(instance):
                plan_context.log.info(f"run {run_id} was killed, and is now ended as failed")
        except Exception as error:  # of other runs, and no reason to end this one: the sensor looks again
            plan_context.log.warning(f"whether other runs were killed is not known: {error}")
        if isinstance(instance.run_launcher, dg.DefaultRunLauncher):  # others end what they launched by themselves
            server = os.getppid() if _SERVER_TAG in run.tags else None
            watch = (instance, run.run_id, server, is_over)
            threading.Thread(target=_see_that_it_stops, args=watch, daemon=True).start()


def _see_that_it_stops(instance: dg.DagsterInstance, run_id: str, server: int | None, is_over: threading.Event) -> None:
    """Interrupt this process once its run is cancelled: at once where no living code server, its parent, does so.

    A run of the command line has none, and hears of the UI by nobody else. A run that others have ended (cancelled by
    force, or too long) is one to stop, too. Whoever interrupted it, an interrupt may be lost, and is sent again until
    the run ends.
    """
    seconds = 0.0
    while not is_over.wait(SECONDS_TO_HEAR_OF_A_CANCEL):
        try:
            run = instance.get_run_by_id(run_id)
        except Exception as error:  # a database that is away or locked: it is asked again
            print(f"whether run {run_id} is cancelled is not known for now: {error}", file=sys.stderr)
            continue
        if run is None:
            return
        is_cancelled = run.is_finished or run.status == dg.DagsterRunStatus.CANCELING
        if is_being_heard():
            seconds = 0.0
        elif is_cancelled or is_asked():
            seconds += SECONDS_TO_HEAR_OF_A_CANCEL
            if (is_cancelled and os.getppid() != server) or seconds > SECONDS_TO_LEAVE:
                os.kill(os.getpid(), signal.SIGTERM)
                server, seconds = os.getppid(), 0.0


def _create_executor(context: dg.InitExecutorContext) -> dg.Executor:
    create = dg.in_process_executor.executor_creation_fn
    assert create is not None
    return WatchedExecutor(create(context))


watched_in_process_executor = dg.ExecutorDefinition(
    name=dg.in_process_executor.name,
    config_schema=dg.in_process_executor.config_schema.as_field(),
    executor_creation_fn=_create_executor,
    description="Executes all steps in the process of the run, whose death others can see.",
)
