"""Starting and stopping the processes of a job, and leaving none behind. No torch here: the outer process runs this.

`launcher -> python -m rm_assets.training -> torchrun -> one worker per rank`. Torchrun puts each worker into
a session of its own, where no signal to the outer process group reaches it: all watch their parents instead. A signal
to the group reaches torchrun as often as it is sent, and a second one makes it drop its workers: it is deaf to SIGTERM
and SIGINT, and hears from the outer process alone, once, by a signal that nobody else sends.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

PARENT_FD = "RM_PARENT_FD"
"""Environment variable: the inherited read end of a pipe, which ends once the launcher is gone."""

PARENT = "RM_PARENT"
"""Environment variable: the process that started this one, and which may be gone before this one looks."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
WORKERS_STOP_SIGNAL = signal.SIGUSR1
"""What the outer process sends to torchrun, and torchrun to its workers."""

SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_TO_STOP = 10.0
_PR_SET_PDEATHSIG = 1  # of prctl(2)


def let_memory_grow(environment: MutableMapping[str, str]) -> None:
    """Have torch's memory of a GPU in segments that grow, before torch is imported: rows are of many lengths.

    Whoever has set up that memory has the say.
    """
    if sys.platform == "linux" and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & environment.keys():
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def is_worker() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ


def is_first_worker() -> bool:
    """Whether this process writes and reports."""
    return os.environ.get("RANK", "0") == "0"


class Stop:
    """Whether this process was asked to leave: `number` is the first signal that asked, 0 before.

    Within `awaited` the loop looks at it between two steps, saves and leaves. Elsewhere there is nothing to save, and a
    signal ends the process at once, as a second one does everywhere.
    """

    def __init__(self) -> None:
        self.number = 0
        self._is_awaited = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Signals wait meanwhile for the loop inside to see them."""
        with self._lock:
            self._is_awaited = True
        try:
            yield
        finally:
            with self._lock:
                self._is_awaited = False
        if self.number:  # it came after the last step
            leave(self.number)

    def asked(self, number: int) -> None:
        """A signal has come."""
        with self._lock:
            if self.number or not self._is_awaited:
                leave(number)
            self.number = number


def listen_for_signals(stop: Stop) -> None:
    """From now on SIGTERM and SIGINT are told to `stop`, also while the main thread computes for long.

    Python runs a handler only between two steps of the main thread. What it does at once is to write the signal's
    number to the wake-up pipe, and a thread waits there.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    numbers = (*STOP_SIGNALS, WORKERS_STOP_SIGNAL)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # a worker inherits torchrun's deafness

    def listen() -> None:
        while True:
            stop.asked(os.read(read_end, 1)[0])

    _in_background(listen)


def leave(number: int) -> NoReturn:
    """End this process at once, as stopped by a signal."""
    print(f"stopped by {signal.Signals(number).name}", file=sys.stderr, flush=True)
    os._exit(128 + number)


def die_with_launcher() -> None:
    """Kill the own process group when the launcher is gone, where RM_PARENT_FD tells how to know.

    The launcher must start this process in a group of its own.
    """
    descriptor = os.environ.pop(PARENT_FD, None)
    if descriptor is not None:
        _in_background(lambda: _kill_group_at_end_of_file(int(descriptor)))


def _kill_group_at_end_of_file(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def die_with_parent() -> None:
    """In torchrun and its workers: end when the parent is gone, even where it was killed and could tell nobody.

    Linux sees to it also for a process that hangs or is stopped; a thread looks wherever that cannot be had.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent or not _is_below(int(os.environ.get(PARENT, parent))):
        os.kill(os.getpid(), signal.SIGKILL)
    _in_background(lambda: _kill_self_when_orphaned(parent))


def _is_below(process: int) -> bool:
    """Whether a process started this one, be it through others: a profiler or tracer may stand between."""
    above = os.getppid()
    while above != process and sys.platform == "linux":
        try:
            status = Path(f"/proc/{above}/stat").read_text()
        except OSError:  # gone by now, and above what is process 1 here, or outside of what is seen
            return False
        above = int(status.rpartition(")")[2].split()[1])
    return above == process


def _kill_self_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGKILL)


def _in_background(work: Callable[[], object]) -> None:
    threading.Thread(target=work, daemon=True).start()


def run_workers(job_path: Path, num_processes: int) -> int:
    """Run `python -m rm_assets.training` in `num_processes` workers under torchrun; returns the exit code.

    SIGTERM and SIGINT are passed on, and give 143 and 130 once the workers are gone; a second one ends torchrun at
    once, and the workers with it.
    """
    received: list[int] = []
    workers: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        for process in workers:
            process.send_signal(WORKERS_STOP_SIGNAL if len(received) == 1 else signal.SIGKILL)

    for number in STOP_SIGNALS:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # torchrun inherits that
    process = subprocess.Popen(torchrun_command(job_path, num_processes), env=_workers_environment(num_processes))
    workers.append(process)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if received:  # a signal that another thread took before torchrun was there
        process.send_signal(WORKERS_STOP_SIGNAL)
    code = _exit_code(process, received)
    return 128 + received[0] if received else code


def torchrun_command(job_path: Path, num_processes: int) -> list[str]:
    """Torchrun's command line; the workers meet at a free port of the loopback interface.

    The rendezvous is static: the one of `--standalone` unpickles whatever anyone writes to its port.
    """
    torchrun = [sys.executable, "-m", "rm_assets.training.torchrun", "--rdzv-backend=static", "--node-rank=0"]
    torchrun += ["--nnodes=1", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    torchrun += [f"--signals-to-handle={WORKERS_STOP_SIGNAL.name}", f"--nproc-per-node={num_processes}"]
    return [*torchrun, "-m", "rm_assets.training", str(job_path)]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _workers_environment(num_processes: int) -> dict[str, str]:
    num_threads = max(1, (os.cpu_count() or 1) // num_processes)
    return {"OMP_NUM_THREADS": str(num_threads)} | dict(os.environ) | {PARENT: str(os.getpid())}


def _exit_code(process: subprocess.Popen[bytes], received: list[int]) -> int:
    deadline: float | None = None
    while True:
        try:
            return process.wait(SECONDS_BETWEEN_LOOKS)
        except subprocess.TimeoutExpired:
            deadline = deadline or (time.monotonic() + SECONDS_TO_STOP if received else None)
            if deadline and time.monotonic() > deadline:
                process.kill()
