"""How a job learns that it should stop: SIGTERM and SIGINT, even while the main thread computes."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
WORKERS_STOP_SIGNAL = signal.SIGUSR1
"""What the outer process sends to torchrun, and torchrun to its workers."""


class StoppedError(Exception):
    """The job left at a point where nothing is lost because a signal asked it to; `number` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


class Stop:
    """Whether this process was asked to stop: `number` is the first signal that asked, 0 before.

    Within `deferred` the training loop checks it many times in a step, saves and leaves. Elsewhere there is nothing to
    save, and a signal ends the process at once, as a second one does everywhere.
    """

    def __init__(self) -> None:
        self.number = 0
        self._is_deferred = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Leave the first signal to the code inside."""
        with self._lock:
            self._is_deferred = True
        try:
            yield
        finally:
            with self._lock:
                self._is_deferred = False
        if self.number:  # it came after the last step
            exit_stopped(self.number)

    def request(self, number: int) -> None:
        """Handle a signal that has arrived."""
        with self._lock:
            if self.number or not self._is_deferred:
                exit_stopped(number)
            self.number = number


def listen_for_signals(stop: Stop) -> None:
    """Pass SIGTERM and SIGINT on to `stop` from now on.

    Python runs signal handlers only between two bytecodes of the main thread, which may be minutes apart. What it does
    at once is to write the signal's number to the wake-up pipe, which a thread reads.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    numbers = (*STOP_SIGNALS, WORKERS_STOP_SIGNAL)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # a worker inherits torchrun's mask, which blocks them

    def listen() -> None:
        while True:
            stop.request(os.read(read_end, 1)[0])

    threading.Thread(target=listen, daemon=True).start()


def exit_stopped(number: int) -> NoReturn:
    """End this process at once with the exit code of a stop signal."""
    print(f"stopped by {signal.Signals(number).name}", file=sys.stderr, flush=True)
    os._exit(128 + number)
