"""Requests to stop the process of a run, SIGINT and SIGTERM, remembered until they were heard.

Dagster raises an interrupt in the main thread wherever that happens to be, and it is lost where Python ignores what is
raised: in a weak reference's callback, for one, of which SQLAlchemy leaves many to the next garbage collection. What is
never lost is the byte that Python writes to a pipe on each signal (`signal.set_wakeup_fd`).
"""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Iterator

import dagster as dg

_requests = (signal.SIGINT, signal.SIGTERM)
_asked = threading.Event()
_is_ending_a_job = threading.Event()


@contextlib.contextmanager
def remembered_requests() -> Iterator[None]:
    """Remember requests meanwhile, and none from before or beyond; only in the main thread, which hears signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _listen()
    _asked.clear()
    try:
        yield
    finally:
        _asked.clear()  # a process may outlive its run, and run another


def is_asked() -> bool:
    """Whether this process was asked to stop."""
    return _asked.is_set()


def is_being_heard() -> bool:
    """Whether a launcher is ending its job, which a second request would disturb."""
    return _is_ending_a_job.is_set()


def wait_unless_asked(seconds: float) -> None:
    """Wait in the main thread; raises DagsterExecutionInterruptedError for a request whose own interrupt was lost."""
    if _asked.wait(seconds):
        raise dg.DagsterExecutionInterruptedError


@contextlib.contextmanager
def ending_a_job() -> Iterator[None]:
    """No request is sent again meanwhile: a job may need its time to save and leave."""
    _is_ending_a_job.set()
    try:
        yield
    finally:
        _is_ending_a_job.clear()


@functools.cache
def _listen() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def listen() -> None:
        while True:
            if any(number in _requests for number in os.read(read_end, 4096)):
                _asked.set()

    threading.Thread(target=listen, daemon=True).start()
