"""Sharding (FSDP2): each process holds a part of every weight, of its gradient and of AdamW's moments.

On a GPU a single process trains this way, too, so that one GPU and many compute alike. A single process on a CPU shards
nothing, and every function here leaves tensors as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from rm_assets.training.devices import trains_in_bfloat16
from rm_assets.training.loop.group import Group
from rm_assets.training.model.quantization import is_quantized


def is_sharded(group: Group) -> bool:
    """Whether this group shards the model that it trains, even over a single process."""
    return group.size > 1 or trains_in_bfloat16(group.device)


def shard(scorer: nn.Module, layers: list[nn.Module], head: list[nn.Module], group: Group) -> None:
    """Shard the weights of `scorer` in place; `layers` and `head` are modules inside it.

    Layers move to the group's device one by one, so the whole model never has to fit there. If weights are quantized,
    each process keeps all frozen ones.

    On GPUs layers compute in bfloat16 and gradients are summed in float32; the head stays float32. The shards that a
    process keeps, the master weights, are float32 everywhere.
    """
    if not is_sharded(group):
        return
    mesh = init_device_mesh(group.device.type, (group.size,))
    bfloat16 = torch.bfloat16 if trains_in_bfloat16(group.device) else None
    policy = MixedPrecisionPolicy(param_dtype=bfloat16, reduce_dtype=torch.float32)
    kept = _kept_whole(scorer, group.device)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=kept)
    for module in head:
        fully_shard(module, mesh=mesh, ignored_params=kept)
    fully_shard(scorer, mesh=mesh, mp_policy=policy, ignored_params=kept)


def _kept_whole(scorer: nn.Module, device: torch.device) -> set[nn.Parameter] | None:
    """The frozen weights if some are quantized, all on the device: codes cannot be sharded without their scales."""
    if not any(map(is_quantized, scorer.parameters())):
        return None
    frozen = {weight for weight in scorer.parameters() if not weight.requires_grad}
    for weight in frozen:
        if not is_quantized(weight):
            weight.data = weight.data.to(device)
    return frozen


def sum_gradients_at(scorer: nn.Module, last: bool) -> None:
    """Let the next backward pass sum gradients over the processes only if it is the `last` of its step."""
    if isinstance(scorer, FSDPModule):
        scorer.set_requires_gradient_sync(last)


def free_gathered_weights(scorer: nn.Module) -> None:
    """Free gathered weights: some are still gathered after a forward pass that no backward pass followed."""
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor; writing to it writes to the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor gathered from all processes, all of which must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_trained_weights(model: Any, group: Group) -> dict[str, Tensor]:
    """The trained weights of a sharded model by name, gathered on the CPU of the first process; empty in the others."""
    gathered: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            full = whole(weight.detach())
            if group.is_first:
                gathered[name] = full.cpu()
    return gathered
