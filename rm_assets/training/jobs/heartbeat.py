"""Logs a line at least every minute: during work that logs none for that long, the last line is repeated.

On a CPU, a micro-batch of a large model, the equality probe or loading a model may take minutes.
"""

import threading
import time
from collections.abc import Callable
from typing import Self

SECONDS_OF_SILENCE = 50.0
SECONDS_BETWEEN_LINES = 30.0
_MAX_REPEATED_CHARACTERS = 200


class Heartbeat:
    """Logs lines from any thread. In its `with` block, a thread repeats the last one, with its age, if none follows.

    A repeated line shows that the process is alive, not that its work makes progress.
    """

    def __init__(self, log: Callable[[str], object], seconds: float = SECONDS_OF_SILENCE) -> None:
        self._log, self._seconds = log, seconds
        self._text, self._since = "started", time.monotonic()
        self._is_over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._repeat, name="heartbeat", daemon=True)

    def __call__(self, text: str) -> None:
        """Log a line."""
        with self._changed:
            self._log(text)
            self._text, self._since = text, time.monotonic()
            self._changed.notify()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join()

    def _repeat(self) -> None:
        with self._changed:
            while not self._is_over:
                if not self._changed.wait(self._seconds):
                    minutes, seconds = divmod(round(time.monotonic() - self._since), 60)
                    self._log(f"still working, {minutes}:{seconds:02} after: {self._text[:_MAX_REPEATED_CHARACTERS]}")


def spaced(log: Callable[[str], object], seconds: float = SECONDS_BETWEEN_LINES) -> Callable[[str], None]:
    """A function that logs a line unless it logged one, or was made, less than `seconds` ago."""
    last = time.monotonic()

    def log_spaced(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            log(text)

    return log_spaced
