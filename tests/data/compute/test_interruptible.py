"""Calls of native code in threads that are kept, while signals are handled."""

import gc
import signal
import subprocess
import sys
import threading
import weakref

import pytest

from rm_assets.data.compute.interruptible import interruptible


def test_calls_share_a_thread_that_is_not_the_callers() -> None:
    first, second = (interruptible(threading.get_ident) for _ in range(2))
    assert first == second != threading.get_ident()


def test_an_error_reaches_the_caller_and_leaves_the_thread_in_use() -> None:
    before = interruptible(threading.get_ident)
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0)
    assert interruptible(threading.get_ident) == before


def test_a_signal_ends_the_wait_and_the_next_call_does_not_wait_for_the_unfinished_one() -> None:
    class StoppedError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    release, threads = threading.Event(), list[int]()

    def call() -> None:
        threads.append(threading.get_ident())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        release.wait()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(StoppedError):
            interruptible(call)
        assert interruptible(threading.get_ident) not in threads
    finally:
        release.set()
        signal.signal(signal.SIGTERM, before)


def test_neither_the_call_nor_its_result_is_kept() -> None:
    class Batch:
        pass

    def references() -> list["weakref.ref[Batch]"]:
        given, result = Batch(), interruptible(Batch)
        interruptible(lambda: given)
        return [weakref.ref(given), weakref.ref(result)]

    kept = references()
    gc.collect()
    assert [reference() for reference in kept] == [None, None]


def test_a_forked_process_starts_threads_of_its_own() -> None:
    script = """
import os
from rm_assets.data.compute.interruptible import interruptible
interruptible(int)
child = os.fork()
if not child:
    os._exit(interruptible(lambda: 7))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "7\n"
