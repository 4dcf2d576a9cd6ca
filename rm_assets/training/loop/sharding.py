"""Weights spread over processes: each holds a part of every weight, of its gradient and of its moments (FSDP2).

On a GPU that is also how a single process trains, so that one GPU and many compute alike. A single process on a CPU
spreads nothing, and every function here leaves tensors as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from rm_assets.training.devices import trains_in_bfloat16
from rm_assets.training.loop.group import Group


def is_spread(group: Group) -> bool:
    """Whether a model that this group trains is spread, be it over one process."""
    return group.size > 1 or trains_in_bfloat16(group.device)


def shard(scorer: nn.Module, layers: list[nn.Module], head: nn.Module, group: Group) -> None:
    """Spread the weights of `scorer` in place, layer by layer; the layers and the head are modules of it.

    Each layer goes to the group's device when its turn comes, so that the whole model never has to fit there.

    On GPUs a layer's weights are gathered and computed with in bfloat16, gradients are summed in float32; the head
    stays float32. The parts that a process keeps, the master weights, are float32 everywhere.
    """
    if not is_spread(group):
        return
    mesh = init_device_mesh(group.device.type, (group.size,))
    bfloat16 = torch.bfloat16 if trains_in_bfloat16(group.device) else None
    policy = MixedPrecisionPolicy(param_dtype=bfloat16, reduce_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(head, mesh=mesh)
    fully_shard(scorer, mesh=mesh, mp_policy=policy)


def sum_gradients_at(scorer: nn.Module, last: bool) -> None:
    """Whether the next backward pass ends a step: only then are gradients summed over the processes."""
    if isinstance(scorer, FSDPModule):
        scorer.set_requires_gradient_sync(last)


def gather_nothing(scorer: nn.Module) -> None:
    """Let every weight be its part again: after a forward pass without a backward pass some are still whole."""
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; writing to it writes to the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor gathered from all processes, all of which must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: Any, group: Group) -> dict[str, Tensor]:
    """The state dict of a spread model, gathered on the CPU of the first process; empty in the others."""
    gathered: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        full = whole(tensor)
        if group.is_first:
            gathered[name] = full.cpu()
    return gathered
