"""Scoring with a model that does not fit into a GPU: each layer is on the GPU only while it computes.

What was trained over a base in 4 bits, or sharded over many GPUs, is saved in full, so it may be several times as large
as what the GPU held before.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rm_assets.training.model.layers import decoder_layers
from rm_assets.training.packing.micro_batch_size import GpuMemory

SHARE = 0.8
"""Share of the free memory that weights may take: the rest is for activations."""


def move_to(model: Any, device: torch.device) -> str:
    """Move a stock classifier to a device for scoring, but for its layers if it does not fit into a GPU's free memory.

    Layers that stay in host memory are copied there for each forward pass; rounding them in place still works.
    Returns a sentence about them for the log, or "" if the whole model was moved.
    """
    size, free = sum(weight.nbytes for weight in model.parameters()), _free_memory(device)
    if size <= SHARE * free:
        model.to(device)
        return ""
    layers = decoder_layers(model)
    staying = {id(tensor) for tensor in _tensors(layers)}
    for tensor in _tensors([model]):
        if id(tensor) not in staying:
            tensor.data = tensor.data.to(device, copy=True)
    for layer in layers:
        _copy_during_forward(layer, device)
    return (
        f"the saved model takes {size / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free on the GPU: its layers stay in "
        "host memory, and each is copied to the GPU while it computes, which is slower"
    )


def _free_memory(device: torch.device) -> float:
    return GpuMemory(device).free() if device.type == "cuda" else float("inf")


def _tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [tensor for module in modules for tensor in itertools.chain(module.parameters(), module.buffers())]


def _copy_during_forward(layer: nn.Module, device: torch.device) -> None:
    kept: list[tuple[Tensor, Tensor]] = []

    def copy_in(*_: Any) -> None:
        for tensor in _tensors([layer]):
            kept.append((tensor, tensor.data))
            tensor.data = tensor.data.to(device, copy=True)

    def put_back(*_: Any) -> None:
        while kept:
            tensor, data = kept.pop()
            tensor.data = data

    layer.register_forward_pre_hook(copy_in)
    layer.register_forward_hook(put_back, always_call=True)
