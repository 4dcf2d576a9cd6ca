"""Turns: a lock that one process of this machine holds at a time."""

import contextlib
import fcntl
import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from rm_assets.data.storage import is_remote, make_directory


def local_directory(path: Path) -> Path:
    """Where this machine keeps what belongs to a remote place and must be a real file, such as a lock."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "rm_assets" / hashlib.sha256(str(path).encode()).hexdigest()[:32]


@contextlib.contextmanager
def held_lock(path: Path, purpose: str, say: Callable[[str], object]) -> Iterator[None]:
    """Hold a file's `flock` meanwhile. Where another process holds it, `say` for whom this one waits, and wait.

    The kernel frees the lock when its holder dies, however it dies. The lock of a remote file is one of this machine,
    and says nothing to others.
    """
    if is_remote(path):
        path = local_directory(path.parent) / path.name
    make_directory(path.parent)
    with path.open("a+b", buffering=0) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().decode(errors="replace").strip() or "a process that gave no name"
            say(f"waiting for {path.name}, held by {holder}")
            fcntl.flock(stream, fcntl.LOCK_EX)
        stream.truncate(0)
        with contextlib.suppress(OSError):  # on a full disk it holds without its holder's name
            stream.write(f"{purpose}, process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            stream.truncate(0)
