"""AdamW, and its learning rate at each step."""

import math

import torch
from torch import Tensor, nn

from rm_assets.settings import TrainingSettings

RATES = ((100e6, 1e-4), (1e9, 1e-5), (5e9, 4e-6), (math.inf, 2e-6))
"""Peak learning rates for models with fewer weights than the first number. Skywork-Reward-V2 (2507.01352) has 4e-6 up
to 4 billion and 1e-6 to 3e-6 at 8, NeMo-RL 2e-6, OpenRLHF 9e-6; RewardBench 2 (2506.01937) finds 2e-5 bad at 8."""

LORA_FACTOR = 10.0
"""Adapters need about ten times the rate (Schulman et al., LoRA Without Regret, 2025)."""


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
    """The setting, or if it is unset the rate of RATES for a model with this many weights."""
    if settings.learning_rate is not None:
        return settings.learning_rate
    rate = next(rate for below, rate in RATES if num_parameters < below)
    return rate * LORA_FACTOR if settings.lora_rank else rate


def learning_rate(step: int, num_steps: int, peak: float, warmup_fraction: float) -> float:
    """The rate of step 1..num_steps: linear warm-up to the peak, then a cosine that is zero one step later.

    For 6 steps, a peak of 1 and a third of warm-up: 0.5, 1, 1, 0.854, 0.5, 0.146.
    """
    num_warmup = int(warmup_fraction * num_steps)
    if step <= num_warmup:
        return peak * step / num_warmup
    progress = (step - 1 - num_warmup) / (num_steps - num_warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
