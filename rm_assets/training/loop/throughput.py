"""Speed of a training: pairs and tokens per second, what sharing prompts saved, and model FLOPs utilization (MFU).

Tokens are counted from the plans of all processes. MFU (PaLM, 2204.02311, appendix B) is the operations that the
model's definition needs over those that the hardware could have done in the same time. Recomputation and padding do not
count. Where the count would be too high, no MFU is reported.
"""

import operator
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from torch import nn

from rm_assets.training.model.adapter import base_of
from rm_assets.training.packing.pairs import Pairs
from rm_assets.training.packing.planning import MicroPlan, Packing, Rows, num_tokens


@dataclass(frozen=True)
class Tally:
    """Pairs, the tokens of both their sides, those of them that were computed, and all computed ones with padding.

    `operations` are floating-point operations, 0 where MFU is not computed.
    """

    pairs: int = 0
    pair_tokens: int = 0
    real_tokens: int = 0
    computed_tokens: int = 0
    operations: float = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*map(operator.add, astuple(self), astuple(other)))

    def figures(self, seconds: float, peak_flops: float | None = None) -> dict[str, float]:
        """Speeds, and shares between 0 and 1.

        `tokens_per_second` counts the tokens of both sides of every pair, shared or not; `saved_by_sharing` is the
        share of these that were not computed, `padding` that of padding in what was. `mfu` compares the operations
        with the peak of all GPUs, where that is known.
        """
        figures = {
            "pairs_per_second": self.pairs / seconds,
            "tokens_per_second": self.pair_tokens / seconds,
            "saved_by_sharing": 1 - self.real_tokens / self.pair_tokens,
            "padding": 1 - self.real_tokens / self.computed_tokens,
        }
        return figures | ({"mfu": self.operations / seconds / peak_flops} if peak_flops else {})


def tally_step(pairs: Pairs, rows: Rows, plans: Sequence[Sequence[MicroPlan]], operations: float = 0.0) -> Tally:
    """The tally of a step from its rows, the plans of every process and the operations of all of them."""
    sides = (pairs.chosen[rows], pairs.rejected[rows])
    every = [plan for process_plans in plans for plan in process_plans]
    computed = [num_tokens(pairs, plan) for plan in every]
    return Tally(
        pairs=len(rows),
        pair_tokens=sum(int(pairs.sequences.lengths_of(side).sum()) for side in sides),
        real_tokens=sum(_real_tokens(pairs, plan, tokens) for plan, tokens in zip(every, computed, strict=True)),
        computed_tokens=sum(computed),
        operations=operations,
    )


def _real_tokens(pairs: Pairs, plan: MicroPlan, computed: int) -> int:
    if not plan.branches:
        return 0
    if plan.packing is not Packing.PADDED:
        return computed
    return sum(int(pairs.sequences.lengths_of(branches.sequences).sum()) for branches in plan.branches)


# --- model FLOPs utilization ---------------------------------------------------------------------------------


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
    """Dense bfloat16 operations per second of a GPU, or None for one that is not listed, such as a MIG slice."""
    return PEAKS.get(device_name)


@dataclass(frozen=True)
class ModelFlops:
    """Operations of the forward and backward passes, per token and per attended pair: a token and one it attends to."""

    per_token: float
    per_attended: float

    @classmethod
    def of(cls, model: Any) -> "ModelFlops":
        """6 for each weight outside the embeddings, and 12 L A D, with L layers of A heads of width D.

        As PaLM, appendix B, but with the causal mask: there every token attends to all T. Assumes dense layers with
        full attention, all trained: see `is_exact`.
        """
        config = _text_config(model)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        per_attended = 12.0 * config.num_hidden_layers * config.num_attention_heads * width
        return cls(6.0 * num_dense_weights(model), per_attended)


def step_flops(flops: ModelFlops, pairs: Pairs, plans: Sequence[MicroPlan]) -> float:
    """Operations of these plans, each token of a shared prefix once."""
    computed = num_attended = 0
    for plan in plans:
        for branches in plan.branches:
            prefix, lengths = branches.prefix, pairs.sequences.lengths_of(branches.sequences).tolist()
            computed += prefix + sum(length - prefix for length in lengths)
            shared = _attended_pairs(prefix)
            num_attended += shared + sum(_attended_pairs(length) - shared for length in lengths)
    return flops.per_token * computed + flops.per_attended * num_attended


def is_exact(model: nn.Module, pairs: Pairs) -> bool:
    """Whether `ModelFlops` is exactly what this model needs for sequences as long as these.

    Frozen weights have no gradient, a mixture of experts uses part of its weights, a window hides tokens, and layers
    other than attention and dense ones cost something else: all of these need less.
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
    """Number of weights outside the embeddings, which cost no multiplication."""
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return sum(weight.numel() for weight in model.parameters() if id(weight) not in embedded)


def _text_config(model: Any) -> Any:
    return base_of(getattr(model, "model", model)).config.get_text_config()


def _attended_pairs(length: int) -> int:
    """Pairs of a token and one it attends to, itself included: 6 for 3 tokens."""
    return length * (length + 1) // 2
