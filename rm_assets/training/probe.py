"""Which way of laying sequences into rows a model computes exactly, found by trying before training."""

from dataclasses import dataclass
from typing import Any

import torch

from rm_assets.training.planning import Packing
from rm_assets.training.store import Pairs


@dataclass(frozen=True)
class Choice:
    """The packing in use, and a sentence that says why."""

    packing: Packing
    reason: str


def choose_packing(model: Any, pairs: Pairs, device: torch.device) -> Choice:
    """The fastest packing that gives the rewards and gradients of the plain forward pass; sets the model to it.

    Leaves weights, gradients and random state as they were. Until a model is probed, it is taken as padded.
    """
    return Choice(Packing.PADDED, "padded rows: the model is not probed")
