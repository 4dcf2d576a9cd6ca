"""One line now and then about long work: how much is done, how fast, and how long the rest will take."""

import time
from collections.abc import Callable

_SECONDS_BETWEEN = 10.0


class Progress:
    """Counts what is done, and says so every ten seconds; nothing is said of work that takes less.

    `total_bytes` is what there is to do, in bytes of the input; None where nobody knows, as with compressed files.
    """

    def __init__(
        self,
        what: str,
        total_bytes: int | None,
        say: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._total_bytes = total_bytes
        self._say = say
        self._clock = clock
        self._started = self._said = clock()
        self._num_rows = self._num_bytes = 0

    def add(self, num_rows: int, num_bytes: int) -> None:
        """So many more rows are done, made of so many bytes of the input."""
        self._num_rows += num_rows
        self._num_bytes += num_bytes
        now = self._clock()
        if now - self._said >= _SECONDS_BETWEEN:
            self._said = now
            self._say(self._line(now - self._started))

    def leave_out(self, num_bytes: int) -> None:
        """So much of the input needs no work."""
        if self._total_bytes is not None:
            self._total_bytes -= num_bytes

    def _line(self, seconds: float) -> str:
        speed = self._num_bytes / seconds
        line = f"{self._what}: {self._num_rows:,} rows, {speed / 1e6:.1f} MB/s"
        if not self._total_bytes or not speed:
            return line
        left = max(self._total_bytes - self._num_bytes, 0) / speed
        return f"{line}, {100 * self._num_bytes // self._total_bytes} %, about {_duration(left)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
