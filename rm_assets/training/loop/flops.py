"""The work of a step in floating-point operations, and what a GPU could do: model FLOPs utilisation.

MFU (PaLM, 2204.02311, appendix B): the operations that the model's definition needs, over those that the hardware could
have done in the same time. What is computed twice, or for padding, does not count. Where the count would be too high,
there is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from rm_assets.training.model.adapter import base_of
from rm_assets.training.packing.pair_store import Pairs
from rm_assets.training.packing.planning import MicroPlan

PEAKS = {
    "NVIDIA A10": 125e12,  # A10 data sheet
    "NVIDIA A30": 165e12,  # A30 data sheet
    "NVIDIA A40": 149.7e12,  # A40 data sheet
    "NVIDIA A100-PCIE-40GB": 312e12,  # A100 data sheet, all of its forms
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA L20": 119.5e12,  # L20 data sheet
    "NVIDIA L4": 121e12,  # L4 data sheet: 242 with sparsity
    "NVIDIA L40": 181.05e12,  # L40 data sheet
    "NVIDIA L40S": 362.05e12,  # L40S data sheet
    "NVIDIA H20": 148e12,  # H20 data sheet
    "NVIDIA H100 PCIe": 756e12,  # H100 data sheet: 1513 with sparsity
    "NVIDIA H100 NVL": 835e12,  # H100 NVL data sheet: 1671 with sparsity
    "NVIDIA H100 80GB HBM3": 989e12,  # H100 data sheet, SXM: 1979 with sparsity
    "NVIDIA H200": 989e12,  # H200 data sheet, SXM: 1979 with sparsity
    "NVIDIA H200 NVL": 835e12,  # H200 data sheet, NVL: 1671 with sparsity
    "NVIDIA GH200 480GB": 989e12,  # GH200 data sheet: 1979 with sparsity
    "NVIDIA B200": 2250e12,  # HGX B200 data sheet: 36,000 with sparsity for eight
    "NVIDIA GeForce RTX 3090": 71e12,  # Ada architecture white paper, sums in float32: 142 with sparsity
    "NVIDIA GeForce RTX 4090": 165.2e12,  # the same: 330.4 with sparsity
    "NVIDIA GeForce RTX 5090": 209.5e12,  # RTX Blackwell architecture white paper, sums in float32: 419 with sparsity
}
"""Dense bfloat16 operations per second by NVIDIA's data sheets, by the device's full name."""

FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 operations per second of a GPU, or None for one that is not known, a part of one among them."""
    return PEAKS.get(device_name)


@dataclass(frozen=True)
class Work:
    """Operations of the forward and backward passes: for each token, and for each token and token that it sees."""

    per_token: float
    per_sight: float

    @classmethod
    def of(cls, model: Any) -> "Work":
        """6 for each weight outside the embeddings, and 12 L A D, with L layers of A heads of width D.

        As PaLM, appendix B, but for the causal mask: there every token sees all T. Layers are taken to be dense, with
        full attention, and trained whole: see `is_exact`.
        """
        config = _text_config(model)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        per_sight = 12.0 * config.num_hidden_layers * config.num_attention_heads * width
        return cls(6.0 * num_dense_weights(model), per_sight)


def step_flops(work: Work, pairs: Pairs, plans: Sequence[MicroPlan]) -> float:
    """Operations of these plans, each token of a shared prefix once."""
    tokens = sights = 0
    for plan in plans:
        for branches in plan.branches:
            prefix, lengths = branches.prefix, pairs.sequences.lengths_of(branches.sequences).tolist()
            tokens += prefix + sum(length - prefix for length in lengths)
            sights += _sights(prefix) + sum(_sights(length) - _sights(prefix) for length in lengths)
    return work.per_token * tokens + work.per_sight * sights


def is_exact(model: nn.Module, pairs: Pairs) -> bool:
    """Whether `Work` is what this model needs for sequences as long as these.

    Frozen weights take no gradient, a mixture of experts computes a part of its weights, a window hides tokens, and
    other layers than attention and dense ones count otherwise: all of these need less.
    """
    config = _text_config(model)
    facts = config.to_dict()
    kinds = set(facts.get("layer_types") or facts.get("layers_block_type") or [FULL_ATTENTION])
    window = facts.get("sliding_window") if facts.get("use_sliding_window") is not False else None
    sees_all = kinds == {FULL_ATTENTION} and "layer_types" in facts
    longest = max(int(pairs.lengths(side).max(initial=0)) for side in ("chosen", "rejected"))
    return (
        all(weight.requires_grad for weight in model.parameters())
        and not any("expert" in name and isinstance(value, int) and value > 1 for name, value in facts.items())
        and kinds <= {FULL_ATTENTION, SLIDING_ATTENTION}
        and (sees_all or not window or longest <= window)
    )


def num_dense_weights(model: nn.Module) -> int:
    """Weights outside the embeddings, which cost no multiplication."""
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return sum(weight.numel() for weight in model.parameters() if id(weight) not in embedded)


def _text_config(model: Any) -> Any:
    return base_of(getattr(model, "model", model)).config.get_text_config()


def _sights(length: int) -> int:
    """Pairs of a token and one that it sees, itself included: 6 of 3 tokens."""
    return length * (length + 1) // 2
