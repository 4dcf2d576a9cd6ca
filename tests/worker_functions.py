"""What other processes are asked to do in tests: spawned ones must be able to import it."""

import os
from pathlib import Path


def write_own_number(directory: Path) -> None:
    (directory / str(os.getpid())).touch()


def own_number(_: int) -> int:
    return os.getpid()


def has_torch(_: int) -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True
