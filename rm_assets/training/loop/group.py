"""The process group of a training job: rank, device, and sums over all processes."""

import os
import resource
import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from rm_assets.training.devices import prepare, trains_in_bfloat16
from rm_assets.training.jobs.training_job import TrainingError


@dataclass(frozen=True)
class Group:
    """This process's rank, the number of processes, and the device it computes on."""

    rank: int
    size: int
    device: torch.device
    connections: Any = None  # torch's process group; None: the default one

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over all processes."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor, group=self.connections)

    @property
    def local_size(self) -> int:
        """Number of the group's processes on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.size))

    def new_cpu_group(self) -> "Group":
        """A second group of the same processes, on CPUs, for use in another thread; every process must call this."""
        connected = torch.distributed.new_group(backend="gloo", timeout=TIMEOUT) if self.size > 1 else None
        return replace(self, device=torch.device("cpu"), connections=connected)

    def wait(self) -> None:
        """Wait until every process has called this."""
        token = torch.zeros(1, device=self.device)
        self.all_reduce(token)
        token.item()  # on a GPU the sum is only queued until it is read


def peak_memory(group: Group) -> int:
    """Peak memory in bytes: allocated on this process's GPU, or of the process itself without one."""
    if group.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(group.device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


SINGLE_PROCESS = Group(rank=0, size=1, device=torch.device("cpu"))

TIMEOUT = timedelta(hours=2)
"""Timeout of collectives: long, because the other processes wait while the first one writes the pair store, tests
packings and saves the model."""


def join_group() -> Group:
    """The group that torchrun's environment describes, or a group of one.

    Raises TrainingError if this machine has GPUs, but not one for each process.
    """
    rank, size, local_rank = (int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    if not torch.cuda.is_available():
        device = torch.device("cpu")
    elif local_rank < torch.cuda.device_count():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        num_gpus = torch.cuda.device_count()
        raise TrainingError(f"local rank {local_rank!r} has no GPU: this machine has {num_gpus}; lower num_processes")
    prepare()
    if size > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // Group(rank, size, device).local_size))
        _connect(device)
    elif trains_in_bfloat16(device):  # FSDP2 needs a process group on a single GPU, too
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        _connect(device, store=store, rank=0, world_size=1)
    return Group(rank, size, device)


def _connect(device: torch.device, **rendezvous: Any) -> None:
    backend = "nccl" if device.type == "cuda" and torch.distributed.is_nccl_available() else "gloo"
    bound = device if backend == "nccl" else None
    torch.distributed.init_process_group(backend, timeout=TIMEOUT, device_id=bound, **rendezvous)


def leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
