"""TRL's GRPOTrainer takes the saved directory as its reward, and gives the golden scores."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from server_environments import Trained

from rm_assets.training.saved_model.golden_scores import read_golden_scores

pytestmark = pytest.mark.servers


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_grpo_trains_a_policy_with_the_golden_scores_as_its_reward(
    name: str, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    directory = trained(name).directory
    prompts = [{"prompt": [{"role": "user", "content": f"Question {number}?"}]} for number in range(4)]
    sizes = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 8, "max_steps": 1}
    trainer = GRPOTrainer(
        model=str(directory.parents[1] / "base"),
        reward_funcs=str(directory),
        args=GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **sizes),
        train_dataset=Dataset.from_list(prompts),
    )
    given = copy.deepcopy(read_golden_scores(directory)["conversations"])
    openings = [item["messages"][:-1] for item in given]
    replies = [item["messages"][-1:] for item in given]
    rows = [{"prompt": opening} for opening in openings]
    found = trainer._calculate_rewards(rows, openings, replies, [[]] * len(given))[:, 0]
    assert found.tolist() == pytest.approx([item["score"] for item in given], abs=1e-5)
    assert trainer.train().global_step == 1
