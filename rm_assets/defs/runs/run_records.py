"""Which runs live: the process of a run keeps a file locked, and the kernel frees the lock when the process dies.

No number of a process is looked up, so none can be mistaken for a later process of the same number. A file is judged by
the machine that wrote it alone: elsewhere a free lock may mean that the file system does not share locks.
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from rm_assets.data.storage.locks import is_file_at


@dataclass(frozen=True, kw_only=True)
class Record:
    """Who runs a run. Containers of one machine share its kernel, and have host names of their own."""

    kernel: str  # a new one at each boot; empty where the system has none
    machine: str
    process: int


_kept: list[IO[str]] = []  # open until this process ends


def keep_record(directory: Path, run_id: str) -> None:
    """Say that this process runs the run, from now until it ends, however it ends; raises OSError where it cannot."""
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / f".{run_id}"
    stream = unfinished.open("w")
    fcntl.flock(stream, fcntl.LOCK_EX)
    json.dump(asdict(_own_record()), stream)
    stream.flush()
    os.fsync(stream.fileno())
    unfinished.rename(directory / run_id)  # nobody sees it without its lock
    _kept.append(stream)


@contextlib.contextmanager
def abandoned(path: Path) -> Iterator[Record | None]:
    """The record whose process is gone, held against other readers meanwhile; None where that is not certain."""
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(path.open("r+"))
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not is_file_at(path, stream.fileno()):
                raise FileNotFoundError(path)
            record = Record(**json.load(stream))
        except (OSError, ValueError, TypeError):  # locked, removed by another reader, or damaged
            yield None
            return
        own = _own_record()
        is_of_this_kernel = own.kernel != "" and record.kernel == own.kernel
        yield record if is_of_this_kernel or record.machine == own.machine else None


def _own_record() -> Record:
    return Record(
        kernel=_text("/proc/sys/kernel/random/boot_id"),
        machine=f"{socket.gethostname()} {_text('/etc/machine-id')}".strip(),
        process=os.getpid(),
    )


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text().strip()
    return ""
