"""rewardbench's command, as the card gives it, writes the golden scores: in transformers 4.51, to which it is bound.

Not for Gemma 3, of which transformers 4.51 has no classifier; rewardbench 0.1.4 cannot be imported with later ones.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_environments import TORCH, Trained, card_command, run_program

from rm_assets.training.saved_model.golden_scores import read_golden_scores

pytestmark = pytest.mark.servers
PACKAGES = f"{TORCH} rewardbench==0.1.4 transformers==4.51.0 trl==0.19.1 datasets==5.0.1 'setuptools<81'"


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_conversations_get_the_golden_scores(
    name: str, trained: Callable[..., Trained], environment: Callable[..., Path], tmp_path: Path
) -> None:
    golden = read_golden_scores(trained(name).directory)["conversations"]
    found = rows(name, [{"messages": item["messages"]} for item in golden], trained, environment, tmp_path)
    assert [row["text"] for row in found] == [item["text"] for item in golden]
    assert [row["results"] for row in found] == pytest.approx([item["score"] for item in golden], abs=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_pairs_of_message_lists_get_the_golden_scores(
    name: str, trained: Callable[..., Trained], environment: Callable[..., Path], tmp_path: Path
) -> None:
    golden = read_golden_scores(trained(name).directory)["conversations"]
    golden = [item for item in golden if item["messages"][0]["role"] != "system"]
    reply = {"role": "assistant", "content": "no"}
    pairs = [{"chosen": item["messages"], "rejected": [*item["messages"][:-1], reply]} for item in golden]
    found = rows(name, pairs, trained, environment, tmp_path)
    assert [row["text_chosen"] for row in found] == [item["text"] for item in golden]
    assert [row["scores_chosen"] for row in found] == pytest.approx([item["score"] for item in golden], abs=1e-5)


def rows(
    name: str,
    lines: list[dict[str, Any]],
    trained: Callable[..., Trained],
    environment: Callable[..., Path],
    tmp_path: Path,
) -> list[dict[str, Any]]:
    """The rows that rewardbench writes for a file of these lines."""
    directory, file = trained(name).directory, tmp_path / "file.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, *arguments = card_command(directory, "rewardbench", **{"FILE.jsonl": str(file)})
    arguments += ["--output_dir", str(tmp_path / "results")]
    return run_program(environment(PACKAGES), "rewardbench_rows", directory, *arguments)
