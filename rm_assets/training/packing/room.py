"""How many tokens a micro-batch may have, from the memory that a GPU has left: tried on a few pairs before training.

What a step takes beyond what lies there before grows with its tokens along a straight line: weights' gradients and
gathered layers whatever their number, and activations for each. Two steps of unlike size give the line.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
import torch

from rm_assets.training.packing.pair_store import Pairs
from rm_assets.training.packing.planning import MicroPlan, Packing, num_tokens, plan_rows

SHARE = 0.85
"""Of the free memory that a step may take: the rest is for what lies between its tensors, and for other lengths."""
FEW_TOKENS, MANY_TOKENS = 512, 1536
"""Of the micro-batches that are tried."""


class Memory(Protocol):
    """The memory of a device."""

    def free(self) -> int:
        """Bytes that are left."""

    def peak(self, work: Callable[[], object]) -> int:
        """The most bytes that `work` takes beyond what is taken before."""


class GpuMemory:
    """That of a GPU, as torch's allocator and the driver count it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def free(self) -> int:
        """Bytes that the driver has, and that torch keeps unused."""
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + unused

    def peak(self, work: Callable[[], object]) -> int:
        """As torch's allocator notes it."""
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) - before


def tokens_that_fit(
    step: Callable[[MicroPlan], object], pairs: Pairs, packing: Packing, memory: Memory, reserved: int
) -> float:
    """The tokens of the largest micro-batch with which a step fits; infinity where there are too few pairs to tell.

    `step` computes and forgets the gradients of a micro-batch. `reserved` bytes will be taken besides, later on.
    """
    few, many = (_plan_of(pairs, packing, tokens) for tokens in (FEW_TOKENS, MANY_TOKENS))
    more = num_tokens(pairs, many) - num_tokens(pairs, few)
    if not len(pairs) or more < FEW_TOKENS // 2:
        return float("inf")
    step(many)  # the first time takes more, for what is planned and compiled
    of_few, of_many = (memory.peak(partial(step, plan)) for plan in (few, many))
    per_token = max(1.0, (of_many - of_few) / more)
    return num_tokens(pairs, many) + (SHARE * memory.free() - reserved - of_many) / per_token


def _plan_of(pairs: Pairs, packing: Packing, tokens: int) -> MicroPlan:
    """One micro-batch of the first pairs, of about as many tokens: of padded rows only the longest of them."""
    lengths = pairs.lengths("chosen") + pairs.lengths("rejected")
    num_pairs = int(np.searchsorted(np.cumsum(lengths), tokens)) + 1
    [[plan, *_]] = plan_rows(pairs, np.arange(min(num_pairs, len(pairs))), packing, 1 << 30)
    return plan
