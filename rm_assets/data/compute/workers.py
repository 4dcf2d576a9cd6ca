"""Local worker processes that compute shards, reused across stages: each loads its tokenizer once."""

import atexit
import contextlib
import ctypes
import gc
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

_IDLE_SECONDS = 60.0
"""The pool is closed after this long without work: later stages may need its memory."""


class _Workers:
    """The worker pool of this process; at most one exists at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._num_workers = 0
        self._timer: threading.Timer | None = None
        self._num_uses = 0

    def pool(self, num_workers: int) -> ProcessPoolExecutor:
        """A pool of `num_workers` processes, which start with the first work."""
        with self._lock:
            self._cancel_timer()
            self._num_uses += 1
            if self._pool is None or self._num_workers != num_workers:
                self._shut_down()
                # Spawned, never forked: a fork after tokenizers or pyarrow started threads can deadlock.
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_prepare)
                self._num_workers = num_workers
            return self._pool

    def close_when_idle(self) -> None:
        """Close the pool after `_IDLE_SECONDS` unless it is used again."""
        with self._lock:
            self._cancel_timer()
            self._timer = threading.Timer(_IDLE_SECONDS, self._close_unless_used, [self._num_uses])
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        """Close the pool once its running tasks end."""
        with self._lock:
            self._cancel_timer()
            self._shut_down()

    def kill(self) -> None:
        """Kill the processes at once; the next run removes the files that they leave unfinished."""
        with self._lock:
            self._cancel_timer()
            # a private name: the public `kill_workers` came with Python 3.14
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
    """`map(function, arguments)` in worker processes, in order; raises the exception of a call that fails."""
    pool = _workers.pool(num_workers)
    try:
        yield from pool.map(function, arguments)
    except BaseException:
        _workers.kill()  # a process was killed, or the run is being stopped: the next use starts a new pool
        raise
    _workers.close_when_idle()


def _prepare() -> None:
    """Set a worker up: one core, memory that is kept, and an exit as soon as the parent process ends."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # transformers imports torch if it can, which no tokenizer needs: a third of a worker's memory and start-up time.
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    # Arrow's own pool returns memory to the system; `pa.set_memory_pool` would leave it to the Parquet writer.
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    import pyarrow as pa

    _keep_memory()
    keep_pandas_unloaded()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def _keep_memory() -> None:
    """Have glibc keep freed memory for the next batch: getting new pages each time costs a tenth of the run time.

    All threads share one arena; each would otherwise keep memory of its own, although they hardly work at once. The
    numbers are those of mallopt(3); a C library without that function is left as it is.
    """
    trim_threshold, top_pad, mmap_threshold, arena_max = -1, -2, -3, -8
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 * 2**20)
        mallopt(trim_threshold, 2**30)
        mallopt(top_pad, 64 * 2**20)
        mallopt(arena_max, 1)


class _NoPandas:
    """A finder of modules that denies there is pandas."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def keep_pandas_unloaded() -> None:
    """Keep Arrow from loading pandas for its first array from a list: 0.3 s of a processor and 49 MiB.

    Arrow looks for pandas once, and again where it needs it, as for `to_pandas`. Until then `pa.array` takes a Series
    for a plain sequence, with the same values.
    """
    import pyarrow as pa

    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, _NoPandas)
        try:
            pa.array([0])
        finally:
            sys.meta_path.remove(_NoPandas)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def pause_gc() -> Iterator[None]:
    """Disable the cyclic garbage collector: batches of rows, and lists of files, make many objects and no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
