"""File locks between the processes of one machine (`flock`): one writer per asset, and pins of directories being read.

The kernel releases a lock when its holder dies.
"""

import contextlib
import errno
import fcntl
import hashlib
import multiprocessing
import os
import re
import socket
import stat
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from rm_assets.data.storage.files import StorageError, is_remote, read_file
from rm_assets.data.storage.writing import make_directory

_HOLDER = re.compile(rb".+, process [0-9]+ on [^ \n]+")
_HOLDER_BYTES = 4096
_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""Errors of file systems that cannot lock directories, such as some network ones."""


def local_working_directory(path: Path) -> Path:
    """A local directory for files of `path` that must be local, such as locks: a cache directory if it is remote."""
    if not is_remote(path):
        return path
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "rm_assets" / hashlib.sha256(str(path).encode()).hexdigest()[:32]


@contextlib.contextmanager
def hold_lock(path: Path, purpose: str, log: Callable[[str], object]) -> Iterator[None]:
    """Hold the lock of a file; while another process holds it, log who that is and wait.

    The file's directory is locked too, if the file system can: someone may remove the lock file while it is held, and
    others would then create and lock another one. The lock of a remote file only excludes processes of this machine.
    The holder's name is written only into a lock file of ours: a user's file at this path, or hard-linked to it, is
    locked but not changed.

    Raises RuntimeError in a worker that is still importing the script that started it.
    """
    # Python's own check (multiprocessing.spawn) is made by those who start processes; this one would wait for ever for
    # a lock that the script holds.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "a worker process imports the script that started it, which must materialize assets only within "
            "`if __name__ == '__main__':`"
        )
    path = local_working_directory(path.parent) / path.name

    def wait() -> None:
        holder = "an unnamed process"
        with contextlib.suppress(OSError, StorageError):
            holder = read_file(path).decode(errors="replace").strip() or holder
        log(f"waiting for {path.name}, held by {holder}")

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
            with contextlib.suppress(OSError):  # disk full: the lock holds without a name
                os.write(descriptor, f"{purpose}, process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            if names_its_holder:
                os.truncate(descriptor, 0)


def _is_ours(path: Path, descriptor: int) -> bool:
    """Whether a lock file may be written to: it is empty or names a holder, and is neither a link nor hard-linked."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or path.is_symlink():
        return False
    return status.st_size == 0 or _HOLDER.fullmatch(os.pread(descriptor, _HOLDER_BYTES, 0)) is not None


def _locked(path: Path, flags: int, wait: Callable[[], None]) -> int | None:
    """Open and lock a path; None if someone removed or replaced it while we waited."""
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
    """Lock a directory, if its file system can. Raises FileNotFoundError if it is gone."""
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
    """Whether an open file is still the one at this path: a lock on a removed file excludes nobody."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _try_lock_directory(descriptor: int, mode: int) -> bool:
    """Lock an open directory unless another process excludes that; True as well if its file system has no locks."""
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


class Pin:
    """Keeps a local directory from being removed until `release` is called or the pin is garbage-collected."""

    def __init__(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)  # a FIFO would block
        self.release = weakref.finalize(self, os.close, descriptor)
        if not _try_lock_directory(descriptor, fcntl.LOCK_SH):
            raise FileNotFoundError(f"{str(directory)!r} is being removed")


def pin_directory(directory: Path) -> Pin | None:
    """Pin a directory before reading it; None if it is remote. Raises FileNotFoundError."""
    return None if is_remote(directory) else Pin(directory)


@contextlib.contextmanager
def try_exclusive_lock(directory: Path) -> Iterator[bool]:
    """Whether no process of this machine has pinned a directory; if so, none can until this context ends."""
    if is_remote(directory):
        yield True
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _try_lock_directory(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)
