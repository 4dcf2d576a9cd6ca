"""Programs of tests/servers and commands of the model card, run in virtual environments of their own."""

import hashlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.training.saved_model.golden_scores import read_golden_scores

PROGRAMS = Path(__file__).parent / "servers" / "programs"
TORCH = "torch==2.13.0"
START_SECONDS = 600
STOP_SECONDS = 120
_BUILD = {"FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE", "FLASH_ATTENTION_FORCE_BUILD": "TRUE"}
"""flash-attn is built here without its CUDA kernels, and not downloaded with them."""


class Trained(NamedTuple):
    """A model directory, and the snapshots that it was made from."""

    directory: Path
    stages: dict[Stage, Snapshot]


def make_environment(home: Path, *installs: str) -> Path:
    """The Python of a virtual environment, made below `home` unless it is there; `installs`: what each pip installs."""
    directory = home / hashlib.sha256(repr([sys.version, installs]).encode()).hexdigest()[:16]
    python, finished = directory / "bin" / "python", directory / "finished"
    if not finished.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
        for arguments in map(shlex.split, installs):
            install = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
            subprocess.run([*install, *arguments], check=True, env=os.environ | _BUILD)
        finished.touch()
    return python


def variables() -> dict[str, str]:
    """The variables of a program's process: nothing from the Hub, and little of the machine."""
    left = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")  # modules are compiled when they are first imported
    kept = {name: value for name, value in os.environ.items() if name not in left}
    few = {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    return kept | few | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def run_program(python: Path, name: str, *arguments: object) -> Any:
    """The JSON that a program of `programs/` prints as its result, run by another environment's Python."""
    command = [python, PROGRAMS / f"{name}.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables())
    assert done.returncode == 0, done.stderr[-3000:]
    [result] = re.findall(r"^result: (.*)$", done.stdout, re.MULTILINE)
    return json.loads(result)


def golden_scores(directory: Path) -> list[float]:
    """The scores of a model directory's golden conversations."""
    return [item["score"] for item in read_golden_scores(directory)["conversations"]]


# --- commands of the model card ------------------------------------------------------------------------------


def card_command(directory: Path, beginning: str, **words: str) -> list[str]:
    """The words of the model card's only command that begins so, with the directory, and with `words` replaced."""
    card = (directory / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", card, re.DOTALL)
    commands = [command for block in blocks for command in re.split(r"\n(?=\S)", block)]
    [command] = [command for command in commands if command.startswith(beginning)]
    for word, replacement in ({"DIRECTORY": str(directory)} | words).items():
        command = command.replace(word, replacement)
    return shlex.split(command)


@contextmanager
def serving(command: list[Any], log: Path) -> Iterator[str]:
    """The address of the server that a command starts, with a free port, once it answers; the server ends with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [*command, "--host", "127.0.0.1", "--port", port]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=variables()) as process:
        try:
            url, until = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
            while not _is_ready(url):
                assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
                time.sleep(1)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _is_ready(url: str) -> bool:
    """Whether a server is ready; OpenRLHF's has no page `/health`, and opens its port when it is."""
    try:
        return bool(urllib.request.urlopen(f"{url}/health", timeout=5).status == 200)
    except urllib.error.HTTPError as error:
        return error.code == 404
    except (urllib.error.URLError, OSError):
        return False
