"""Runs whose process was killed: each is ended as failed, with a reason, and its pool slots are freed.

Dagster's own monitoring cannot see them, because the default run launcher never checks whether the process of a run is
alive. Here the process of a run holds a lock on a file, its record, which the kernel frees when the process dies. The
sensor `dead_runs` and each new run look for records without a lock; the command line needs no daemon for it.

PIDs are never looked up, as a later process may have the same one. A record is judged only on the machine that wrote
it: elsewhere, a free lock may mean that the file system does not share locks.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import dagster as dg

from rm_assets.data.storage.locks import is_file_at

SECONDS_FOR_THE_SERVER = 2.0
"""A living code server reports the death of its run within one second; its report is the better one."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The process of a run. Containers of one machine share its kernel and have host names of their own."""

    kernel: str  # the boot id, a new one at each boot; empty where the system has none
    machine: str
    process: int


_held: list[IO[str]] = []  # open, and so locked, until this process ends


def is_watched(instance: dg.DagsterInstance) -> bool:
    """Whether Dagster's default launcher starts the runs: others, such as Kubernetes', watch over theirs themselves."""
    return isinstance(instance.run_launcher, dg.DefaultRunLauncher)


def records_directory(instance: dg.DagsterInstance) -> Path:
    """Where the runs of this machine keep their records: beside the instance's other files, as an absolute path."""
    return Path(instance.storage_directory()).absolute().parent / "running"


def register_run(directory: Path, run_id: str) -> None:
    """Record that this process runs the run, until it ends in any way; raises OSError where it cannot be written."""
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / f".{run_id}"
    stream = unfinished.open("w")
    fcntl.flock(stream, fcntl.LOCK_EX)
    json.dump(asdict(_own_record()), stream)
    stream.flush()
    os.fsync(stream.fileno())
    unfinished.rename(directory / run_id)  # nobody sees it without its lock
    _held.append(stream)


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """End the runs whose process on this machine is gone; returns their ids."""
    ended = []
    for path in sorted(records_directory(instance).glob("[!.]*")):
        with abandoned(path) as record:
            if record is None:
                continue
            if _unfinished_run(instance, path.name):
                time.sleep(SECONDS_FOR_THE_SERVER)
            if run := _unfinished_run(instance, path.name):
                _end(instance, run, record)
                ended.append(path.name)
            path.unlink(missing_ok=True)
    return ended


@contextlib.contextmanager
def abandoned(path: Path) -> Iterator[Record | None]:
    """The record of a process that is gone, locked against other readers meanwhile; None where that is not certain."""
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(path.open("r+"))
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not is_file_at(path, stream.fileno()):
                raise FileNotFoundError(path)
            record = Record(**json.load(stream))
        except (OSError, ValueError, TypeError):  # locked, removed by another reader, or damaged
            yield None
            return
        own = _own_record()
        is_of_this_kernel = own.kernel != "" and record.kernel == own.kernel
        yield record if is_of_this_kernel or record.machine == own.machine else None


def _own_record() -> Record:
    return Record(
        kernel=_text("/proc/sys/kernel/random/boot_id"),
        machine=f"{socket.gethostname()} {_text('/etc/machine-id')}".strip(),
        process=os.getpid(),
    )


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _unfinished_run(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun | None:
    run = instance.get_run_by_id(run_id)
    return None if run is None or run.is_finished else run


def _end(instance: dg.DagsterInstance, run: dg.DagsterRun, record: Record) -> None:
    host = record.machine.partition(" ")[0]
    reason = (
        f"the process of this run, {record.process} on {host}, ended without a report: it was killed, or its machine "
        "stopped. Materialize again: finished shards and checkpoints are reused"
    )
    if run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, message=reason)
    else:
        instance.report_run_failed(run, message=reason)
    if instance.event_log_storage.supports_global_concurrency_limits:
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
