"""OpenRLHF loads the saved directory, and our server answers its requests: both give the golden scores."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from server_environments import PROGRAMS, TORCH, Trained, card_command, golden_scores, run_program, serving

from rm_assets.training.saved_model.golden_scores import read_golden_scores
from rm_assets.training.saved_model.remote_scores import verify_server

pytestmark = pytest.mark.servers
INSTALLS = (
    f"{TORCH} transformers==5.15.0 peft==0.21.2 accelerate==1.15.0 einops==0.8.2 sympy==1.14.0 pylatexenc==2.11",
    "fastapi==0.165.0 uvicorn==0.54.0 setuptools==84.2.1 wheel packaging ninja psutil",
    "--no-build-isolation deepspeed==0.19.6",
    "--no-build-isolation --no-deps flash-attn==2.8.3",
    "--no-deps openrlhf==0.11.2",
)
"""What its loader and server import, in the versions that OpenRLHF 0.11.2 names; the rest is for training on GPUs."""
NAMES = ["qwen3", "llama", "gemma3_text"]


@pytest.mark.parametrize("name", NAMES)
def test_its_reward_model_gives_the_golden_scores_and_differs_in_bfloat16_as_the_card_says(
    name: str, trained: Callable[..., Trained], environment: Callable[..., Path]
) -> None:
    directory = trained(name).directory
    found = run_program(environment(*INSTALLS), "openrlhf_scores", directory)
    assert found["float32"] == pytest.approx(golden_scores(directory), abs=1e-5)
    assert found["bfloat16"] == pytest.approx(golden_scores(directory), abs=twice_the_bfloat16_difference(directory))
    assert found["bfloat16"] != pytest.approx(golden_scores(directory), abs=1e-5)


def test_its_server_as_the_card_starts_it_gives_the_scores_in_bfloat16(
    trained: Callable[..., Trained], environment: Callable[..., Path], tmp_path: Path
) -> None:
    directory, python = trained("llama").directory, environment(*INSTALLS)
    _, _, *module = card_command(directory, "python -m openrlhf")
    command = [python, PROGRAMS / "openrlhf_module.py", *module, "--ds.attn_implementation", "sdpa"]
    with serving(command, tmp_path / "log") as url:
        verified = verify_server(directory, url, twice_the_bfloat16_difference(directory))
    assert "verified by /get_reward" in verified


def test_our_server_as_the_card_starts_it_answers_its_requests_and_is_verified(
    trained: Callable[..., Trained], tmp_path: Path
) -> None:
    directory = trained("llama").directory
    _, *serve = card_command(directory, "python -m rm_assets.training.serve")
    with serving([sys.executable, *serve], tmp_path / "log") as url:
        _, *verify = card_command(directory, "python -m rm_assets.training.score", **{"http://localhost:5000": url})
        done = subprocess.run([sys.executable, *verify], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "golden scores verified" in done.stdout + done.stderr


def twice_the_bfloat16_difference(directory: Path) -> float:
    """What the card says to expect of other kernels."""
    return 2 * read_golden_scores(directory)["largest_bfloat16_difference"]
