"""Processes of this machine that compute shards, kept from one stage to the next: each loads its tokenizer once."""

import atexit
import contextlib
import ctypes
import gc
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from typing import Any

_IDLE_SECONDS = 60.0
"""After so long without work the processes leave: what follows may need their memory."""


class _Workers:
    """The processes of this one, at most one pool at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._num_workers = 0
        self._timer: threading.Timer | None = None
        self._num_uses = 0

    def pool(self, num_workers: int) -> ProcessPoolExecutor:
        """A pool of so many processes, which are started when there is work."""
        with self._lock:
            self._cancel_timer()
            self._num_uses += 1
            if self._pool is None or self._num_workers != num_workers:
                self._shut_down()
                # Spawned, never forked: a fork after tokenizers or pyarrow started threads can deadlock.
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(
                    num_workers, mp_context=context, initializer=_prepare, initargs=(context.Barrier(num_workers),)
                )
                self._num_workers = num_workers
            return self._pool

    def rest(self) -> None:
        """Nothing to do for now."""
        with self._lock:
            self._cancel_timer()
            self._timer = threading.Timer(_IDLE_SECONDS, self._close_unless_used, [self._num_uses])
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        """Let the processes leave."""
        with self._lock:
            self._cancel_timer()
            self._shut_down()

    def kill(self) -> None:
        """End the processes at once, whatever they are doing; what they leave unfinished, the next run removes."""
        with self._lock:
            self._cancel_timer()
            # a private name for want of another: `kill_workers` came with Python 3.14
            processes = list((self._pool._processes or {}).values()) if self._pool else []
            self._shut_down()  # first, so that nothing waits for a result
            for process in processes:
                process.kill()

    def _close_unless_used(self, num_uses: int) -> None:
        with self._lock:  # a timer that has fired can no longer be cancelled
            if self._num_uses == num_uses:
                self._shut_down()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _shut_down(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


_workers = _Workers()
close_workers = _workers.close
atexit.register(close_workers)


def map_in_processes(function: Callable[[Any], Any], arguments: list[Any], num_workers: int) -> Iterator[Any]:
    """The function's results, in order, computed by so many processes; their errors are raised here."""
    pool = _workers.pool(num_workers)
    try:
        yield from pool.map(function, arguments)
    except BaseException:
        _workers.kill()  # a process was killed, or the run is being stopped: start afresh next time
        raise
    _workers.rest()


def warm_up(function: Callable[..., Any], arguments: tuple[Any, ...], num_workers: int) -> None:
    """Start the processes, and have each call a function, such as one that loads a tokenizer."""
    pool = _workers.pool(num_workers)
    calls: list[Future[Any]] = [pool.submit(_called, function, arguments) for _ in range(num_workers)]
    wait(calls)
    for call in calls:
        call.result()
    _workers.rest()


_everyone: list[Any] = []  # in a worker: the barrier at which all workers of its pool meet
_SECONDS_TO_MEET = 600.0


def _called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    function(*arguments)  # what it gives stays in this process
    _everyone[0].wait(_SECONDS_TO_MEET)  # so that no process takes the call of another


def _prepare(everyone: Any) -> None:
    """One core for each process, and none outlives the one that started it, however that ends."""
    _everyone.append(everyone)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # A third of a process's memory, and of the time to start it, would be torch, which transformers imports where it
    # can, and which no tokenizer needs.
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    import pyarrow as pa

    _keep_memory()
    pa.set_memory_pool(pa.system_memory_pool())  # the same memory for Arrow, whose own pool gives it back
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def _keep_memory() -> None:
    """Have glibc keep what is freed for the next batch: to be given new pages each time costs a tenth of all.

    The numbers are those of mallopt(3); where the C library has no such function, nothing is changed.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 * 2**20)
        mallopt(trim_threshold, 2**30)
        mallopt(top_pad, 64 * 2**20)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def pause_gc() -> Iterator[None]:
    """No search for reference cycles meanwhile: batches of rows make many objects and hardly any cycle."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
