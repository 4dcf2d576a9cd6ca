"""AdamW, its learning rate at each step, and the gradients as one flat vector."""

import math

import torch
from torch import Tensor, nn

from rm_assets.settings import TrainingSettings


def build_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW whose weight decay touches matrices only: no embedding, norm or bias."""
    decayed, plain = decayed_and_plain(model)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), eps=1e-8)


def decayed_and_plain(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The model's weights, each once: those that weight decay touches, and the others."""
    embedded = {
        id(weight) for module in model.modules() if isinstance(module, nn.Embedding) for weight in [module.weight]
    }
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for weight in model.parameters():
        (decayed if weight.ndim >= 2 and id(weight) not in embedded else plain).append(weight)
    return decayed, plain


def learning_rate(step: int, num_steps: int, settings: TrainingSettings) -> float:
    """The rate of step 1..num_steps: linear warm-up to the peak, then a cosine that is zero one step later.

    For 6 steps, a peak of 1 and a third of warm-up: 0.5, 1, 1, 0.854, 0.5, 0.146.
    """
    num_warmup = int(settings.warmup_fraction * num_steps)
    if step <= num_warmup:
        return settings.learning_rate * step / num_warmup
    progress = (step - 1 - num_warmup) / (num_steps - num_warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def flat_gradients(model: nn.Module, num_sums: int) -> Tensor:
    """One float32 vector [weights + num_sums] of zeros that the gradient of every weight is a view of.

    Backward adds into it, so that one all-reduce, without any copy, sums all gradients and the `num_sums`
    figures at its end. A weight that no pair reached has the gradient zero, not none, in every process.
    """
    weights = list(model.parameters())
    flat = torch.zeros(sum(weight.numel() for weight in weights) + num_sums, device=weights[0].device)
    start = 0
    for weight in weights:
        weight.grad = flat[start : start + weight.numel()].view_as(weight)
        start += weight.numel()
    return flat
