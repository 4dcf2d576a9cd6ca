"""The points at which training can stop when asked, also within a step or a long validation.

Until the optimizer's update, the weights are those of the last finished step: that step is saved, and the gradients of
the unfinished one are discarded. All processes must leave at the same point, because they compute a step together.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rm_assets.training.loop.group import Group
from rm_assets.training.processes.signals import Stop

MAX_QUEUED = 2
"""Micro-batches that may be queued on a GPU. More would gain nothing, and leaving would wait for all of them."""


class StepAbandonedError(Exception):
    """Every process has left an unfinished step or validation, because one of them was asked to stop."""


class StopPoints:
    """The points at which a training checks whether any of its processes was asked to stop."""

    def __init__(self, stop: Stop, group: Group) -> None:
        self.stop = stop
        self._group = group
        self._cpu_group = group.new_cpu_group()  # on CPUs: the answer must not wait for what a GPU has queued
        self._queued: list[torch.cuda.Event] = []

    def before_micro_batch(self) -> None:
        """Raise StepAbandonedError in all processes if any was asked to stop; all must call this equally often."""
        self._limit_queue()
        if self._group.size == 1:
            self._leave_if(bool(self.stop.number))
            return
        asked = torch.tensor(float(bool(self.stop.number)))
        self._cpu_group.all_reduce(asked)
        self._leave_if(bool(asked))

    def before_layers(self, layers: Iterable[nn.Module]) -> None:
        """Also check before each of these layers, forward and backward, where a micro-batch may take a minute.

        Only if a single process trains, on a CPU: several could not agree, and on a GPU a micro-batch is short.
        """
        if self._group.size == 1 and self._group.device.type == "cpu":
            for layer in layers:
                layer.register_forward_pre_hook(lambda *_: self.before_micro_batch())
                layer.register_forward_hook(self._check_in_backward)

    def _check_in_backward(self, layer: nn.Module, arguments: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, Tensor) and hidden.requires_grad:
            hidden.register_hook(lambda _: self.before_micro_batch())  # type: ignore[no-untyped-call]

    def _limit_queue(self) -> None:
        if self._group.device.type == "cuda":
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            event.record()
            self._queued.append(event)
            if len(self._queued) > MAX_QUEUED:
                self._queued.pop(0).synchronize()

    @staticmethod
    def _leave_if(asked: bool) -> None:
        if asked:
            raise StepAbandonedError
