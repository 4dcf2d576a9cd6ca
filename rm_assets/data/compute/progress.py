"""Progress of long work, logged every ten seconds: rows done, speed, share and remaining time."""

import time
from collections.abc import Callable

_SECONDS_BETWEEN = 10.0


class Progress:
    """Counts finished work and logs it every ten seconds; shorter work logs nothing.

    `total_bytes` is the size of the input; None where it is unknown, as with compressed files.
    """

    def __init__(
        self,
        what: str,
        total_bytes: int | None,
        log: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._total_bytes = total_bytes
        self._log = log
        self._clock = clock
        self._started = self._logged = clock()
        self._num_rows = self._num_bytes = 0

    def add(self, num_rows: int, num_bytes: int) -> None:
        """Count finished rows, and the bytes of input that they came from."""
        self._num_rows += num_rows
        self._num_bytes += num_bytes
        now = self._clock()
        if now - self._logged >= _SECONDS_BETWEEN:
            self._logged = now
            self._log(self._line(now - self._started))

    def skip(self, num_bytes: int) -> None:
        """Subtract input that needs no work from the total."""
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
