"""How many tokens a micro-batch may have in the free memory of a GPU, measured on a few pairs before training.

The memory of a step is linear in its tokens: a constant for the weights' gradients and gathered layers, and activations
for each token. Two steps of different size give the line.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
import torch

from rm_assets.settings import TrainingSettings
from rm_assets.training.packing.pairs import Pairs
from rm_assets.training.packing.planning import MicroPlan, Packing, num_tokens, plan_rows

SHARE = 0.85
"""Share of the free memory that a step may take: the rest is for fragmentation and other sequence lengths."""
FEW_TOKENS, MANY_TOKENS = 512, 1536
"""Sizes of the two measured micro-batches."""


GPU_TOKENS, CPU_TOKENS = 8192, 2048
"""Default sizes. Activations take 1.4 MB per token in a model of 135 million weights in float32, and a CPU computes
rows of 2048 tokens as fast as longer ones."""


def micro_batch_tokens(settings: TrainingSettings, device: torch.device) -> int:
    """The most tokens of a micro-batch on this device: the setting, or its default."""
    return settings.micro_batch_tokens or (GPU_TOKENS if device.type == "cuda" else CPU_TOKENS)


class Memory(Protocol):
    """The memory of a device."""

    def free(self) -> int:
        """Free bytes."""

    def peak(self, work: Callable[[], object]) -> int:
        """The peak bytes of `work` beyond those in use before."""


class GpuMemory:
    """The memory of a GPU, as torch's allocator and the driver count it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def free(self) -> int:
        """Bytes that the driver has, and those that torch's allocator holds unused."""
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + unused

    def peak(self, work: Callable[[], object]) -> int:
        """The peak of torch's allocator."""
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) - before


def largest_micro_batch(
    step: Callable[[MicroPlan], object], pairs: Pairs, packing: Packing, memory: Memory, reserved: int
) -> float:
    """The tokens of the largest micro-batch that fits; infinity if there are too few pairs to measure.

    `step` computes the gradients of a micro-batch and discards them. `reserved` bytes will be needed later.
    """
    few, many = (_plan_of(pairs, packing, tokens) for tokens in (FEW_TOKENS, MANY_TOKENS))
    more = num_tokens(pairs, many) - num_tokens(pairs, few)
    if not len(pairs) or more < FEW_TOKENS // 2:
        return float("inf")
    step(many)  # the first step takes more, for planning and compilation
    few_bytes, many_bytes = (memory.peak(partial(step, plan)) for plan in (few, many))
    per_token = max(1.0, (many_bytes - few_bytes) / more)
    return num_tokens(pairs, many) + (SHARE * memory.free() - reserved - many_bytes) / per_token


def _plan_of(pairs: Pairs, packing: Packing, tokens: int) -> MicroPlan:
    """One micro-batch of the first pairs, of about as many tokens; if padded, the one with the longest pairs."""
    lengths = pairs.lengths("chosen") + pairs.lengths("rejected")
    num_pairs = int(np.searchsorted(np.cumsum(lengths), tokens)) + 1
    [[plan, *_]] = plan_rows(pairs, np.arange(min(num_pairs, len(pairs))), packing, 1 << 30)
    return plan
