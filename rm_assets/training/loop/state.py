"""What a checkpoint holds of one process: its part of the weights and of AdamW's moments, and its random states."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rm_assets.training.loop.sharding import gather_nothing, local

_RANDOM = "random"


def captured(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Tensors by name, where they lie: the next step writes to them.

    Frozen weights are left out: the base model has them.
    """
    gather_nothing(model)
    tensors = {f"{_RANDOM}.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors[f"{_RANDOM}.cuda"] = torch.cuda.get_rng_state()
    for name, weight in _trained(model):
        tensors[f"weight.{name}"] = local(weight.detach())
        for what, value in optimizer.state.get(weight, {}).items():
            tensors[f"{what}.{name}"] = local(value)
    return tensors


@torch.no_grad()
def restore(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `captured` took from an equal model and optimizer."""
    torch.set_rng_state(tensors[f"{_RANDOM}.cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[f"{_RANDOM}.cuda"])
    for name, weight in _trained(model):
        local(weight).copy_(tensors[f"weight.{name}"])
        moments = {what: torch.zeros_like(weight) for what in ("exp_avg", "exp_avg_sq")}
        for what, moment in moments.items():
            local(moment).copy_(tensors[f"{what}.{name}"])
        optimizer.state[weight] = {"step": tensors[f"step.{name}"].to(weight.device), **moments}


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
