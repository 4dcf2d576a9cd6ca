"""One optimizer step: the gradient of the mean loss over its pairs, and one update of AdamW.

The processes divide the pairs of a step among themselves and sum their gradients once. Each loss is divided by the
number of pairs of the whole step, so the sum is the mean, however many pairs each process has. The loss: `loss.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from rm_assets.settings import TrainingSettings
from rm_assets.training.devices import prefetch
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.loop.group import Group
from rm_assets.training.loop.loss import num_right, pair_losses, worst_pairs
from rm_assets.training.loop.optimizer import learning_rate
from rm_assets.training.loop.sharding import sum_gradients_at, whole
from rm_assets.training.loop.stopping import StopPoints
from rm_assets.training.loop.throughput import ModelFlops
from rm_assets.training.loop.training_log import StepFigures
from rm_assets.training.model.probe import Choice
from rm_assets.training.model.scoring import scores
from rm_assets.training.packing.batches import MicroBatch, collate
from rm_assets.training.packing.pairs import Pairs
from rm_assets.training.packing.planning import MicroPlan


@dataclass(frozen=True)
class Run:
    """What all steps of a training have in common."""

    scorer: nn.Module
    choice: Choice
    optimizer: torch.optim.AdamW
    pairs: Pairs
    settings: TrainingSettings
    group: Group
    peak_rate: float
    num_steps: int
    row_tokens: int  # tokens of a micro-batch at most
    flops: ModelFlops | None = None  # None where MFU cannot be computed exactly, and in all processes but the first
    progress: Callable[[str], object] = lambda _: None  # shows how far a long step is


def train_step(
    run: Run,
    step: int,
    epoch: int,
    rows: NDArray[np.int64],
    plans: list[MicroPlan],
    stop_points: StopPoints | None = None,
    is_save_due: Callable[[], bool] = lambda: False,
) -> tuple[StepFigures, bool]:
    """Make one update from the pairs `rows`, of which this process computes `plans`; also returns whether a checkpoint
    is due in any process.

    Raises TrainingError before the update if the loss or the gradient is not finite, and StepAbandonedError at one of
    the `stop_points`. The device is waited for only once, to read the sums: until then, kernels are queued while
    earlier ones run. `is_save_due` is called after the gradients, which may take long.
    """
    run.optimizer.zero_grad()
    sums = torch.zeros(3, dtype=torch.float64, device=run.group.device)
    losses: list[Tensor] = []
    num_own = sum(len(plan.pairs) for plan in plans)
    batches = prefetch(lambda plan: collate(run.pairs, plan, run.group.device), plans, run.group.device)
    for number, batch in enumerate(batches, start=1):
        if stop_points:
            stop_points.before_micro_batch()
        run.progress(f"step {step}/{run.num_steps}: {sum(map(len, losses))} of {num_own} pairs done")
        sum_gradients_at(run.scorer, last=number == len(plans))
        batch_losses, batch_right = add_gradients(run, batch, len(rows))
        sums[:2] += torch.stack([batch_losses.sum() / len(rows), batch_right])
        losses.append(batch_losses)
    sums[2] += is_save_due()
    run.group.all_reduce(sums)
    weights = [weight for weight in run.scorer.parameters() if weight.grad is not None]
    norm = whole(get_total_norm([weight.grad for weight in weights if weight.grad is not None]))
    loss, right, save, grad_norm = torch.cat([sums, norm.double()[None]]).tolist()
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):  # both are sums over all processes, so all raise
        raise TrainingError(
            f"loss is {loss!r} and gradient norm {grad_norm!r} at step {step}, stopped before its update: "
            "look for a margin that is too large or weights that are not finite, or lower learning_rate; "
            + worst_pairs(run.pairs, rows, _losses_of_all(run, plans, losses)[rows])
        )
    if grad_norm > run.settings.max_grad_norm:
        clip_grads_with_norm_(weights, run.settings.max_grad_norm, norm)
    rate = learning_rate(step, run.num_steps, run.peak_rate, run.settings.warmup_fraction)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    return StepFigures(step, epoch, loss, right / len(rows), rate, grad_norm), save > 0


def add_gradients(run: Run, batch: MicroBatch, num_pairs: int) -> tuple[Tensor, Tensor]:
    """Add the gradients of a micro-batch to those of its step, which has `num_pairs` in all.

    Returns the losses, float64 [B], and how many pairs are ranked right. Losses are summed in float64: two that fit
    into float32 may have a sum that does not.
    """
    chosen, rejected = scores(run.scorer, batch)
    losses = pair_losses(chosen, rejected, batch.margin, run.settings).double()
    loss = losses.sum() / num_pairs
    (loss * run.group.size).backward()  # type: ignore[no-untyped-call]  # processes average their gradients
    return losses.detach(), num_right(chosen, rejected)


def _losses_of_all(run: Run, plans: list[MicroPlan], losses: list[Tensor]) -> NDArray[np.float64]:
    """For every pair of the split, its loss in this step, whichever process computed it; 0 if it is not in the step."""
    found = torch.zeros(len(run.pairs), dtype=torch.float64, device=run.group.device)
    for plan, plan_losses in zip(plans, losses, strict=True):
        found[torch.from_numpy(plan.pairs).to(found.device)] = plan_losses
    run.group.all_reduce(found)
    return found.cpu().numpy()
