"""Long calls of native code that do not delay signals.

Python runs signal handlers in the main thread only, between bytecodes, so such calls run in other threads. A thread is
kept for the next call: tokenizers cache words and patterns for each thread, and take a fifth more time in a new one.
"""

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_Calls = SimpleQueue[tuple[Callable[[], Any], "Future[Any]"]]

_idle: list[_Calls] = []
"""Where the threads that have nothing to do get their next call."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # a forked process has none of these threads


def interruptible(call: Callable[[], _Result]) -> _Result:
    """The result of a call; signals are handled meanwhile."""
    outcome: Future[_Result] = Future()
    try:
        calls = _idle.pop()
    except IndexError:  # all are busy, perhaps with a call whose caller was interrupted
        calls = SimpleQueue()
        threading.Thread(target=_serve, args=(calls,), daemon=True).start()
    calls.put((call, outcome))
    while not outcome.done():  # a signal that comes just before a wait begins is handled after it: none may be long
        wait([outcome], timeout=1.0)
    return outcome.result()


def _serve(calls: _Calls) -> None:
    while True:
        _run(*calls.get(), calls)  # a function of its own, which leaves no reference to texts and results


def _run(call: Callable[[], Any], outcome: "Future[Any]", calls: _Calls) -> None:
    try:
        finish = functools.partial(outcome.set_result, call())
    except BaseException as error:
        finish = functools.partial(outcome.set_exception, error)
    _idle.append(calls)  # first: the next call comes as soon as this one has ended
    finish()
