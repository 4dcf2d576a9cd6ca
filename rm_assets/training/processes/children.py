"""Child processes that never outlive their parent, and the torchrun that starts the workers of a job.

`launcher -> python -m rm_assets.training -> torchrun -> one worker per rank`. The launcher's child watches a pipe
(`start_child`, `die_with_launcher`). Torchrun puts each worker into a session of its own, where no signal to the outer
process group reaches it, so torchrun and its workers watch their parents (`die_with_parent`).

A signal to the group reaches torchrun as often as it is sent, and a second one makes it drop its workers. So torchrun
ignores SIGTERM and SIGINT and listens to a signal that only the outer process sends, once.
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
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import FrameType

from rm_assets.training.processes.signals import STOP_SIGNALS, WORKERS_STOP_SIGNAL

PARENT_FD = "RM_PARENT_FD"
"""Environment variable: the inherited read end of a pipe, which ends once the launcher is gone."""

PARENT = "RM_PARENT"
"""Environment variable: the process that started this one, and which may be gone before this one checks."""

POLL_SECONDS = 0.25
SECONDS_TO_STOP = 30.0
"""Of a stopped job, whose workers may have a large checkpoint to write."""
_PR_SET_PDEATHSIG = 1  # of prctl(2)


@contextlib.contextmanager
def start_child(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a process group of its own, which kills that group when this process ends, however it ends.

    The child must call `die_with_launcher`. Leaving the context ends the child, too: stop it before.
    """
    read_end, write_end = os.pipe()
    try:
        yield subprocess.Popen(
            command,
            start_new_session=True,
            pass_fds=(read_end,),
            env={**os.environ, **(environment or {}), PARENT_FD: str(read_end)},
        )
    finally:
        os.close(write_end)
        os.close(read_end)


def die_with_launcher() -> None:
    """Kill this process's group when the process that started it with `start_child` is gone; otherwise do nothing."""
    descriptor = os.environ.pop(PARENT_FD, None)
    if descriptor is not None:
        _in_background(lambda: _kill_group_at_end_of_file(int(descriptor)))


def _kill_group_at_end_of_file(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def die_with_parent() -> None:
    """Kill this process, torchrun or a worker, when its parent is gone.

    Linux does that also for a process that hangs or is stopped; elsewhere, and across threads, a thread checks.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent or not _is_below(int(os.environ.get(PARENT, parent))):
        os.kill(os.getpid(), signal.SIGKILL)
    _in_background(lambda: _kill_self_when_orphaned(parent))


def _is_below(process: int) -> bool:
    """Whether a process started this one, directly or through others: a profiler or tracer may be in between."""
    above = os.getppid()
    while above != process and sys.platform == "linux":
        try:
            status = Path(f"/proc/{above}/stat").read_text()
        except OSError:  # it has ended, or it is above process 1 of this container
            return False
        above = int(status.rpartition(")")[2].split()[1])
    return above == process


def _kill_self_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _in_background(work: Callable[[], object]) -> None:
    threading.Thread(target=work, daemon=True).start()


# --- the workers of a job ------------------------------------------------------------------------------------


def is_worker() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ


def is_first_worker() -> bool:
    """Whether this process writes and reports."""
    return os.environ.get("RANK", "0") == "0"


def use_expandable_segments(environment: MutableMapping[str, str]) -> None:
    """Let torch allocate GPU memory in growing segments, unless the user configured its allocator: rows vary in length.

    Takes effect only before torch is imported.
    """
    if sys.platform == "linux" and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & environment.keys():
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def run_workers(job_path: Path, num_processes: int) -> int:
    """Run `python -m rm_assets.training` in `num_processes` workers under torchrun; returns the exit code.

    It is 137 if torchrun or a worker was killed by SIGKILL, as by the kernel when memory runs out.
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
    num_threads = max(1, (os.cpu_count() or 1) // num_processes)
    environment = {"OMP_NUM_THREADS": str(num_threads), **os.environ, PARENT: str(os.getpid())}
    process = subprocess.Popen(torchrun_command(job_path, num_processes), env=environment)
    workers.append(process)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if received:  # a signal that another thread received before torchrun was there
        process.send_signal(WORKERS_STOP_SIGNAL)
    code = _wait(process, received)
    ended_by = received[0] if received else -code
    return 128 + ended_by if ended_by > 0 else code


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


def _wait(process: subprocess.Popen[bytes], received: list[int]) -> int:
    """Wait for torchrun, which is killed if it has not ended SECONDS_TO_STOP after the first signal."""
    deadline: float | None = None
    while True:
        try:
            return process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            deadline = deadline or (time.monotonic() + SECONDS_TO_STOP if received else None)
            if deadline and time.monotonic() > deadline:
                process.kill()
