"""What depends on the device type: precision, transfers, and errors."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")

BFLOAT16 = frozenset({"cuda"})
"""Device types that train in bfloat16, with kernels for sequences of varying length."""

_FAILURES = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError, torch.distributed.DistError)
_OUT_OF_MEMORY = re.compile("out of memory|allocate memory|bad_alloc|alloc_failed", re.IGNORECASE)
_FAILURE = re.compile(
    r"(cuda|hip|nvrtc|cudnn|cublas|nccl|triton)( driver| runtime)? error|cu(blas|dnn|solver)_status|cudnn_frontend"
    r"|device-side assert|allocate memory",
    re.IGNORECASE,
)


def trains_in_bfloat16(device: torch.device) -> bool:
    """Whether models are trained in bfloat16 there; master weights are float32 everywhere."""
    return device.type in BFLOAT16


def prepare() -> None:
    """Turn off cuDNN's attention, which plans for a second for every new shape."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; the copy to a GPU is asynchronous, so nothing waits for earlier work of the GPU."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def copy_to_host(tensors: Mapping[str, Tensor], copies: dict[str, Tensor], device: torch.device) -> None:
    """Copy the tensors to host memory, into the copies of an earlier call if there are some of the same names.

    A GPU writes to pinned memory several times as fast as to other memory.
    """
    pinned = device.type == "cuda"
    for name, tensor in tensors.items():
        if name not in copies:
            copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        copies[name].copy_(tensor, non_blocking=True)
    if pinned:
        torch.cuda.synchronize(device)


def bytes_of_copies(tensors: Mapping[str, Tensor], device: torch.device) -> int:
    """Bytes that `copy_to_host` allocates; torch rounds pinned memory up to powers of two."""
    sizes = [tensor.nbytes for tensor in tensors.values()]
    return sum(1 << max(0, size - 1).bit_length() for size in sizes) if device.type == "cuda" else sum(sizes)


def prefetch(work: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> Iterator[Result]:
    """The results of `work` in order; with a GPU, a thread computes each one while the previous one is in use.

    On a CPU that would gain nothing.
    """
    if device.type != "cuda":
        yield from map(work, items)
        return
    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,)) as thread:
        yield from _prefetch(work, items, thread)


def _prefetch(work: Callable[[Item], Result], items: Iterable[Item], thread: Executor) -> Iterator[Result]:
    before: Future[Result] | None = None
    for item in items:
        following = thread.submit(work, item)
        if before is not None:
            yield before.result()
        before = following
    if before is not None:
        yield before.result()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the device or of the machine was not enough; torch has several error classes for that."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bool(_OUT_OF_MEMORY.search(str(error)))


def is_device_failure(error: BaseException | None) -> bool:
    """Whether memory, driver, hardware or network failed, now or as the cause, so that this process cannot continue.

    Not every library has an error class for it; the others are recognized by their messages.
    """
    if error is None:
        return False
    return isinstance(error, _FAILURES) or bool(_FAILURE.search(str(error))) or is_device_failure(error.__cause__)
