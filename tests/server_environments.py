"""Programs of tests/servers, run in virtual environments of their own."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.data.tables.schemas import Stage

PROGRAMS = Path(__file__).parent / "servers" / "programs"
TORCH = "torch==2.13.0"


class Trained(NamedTuple):
    """A model directory, and the snapshots that it was made from."""

    directory: Path
    stages: dict[Stage, Snapshot]


def make_environment(home: Path, *packages: str) -> Path:
    """The Python of a virtual environment with these packages, made below `home` unless it is there."""
    directory = home / hashlib.sha256(repr([sys.version, packages]).encode()).hexdigest()[:16]
    python, finished = directory / "bin" / "python", directory / "finished"
    if not finished.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        finished.touch()
    return python


def variables() -> dict[str, str]:
    """The variables of a program's process: nothing from the Hub, and little of the machine."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    few = {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    return kept | few | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def run_program(python: Path, name: str, *arguments: object) -> Any:
    """The JSON that a program of `programs/` prints as its result, run by another environment's Python."""
    command = [python, PROGRAMS / f"{name}.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables())
    assert done.returncode == 0, done.stderr[-3000:]
    [result] = re.findall(r"^result: (.*)$", done.stdout, re.MULTILINE)
    return json.loads(result)
