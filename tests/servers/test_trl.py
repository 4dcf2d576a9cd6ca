"""TRL takes the saved directory: GRPOTrainer as its reward, RewardTrainer to train it further. Both score alike."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from server_environments import Trained, golden_scores
from servers.programs.golden import card_code

from rm_assets.training.saved_model.golden_scores import read_golden_scores

pytestmark = pytest.mark.servers
NAMES = ["qwen3", "llama", "gemma3_text"]


@pytest.mark.parametrize("name", NAMES)
def test_grpo_trains_a_policy_with_the_golden_scores_as_its_reward(
    name: str, trained: Callable[..., Trained], tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import GRPOConfig

    directory = trained(name).directory
    prompts = [{"prompt": [{"role": "user", "content": f"Question {number}?"}]} for number in range(4)]
    sizes = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 8, "max_steps": 1}
    names = {
        "policy": str(directory.parents[1] / "base"),
        "directory": str(directory),
        "prompts": Dataset.from_list(prompts),
        "args": GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **sizes),
    }
    exec(card_code(directory, "GRPOTrainer").replace("GRPOTrainer(", "GRPOTrainer(args=args, "), names)
    trainer = names["trainer"]
    given = copy.deepcopy(read_golden_scores(directory)["conversations"])
    openings = [item["messages"][:-1] for item in given]
    replies = [item["messages"][-1:] for item in given]
    rows = [{"prompt": opening} for opening in openings]
    found = trainer._calculate_rewards(rows, openings, replies, [[]] * len(given))[:, 0]
    assert found.tolist() == pytest.approx([item["score"] for item in given], abs=1e-5)
    assert trainer.train().global_step == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_reward_trainer_evaluates_to_the_golden_scores_and_trains_on_from_them(
    name: str, trained: Callable[..., Trained], tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    directory = trained(name).directory
    ids = [item["ids"] for item in read_golden_scores(directory)["conversations"]]
    pairs = Dataset.from_list([{"chosen_ids": a, "rejected_ids": b} for a, b in zip(ids[::2], ids[1::2], strict=True)])
    sizes: dict[str, Any] = {"per_device_train_batch_size": len(pairs), "per_device_eval_batch_size": 1}
    trainer = RewardTrainer(
        model=str(directory),
        args=RewardConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], max_steps=3, logging_steps=1, **sizes
        ),
        train_dataset=pairs,
        eval_dataset=pairs,
    )
    expected = torch.tensor(golden_scores(directory)).view(-1, 2)
    found = torch.from_numpy(trainer.predict(pairs).predictions).view(-1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    loss = -torch.nn.functional.logsigmoid(expected[:, 0] - expected[:, 1]).mean().item()
    evaluated = trainer.evaluate()
    assert evaluated["eval_loss"] == pytest.approx(loss, abs=1e-5)
    assert evaluated["eval_mean_reward"] == pytest.approx(expected.mean().item(), abs=1e-5)
    trainer.train()
    losses = [step["loss"] for step in trainer.state.log_history if "loss" in step]
    assert losses[0] == pytest.approx(loss, abs=1e-5)
    assert losses[0] > losses[1] > losses[2]
