"""Writes checkpoints while training continues: the loop waits for a copy of the tensors, a thread writes the copy.

At most one checkpoint is being written. An error of the thread is raised in the loop, at the latest where the loop
waits: before the next checkpoint, when it leaves, and at its end.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from torch import Tensor

from rm_assets.training.devices import bytes_of_copies, copy_to_host
from rm_assets.training.loop.checkpoint import Checkpoints, Header, Position

SHARE, CPU_SHARE = 0.5, 0.05
"""Share of the free memory that the copies of all processes of a machine may take. Where a CPU trains, activations need
that memory, too, and a step takes longer than writing a checkpoint."""
SECONDS_AFTER_AN_ERROR = 300.0
"""How long to wait for a checkpoint after the loop has failed: other processes that write it may have failed too."""


class Saver:
    """Writes the checkpoints of a training; leaving it waits for the last one.

    `saved_step` is the step of the latest checkpoint, at first of the one that the training resumed from.
    """

    def __init__(
        self, checkpoints: Checkpoints, free_memory: Callable[[], int] | None = None, saved_step: int = 0
    ) -> None:
        self.saved_step = saved_step
        self._checkpoints = checkpoints
        self._writers = checkpoints.group.new_cpu_group()
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
            self._checkpoints.log(f"the last checkpoint was not written: {type(failure).__name__}: {failure}")
        finally:
            self._thread.shutdown(wait=error is None)

    def save(self, position: Position, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors as they are now, after the checkpoint that is being written."""
        self.wait()
        header, self.saved_step = self._checkpoints.header(position), position.step
        if self._is_copying is None:
            self._is_copying = self._has_room(tensors)
        if self._is_copying:
            copy_to_host(tensors, self._copies, self._checkpoints.group.device)
            self._writing = self._thread.submit(self._checkpoints.write, header, self._copies, self._writers)
        else:
            self._write_in_place(header, tensors)

    def save_and_wait(self, position: Position, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors themselves, which takes no memory, unless this step is saved; nothing is being written
        after it."""
        self.wait()
        if position.step != self.saved_step:
            self.saved_step = position.step
            self._write_in_place(self._checkpoints.header(position), tensors)

    def _write_in_place(self, header: Header, tensors: Mapping[str, Tensor]) -> None:
        in_place = {name: tensor.cpu() for name, tensor in tensors.items()}
        self._checkpoints.write(header, in_place, self._writers)

    def check(self) -> None:
        """Raise an error of the thread, without waiting."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until nothing is being written; raises the thread's error, or TimeoutError."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result(seconds)

    def _has_room(self, tensors: Mapping[str, Tensor]) -> bool:
        group = self._checkpoints.group
        needed, left = group.local_size * bytes_of_copies(tensors, group.device), self._free_memory()
        share = SHARE if group.device.type == "cuda" else CPU_SHARE
        if needed <= share * left:
            return True
        if group.is_first:
            self._checkpoints.log(
                f"training waits for every checkpoint: copies of {needed / 2**20:.0f} MiB are more than "
                f"{share:.0%} of the {left / 2**20:.0f} MiB of free memory"
            )
        return False


def memory_left(root: Path = Path("/")) -> int:
    """Bytes of free memory of this machine, or of the control group that limits this process; 0 if unknown."""
    try:
        [line] = [line for line in (root / "proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")]
        left = 1024 * int(line.split()[1])
    except (OSError, ValueError):
        return 0
    group = root / "sys/fs/cgroup"
    try:
        stated = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        taken = int((group / "memory.current").read_text()) - int(stated["inactive_file"])  # reclaimable
        return max(0, min(left, int((group / "memory.max").read_text()) - taken))
    except (OSError, ValueError, KeyError):  # no control group, or its limit is "max"
        return left
