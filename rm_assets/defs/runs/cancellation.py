"""Cancelled runs: a process that keeps running after its run was cancelled is interrupted until it stops.

Dagster's UI interrupts a run through the code server that started it. But a run started on the command line has none,
the code server may have died, and Python drops an interrupt that is raised where exceptions are ignored (such as in
the callback of a weak reference). So a thread in the run's process polls the status of the run.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import dagster as dg

SECONDS_BETWEEN_POLLS = 1.0
POLLS_UNTIL_INTERRUPT = 3
"""Consecutive polls that must find the run cancelled: by then, one interrupted by its code server has mostly ended."""

_is_ending_job = threading.Event()


@contextlib.contextmanager
def ending_job() -> Iterator[None]:
    """Suspends interrupts while a launcher ends its job, which may need time to save."""
    _is_ending_job.set()
    try:
        yield
    finally:
        _is_ending_job.clear()


@contextlib.contextmanager
def interrupt_if_cancelled(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Within the block, a thread interrupts this process if its run is cancelled, killed by force or timed out."""
    is_over = threading.Event()
    threading.Thread(target=_interrupt_when_cancelled, args=(instance, run_id, is_over), daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _interrupt_when_cancelled(instance: dg.DagsterInstance, run_id: str, is_over: threading.Event) -> None:
    num_polls = 0
    while not is_over.wait(SECONDS_BETWEEN_POLLS):
        try:
            run = instance.get_run_by_id(run_id)
        except Exception as error:  # the database is unreachable or locked: try again
            print(f"cannot check whether run {run_id} is cancelled: {error}", file=sys.stderr)
            continue
        if run is None:  # deleted
            return
        is_cancelled = run.is_finished or run.status == dg.DagsterRunStatus.CANCELING
        num_polls = num_polls + 1 if is_cancelled and not _is_ending_job.is_set() else 0
        if num_polls == POLLS_UNTIL_INTERRUPT:
            os.kill(os.getpid(), signal.SIGTERM)
            num_polls = 0
