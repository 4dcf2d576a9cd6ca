"""Jobs as processes of their own, found by their command line."""

import sys
import time
from pathlib import Path

MODULE = [sys.executable, "-m", "rm_assets.training"]


def processes_with(text):
    """The ids of all processes whose command line contains a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text in path.read_bytes().decode(errors="replace"):
                found.append(int(path.parent.name))
        except OSError:  # it has just ended
            continue
    return found


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)
