"""What depends on the type of a device: how it computes."""

import torch

BFLOAT16 = frozenset({"cuda"})
"""Types of devices that train in bfloat16, with kernels for sequences of varying length."""


def trains_in_bfloat16(device: torch.device) -> bool:
    """Whether models are trained in bfloat16 there; the weights that are kept are float32 everywhere."""
    return device.type in BFLOAT16
