"""AdamW, and its learning rate at each step."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from rm_assets.settings import TrainingSettings

RATES = ((10e6, 1e-4), (110e6, 3e-5), (0.5e9, 1e-5), (4e9, 4e-6), (8e9, 2e-6))
"""Number of weights, and a peak learning rate that is usual for it, smallest model first.

10 and 110 million: compact BERT models of 4 to 110 million were fine-tuned with 3e-5 to 3e-4 (1908.08962), BERT
base with 2e-5 to 5e-5 (1810.04805, A.3). 0.5 billion: TRL's examples/scripts/reward_modeling.py. 4 billion:
Skywork-Reward-V2 (2507.01352), which has 1e-6 to 3e-6 at 8; 8 billion: RLHFlow's llama3_rm.py and NeMo-RL.
RewardBench 2 (2506.01937) finds 2e-5 bad at 8 billion."""

LORA_FACTOR = 10.0
"""Adapters need about ten times the rate (Schulman et al., LoRA Without Regret, 2025), as in TRL's script above."""

LOWEST_LORA_RATE = 1e-4
"""Usual at 3 to 8 billion weights, too: LLaMA-Factory's llama3_lora_reward.yaml, ms-swift."""


def build_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW on the trained weights, with weight decay on matrices only: not on embeddings, norms and biases.

    `train_step` sets the learning rate of each step.
    """
    decayed, plain = decayed_and_plain(model)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.95), eps=1e-8, fused=True)


def decayed_and_plain(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The trained weights, each once: those with weight decay, and those without."""
    embedded = {
        id(weight) for module in model.modules() if isinstance(module, nn.Embedding) for weight in [module.weight]
    }
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for weight in model.parameters():
        if weight.requires_grad:
            (decayed if weight.ndim >= 2 and id(weight) not in embedded else plain).append(weight)
    return decayed, plain


def peak_learning_rate(num_parameters: int, settings: TrainingSettings) -> float:
    """The setting; if it is unset, a rate between those of RATES for a model with this many weights.

    Between two points, the logarithm of the rate is linear in that of the number of weights: 17 million give 7.7e-5,
    135 million 2.6e-5, 1.7 billion 5.8e-6. Beyond the outer points, the rate stays the same.
    """
    if settings.learning_rate is not None:
        return settings.learning_rate
    sizes, rates = np.log(RATES).T
    rate = float(np.exp(np.interp(math.log(num_parameters), sizes, rates)))
    return max(LORA_FACTOR * rate, LOWEST_LORA_RATE) if settings.lora_rank else rate


def learning_rate(step: int, num_steps: int, peak: float, warmup_fraction: float) -> float:
    """The rate of step 1..num_steps: linear warm-up below the peak, then a cosine from it to zero one step later.

    For 6 steps, a peak of 1 and a third of warm-up: 0.333, 0.667, 1, 0.854, 0.5, 0.146.
    """
    num_warmup = math.ceil(warmup_fraction * num_steps)
    if step <= num_warmup:
        return peak * step / (num_warmup + 1)
    progress = (step - 1 - num_warmup) / (num_steps - num_warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
