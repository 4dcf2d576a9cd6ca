"""What depends on the type of a device: how it computes, how it is fed, and how it fails."""

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")

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


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; to a GPU it is still on its way, so that nothing waits for what the GPU does before."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def one_ahead(work: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> Iterator[Result]:
    """The results of `work` in order; with a GPU each is made in a thread while the one before is in use.

    A CPU has no time to spare meanwhile.
    """
    if device.type != "cuda":
        yield from map(work, items)
        return
    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,)) as thread:
        yield from _one_ahead(work, items, thread)


def _one_ahead(work: Callable[[Item], Result], items: Iterable[Item], thread: Executor) -> Iterator[Result]:
    before: Future[Result] | None = None
    for item in items:
        following = thread.submit(work, item)
        if before is not None:
            yield before.result()
        before = following
    if before is not None:
        yield before.result()


def is_device_failure(error: BaseException | None) -> bool:
    """Whether memory, driver, hardware or network failed, now or as the cause: whatever the model, the process is lost.

    Not every library has a class for it; the others are known by their words.
    """
    if error is None:
        return False
    return isinstance(error, _FAILURES) or bool(_FAILURE.search(str(error))) or is_device_failure(error.__cause__)
