"""Locks of this machine: one writer at a time, and readers of a directory that is not removed meanwhile.

The kernel frees a lock when its holder dies, however it dies.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import socket
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from rm_assets.data.storage import is_remote, make_directory

_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What file systems say that have no locks for directories, as some network ones."""


def local_directory(path: Path) -> Path:
    """Where this machine keeps what belongs to a remote place and must be a real file, such as a lock."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "rm_assets" / hashlib.sha256(str(path).encode()).hexdigest()[:32]


@contextlib.contextmanager
def held_lock(path: Path, purpose: str, say: Callable[[str], object]) -> Iterator[None]:
    """Hold a file's `flock` meanwhile. Where another process holds it, `say` for whom this one waits, and wait.

    The directory of the file is locked with it, where directories can be: a file that is removed under its holder is
    made and locked anew by others. The lock of a remote file is one of this machine, and says nothing to others.
    """
    if is_remote(path):
        path = local_directory(path.parent) / path.name

    def wait() -> None:
        holder = "a process that gave no name"
        with contextlib.suppress(OSError):
            holder = path.read_text(errors="replace").strip() or holder
        say(f"waiting for {path.name}, held by {holder}")

    with contextlib.ExitStack() as stack:
        descriptor = None
        while descriptor is None:
            stack.close()
            make_directory(path.parent)
            with contextlib.suppress(FileNotFoundError):
                stack.enter_context(_locked_directory(path.parent, wait))
                descriptor = _locked(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, wait)
        stream = stack.enter_context(os.fdopen(descriptor, "r+b", buffering=0))
        stream.truncate(0)
        with contextlib.suppress(OSError):  # on a full disk it holds without its holder's name
            stream.write(f"{purpose}, process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            stream.truncate(0)


def _locked(path: Path, flags: int, wait: Callable[[], None]) -> int | None:
    """A descriptor of what is at a path, locked; None where somebody removed or replaced that meanwhile."""
    descriptor = os.open(path, flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if is_at(path, descriptor):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@contextlib.contextmanager
def _locked_directory(directory: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a directory; without one on file systems that lock no directories. Raises FileNotFoundError."""
    with contextlib.ExitStack() as stack:
        try:
            descriptor = _locked(directory, os.O_RDONLY, wait)
            if descriptor is None:
                raise FileNotFoundError(directory)
            stack.callback(os.close, descriptor)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one at this path: a lock on one that was removed keeps nobody away."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


class Pin:
    """Keeps others from `exclusive_lock` on a directory of this machine, until it is released or collected."""

    def __init__(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY)
        self.release = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileNotFoundError(f"{str(directory)!r} is being removed") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise


def pinned(directory: Path) -> Pin | None:
    """A pin of a directory that is about to be read; None at remote places. Raises FileNotFoundError."""
    return None if is_remote(directory) else Pin(directory)


@contextlib.contextmanager
def exclusive_lock(directory: Path) -> Iterator[bool]:
    """Whether nobody on this machine has pinned a directory; if so, nobody can meanwhile."""
    if is_remote(directory):
        yield True
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = True
        except BlockingIOError:
            is_free = False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            is_free = True
        yield is_free
    finally:
        os.close(descriptor)
