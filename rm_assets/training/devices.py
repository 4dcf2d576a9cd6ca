"""What depends on the type of a device: how it computes, and how it fails."""

import re

import torch
import torch.distributed

BFLOAT16 = frozenset({"cuda"})
"""Types of devices that train in bfloat16, with kernels for sequences of varying length."""

_FAILURES = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError, torch.distributed.DistError)
_FAILURE = re.compile(
    r"(cuda|hip|nvrtc|cudnn|cublas|nccl|triton)( driver| runtime)? error|cu(blas|dnn|solver)_status|cudnn_frontend"
    r"|device-side assert|allocate memory",
    re.IGNORECASE,
)


def trains_in_bfloat16(device: torch.device) -> bool:
    """Whether models are trained in bfloat16 there; the weights that are kept are float32 everywhere."""
    return device.type in BFLOAT16


def prepare() -> None:
    """What this process's attention needs on a GPU: without cuDNN, which plans a second for every new shape."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def is_device_failure(error: BaseException | None) -> bool:
    """Whether memory, driver, hardware or network failed, now or as the cause: whatever the model, the process is lost.

    Not every library has a class for it; the others are known by their words.
    """
    if error is None:
        return False
    return isinstance(error, _FAILURES) or bool(_FAILURE.search(str(error))) or is_device_failure(error.__cause__)
