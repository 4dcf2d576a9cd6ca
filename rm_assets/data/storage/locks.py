"""Locks of this machine: one writer at a time, and readers of a directory that is not removed meanwhile.

The kernel frees a lock when its holder dies, however it dies.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import socket
import stat
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from rm_assets.data.storage.files import StorageError, is_remote, make_directory, read_file

_HOLDER = re.compile(rb".+, process [0-9]+ on [^ \n]+")
_HOLDER_BYTES = 4096
_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What file systems say that have no locks for directories, as some network ones."""


def local_working_directory(path: Path) -> Path:
    """A local directory for files of `path` that must be local, such as locks: itself, or a cache if it is remote."""
    if not is_remote(path):
        return path
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "rm_assets" / hashlib.sha256(str(path).encode()).hexdigest()[:32]


@contextlib.contextmanager
def hold_lock(path: Path, purpose: str, say: Callable[[str], object]) -> Iterator[None]:
    """Hold a file's `flock` meanwhile. Where another process holds it, `say` for whom this one waits, and wait.

    The directory of the file is locked with it, where directories can be: a file that is removed under its holder is
    made and locked anew by others. The lock of a remote file is one of this machine, and says nothing to others.
    The holder's name is written into a file of ours alone: what else somebody keeps there, or under another name of
    the same file, is locked and stays as it is.
    """
    path = local_working_directory(path.parent) / path.name

    def wait() -> None:
        holder = "a process that gave no name"
        with contextlib.suppress(OSError, StorageError):
            holder = read_file(path).decode(errors="replace").strip() or holder
        say(f"waiting for {path.name}, held by {holder}")

    with contextlib.ExitStack() as stack:
        descriptor = None
        while descriptor is None:
            stack.close()
            make_directory(path.parent)
            with contextlib.suppress(FileNotFoundError):
                stack.enter_context(_locked_directory(path.parent, wait))
                descriptor = _locked(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, wait)
        stack.callback(os.close, descriptor)
        names_its_holder = _is_ours(path, descriptor)
        if names_its_holder:
            os.truncate(descriptor, 0)
            with contextlib.suppress(OSError):  # on a full disk it holds without its holder's name
                os.write(descriptor, f"{purpose}, process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            if names_its_holder:
                os.truncate(descriptor, 0)


def _is_ours(path: Path, descriptor: int) -> bool:
    """Whether a file can be written into: it is empty or holds a holder's name, and has no other name itself."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or path.is_symlink():
        return False
    return status.st_size == 0 or _HOLDER.fullmatch(os.pread(descriptor, _HOLDER_BYTES, 0)) is not None


def _locked(path: Path, flags: int, wait: Callable[[], None]) -> int | None:
    """A descriptor of what is at a path, locked; None where somebody removed or replaced that meanwhile."""
    descriptor = os.open(path, flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if is_file_at(path, descriptor):
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


def is_file_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one at this path: a lock on one that was removed keeps nobody away."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


class Pin:
    """Keeps others from `exclusive_lock` on a directory of this machine, until it is released or collected."""

    def __init__(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)  # no FIFO, which would wait for its writer
        self.release = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileNotFoundError(f"{str(directory)!r} is being removed") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise


def pin_directory(directory: Path) -> Pin | None:
    """A pin of a directory that is about to be read; None at remote places. Raises FileNotFoundError."""
    return None if is_remote(directory) else Pin(directory)


@contextlib.contextmanager
def try_exclusive_lock(directory: Path) -> Iterator[bool]:
    """Whether nobody on this machine has pinned a directory; if so, nobody can meanwhile."""
    if is_remote(directory):
        yield True
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)  # no FIFO, which would wait for its writer
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
