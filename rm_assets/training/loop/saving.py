"""Checkpoints written while training goes on: the loop waits for a copy of the tensors, a thread writes the copy.

At most one is being written. What fails there is raised in the loop, at the latest where it waits: before the next
checkpoint, where it leaves, at its end. A kill at any moment leaves what it leaves of every checkpoint.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from torch import Tensor

from rm_assets.training.devices import bytes_of_copies, copy_to_host
from rm_assets.training.loop.checkpoint import Checkpoints, Position

SHARE = 0.5
"""Of the memory that is left, that the copies of all processes of a machine may take."""
SECONDS_AFTER_AN_ERROR = 300.0
"""For which a checkpoint is waited for when the loop has failed: other processes that write it may have failed too."""


class Saver:
    """Writes the checkpoints of a training; leaving it waits for the last one."""

    def __init__(self, checkpoints: Checkpoints, free_memory: Callable[[], int] | None = None) -> None:
        self._checkpoints = checkpoints
        self._writers = checkpoints.group.aside()
        self._free_memory = free_memory or memory_left
        self._copies: dict[str, Tensor] = {}
        self._is_copying: bool | None = None  # decided by the first checkpoint
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait(SECONDS_AFTER_AN_ERROR if error else None)
        except Exception as failure:
            if error is None:
                raise
            self._checkpoints.say(f"the last checkpoint is not written: {type(failure).__name__}: {failure}")
        finally:
            self._thread.shutdown(wait=error is None)

    def save(self, position: Position, tensors: Mapping[str, Tensor]) -> None:
        """Have the tensors written as they are now, once what is being written is done."""
        self.wait()
        moment = self._checkpoints.moment(position)
        if self._is_copying is None:
            self._is_copying = self._has_room(tensors)
        if self._is_copying:
            copy_to_host(tensors, self._copies, self._checkpoints.group.device)
            self._writing = self._thread.submit(self._checkpoints.write, moment, self._copies, self._writers)
        else:
            in_place = {name: tensor.cpu() for name, tensor in tensors.items()}
            self._checkpoints.write(moment, in_place, self._writers)

    def check(self) -> None:
        """Raise what failed since the last call, without waiting."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Return when nothing is being written; raises what failed, and TimeoutError."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result(seconds)

    def _has_room(self, tensors: Mapping[str, Tensor]) -> bool:
        group = self._checkpoints.group
        needed, left = group.local_size * bytes_of_copies(tensors, group.device), self._free_memory()
        if needed <= SHARE * left:
            return True
        if group.is_first:
            self._checkpoints.say(
                f"training waits for every checkpoint: copies of {needed / 2**20:.0f} MiB are more than half "
                f"of the {left / 2**20:.0f} MiB of memory that are left"
            )
        return False


def memory_left(root: Path = Path("/")) -> int:
    """Bytes that this machine has left, or the control group that bounds this process; 0 where neither tells."""
    try:
        [line] = [line for line in (root / "proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")]
        left = 1024 * int(line.split()[1])
    except (OSError, ValueError):
        return 0
    group = root / "sys/fs/cgroup"
    try:
        stated = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        taken = int((group / "memory.current").read_text()) - int(stated["inactive_file"])  # which it gives up at need
        return max(0, min(left, int((group / "memory.max").read_text()) - taken))
    except (OSError, ValueError, KeyError):  # there is none, or its limit is "max"
        return left
