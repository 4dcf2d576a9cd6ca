"""The training loop: for each step, the gradient of the mean loss over its pairs, and one update of AdamW.

The processes share out the pairs of a step and add up their gradients once. Every pair's loss is divided by
the step's number of pairs over all processes, so that the sum is the mean, however many pairs each has.

Not here: sharded weights, and resume after a stop.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rm_assets.settings import TrainingSettings
from rm_assets.training.batches import MicroBatch, collate
from rm_assets.training.evaluation import mean_loss_and_accuracy, pair_scores
from rm_assets.training.group import Group
from rm_assets.training.job import TrainingError
from rm_assets.training.loss import num_right, pair_losses
from rm_assets.training.optimizer import build_optimizer, flat_gradients, learning_rate
from rm_assets.training.planning import epoch_steps, plan_rows
from rm_assets.training.probe import Choice
from rm_assets.training.progress import Progress, StepFigures
from rm_assets.training.scoring import Scorer, scores
from rm_assets.training.store import Pairs

MAX_VALIDATION_PAIRS = 512  # of each look at held-out pairs during training; the final evaluation reads all of them
NUM_LOOKS = 10  # at held-out pairs, where there is only one epoch
ROW_TOKENS = 8192  # of a micro-batch; bounds memory, not results
_SUMS = 2  # at the end of the flat gradients: the mean loss, and the number of pairs ranked right


@dataclass(frozen=True)
class Run:
    """What a step works on. `flat` holds all gradients, then the step's loss and number ranked right."""

    scorer: Scorer
    choice: Choice
    optimizer: torch.optim.AdamW
    flat: Tensor
    pairs: Pairs
    settings: TrainingSettings
    group: Group


def train(
    model: Any,
    splits: Mapping[str, Pairs],
    choice: Choice,
    settings: TrainingSettings,
    group: Group,
    progress: Progress,
) -> dict[str, float]:
    """Train the model in place; returns `num_steps` and `train_loss`, the mean over the last epoch's pairs.

    Raises TrainingError before the update of a step whose loss or gradient is not finite.
    """
    pairs = splits["train"]
    scorer = Scorer(model, bfloat16=group.device.type == "cuda")
    flat = flat_gradients(model, _SUMS)
    run = Run(scorer, choice, build_optimizer(model, settings), flat, pairs, settings, group)
    steps_per_epoch = math.ceil(len(pairs) / settings.batch_pairs)
    num_steps = settings.epochs * steps_per_epoch
    looks = validation_steps(settings.epochs, steps_per_epoch)
    losses, done = 0.0, 0
    progress.start_clock()
    for step, (epoch, rows) in enumerate(planned_steps(settings, pairs), start=1):
        figures = train_step(run, step, epoch, rows, learning_rate(step, num_steps, settings))
        done += len(rows)
        losses += figures.loss * len(rows) * (epoch == settings.epochs)
        progress.step(figures, num_steps, done)
        if step in looks:
            _look(run, splits["validation"], step, progress)
    return {"train_loss": losses / len(pairs), "num_steps": num_steps}


def planned_steps(settings: TrainingSettings, pairs: Pairs) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The epoch (from 1) and the rows of every step; a pure function, the same in every process."""
    for epoch in range(1, settings.epochs + 1):
        for rows in epoch_steps(pairs, settings.seed, epoch, settings.batch_pairs):
            yield epoch, rows


def validation_steps(epochs: int, steps_per_epoch: int) -> set[int]:
    """The steps after which held-out pairs are looked at: each epoch's last, or NUM_LOOKS of one epoch."""
    if epochs > 1:
        return {epoch * steps_per_epoch for epoch in range(1, epochs + 1)}
    return {math.ceil(look * steps_per_epoch / NUM_LOOKS) for look in range(1, NUM_LOOKS + 1)}


def train_step(run: Run, step: int, epoch: int, rows: NDArray[np.int64], rate: float) -> StepFigures:
    """One update from the pairs `rows`, of which this process computes its share, perhaps none."""
    run.flat.zero_()
    plans = plan_rows(run.pairs, rows, run.choice.packing, ROW_TOKENS, run.group.size)
    for plan in plans[run.group.rank]:
        _add_gradients(run, collate(run.pairs, plan, run.group.device), len(rows))
    run.group.add_up(run.flat)
    gradients, (loss, num_right) = run.flat[:-_SUMS], run.flat[-_SUMS:].tolist()
    grad_norm = float(torch.linalg.vector_norm(gradients))
    _check_finite(run, step, rows, loss, grad_norm)
    if grad_norm > run.settings.max_grad_norm:
        gradients.mul_(run.settings.max_grad_norm / grad_norm)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    return StepFigures(step, epoch, loss, num_right / len(rows), rate, grad_norm)


def _add_gradients(run: Run, batch: MicroBatch, num_pairs: int) -> None:
    chosen, rejected = scores(run.scorer, batch)
    loss = pair_losses(chosen, rejected, batch.margin, run.settings.center_rewards).sum() / num_pairs
    loss.backward()  # type: ignore[no-untyped-call]
    run.flat[-2] += loss.detach()
    run.flat[-1] += num_right(chosen, rejected)


def _check_finite(run: Run, step: int, rows: NDArray[np.int64], loss: float, grad_norm: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise TrainingError(
            f"loss is {loss!r} and gradient norm {grad_norm!r} at step {step}, stopped before its update: "
            "look for a margin or weights that are not finite, or lower learning_rate; "
            f"pairs of the step: {', '.join(run.pairs.pair_ids(rows))}"
        )


def _look(run: Run, pairs: Pairs, step: int, progress: Progress) -> None:
    rows = np.arange(len(pairs), dtype=np.int64)[:: -(-len(pairs) // MAX_VALIDATION_PAIRS) or 1]
    if len(rows):
        found = pair_scores(run.scorer, pairs, rows, run.group, run.choice.packing, ROW_TOKENS)
        loss, accuracy = mean_loss_and_accuracy(found, pairs.margin[rows], run.settings.center_rewards)
        progress.validation(step, loss, accuracy, len(rows))
