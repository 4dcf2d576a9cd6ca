"""The work of a step in floating-point operations, and what a GPU could do: model FLOPs utilisation.

MFU (PaLM, 2204.02311, appendix B): the operations that the model's definition needs, over those that the hardware could
have done in the same time. What is computed twice, or for padding, does not count.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from rm_assets.training.adapter import base_of
from rm_assets.training.planning import MicroPlan
from rm_assets.training.store import Pairs

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bfloat16 operations per second by NVIDIA's data sheets (H100 and H200: SXM), by a part of the device's name."""


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 operations per second of a GPU, or None for one that is not known."""
    return next((peak for part, peak in PEAKS.items() if part in device_name), None)


def step_flops(model: Any, pairs: Pairs, plans: Sequence[MicroPlan]) -> float:
    """Operations of the forward and backward passes of these plans, each token of a shared prefix once.

    6 for each token and weight outside the embeddings, and 12 L A D for each token and token that it sees, with L
    layers of A heads of width D (PaLM, appendix B, but for the causal mask: there every token sees all T). Layers are
    taken to be dense, with full attention and trained whole; a mixture of experts, windows or adapters need less.
    """
    config = base_of(getattr(model, "model", model)).config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_sight = 12.0 * config.num_hidden_layers * config.num_attention_heads * width
    tokens = sights = 0
    for plan in plans:
        for branches in plan.branches:
            prefix, lengths = branches.prefix, pairs.sequences.lengths_of(branches.sequences).tolist()
            tokens += prefix + sum(length - prefix for length in lengths)
            sights += _sights(prefix) + sum(_sights(length) - _sights(prefix) for length in lengths)
    operations: float = 6 * num_dense_weights(model) * tokens + per_sight * sights
    return operations


def num_dense_weights(model: nn.Module) -> int:
    """Weights outside the embeddings, which cost no multiplication."""
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return sum(weight.numel() for weight in model.parameters() if id(weight) not in embedded)


def _sights(length: int) -> int:
    """Pairs of a token and one that it sees, itself included: 6 of 3 tokens."""
    return length * (length + 1) // 2
