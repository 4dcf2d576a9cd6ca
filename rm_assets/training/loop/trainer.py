"""The training loop: for each step, the gradient of the mean loss over its pairs, and one update of AdamW.

The processes share out the pairs of a step and add up their gradients once. Every pair's loss is divided by
the step's number of pairs over all processes, so that the sum is the mean, however many pairs each has.

Between two steps the loop takes a checkpoint where one is due, and leaves where it is asked to, once that is written.
A look at held-out pairs follows the checkpoint of its step, so that a training which goes on from that looks again.
"""

import contextlib
import functools
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from rm_assets.settings import TrainingSettings
from rm_assets.training.devices import one_ahead
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.loop.checkpoint import Checkpoints, Position
from rm_assets.training.loop.flops import Work, is_exact, peak_flops, step_flops
from rm_assets.training.loop.group import Group
from rm_assets.training.loop.held_out import mean_loss_and_accuracy, pair_scores
from rm_assets.training.loop.loss import num_right, pair_losses, worst_pairs
from rm_assets.training.loop.optimizer import build_optimizer, learning_rate, peak_learning_rate
from rm_assets.training.loop.progress import Progress, StepFigures
from rm_assets.training.loop.saving import Saver
from rm_assets.training.loop.sharding import local, shard, sum_gradients_at, whole
from rm_assets.training.loop.state import captured, restore
from rm_assets.training.loop.throughput import Tally, tally_of
from rm_assets.training.model.adapter import base_of
from rm_assets.training.model.layers import decoder_layers, prepare_layers, reason_not_to_compile
from rm_assets.training.model.probe import Choice
from rm_assets.training.model.scoring import Scorer, scores
from rm_assets.training.packing.batches import MicroBatch, collate
from rm_assets.training.packing.pair_store import Pairs
from rm_assets.training.packing.planning import MicroPlan, Packing, epoch_steps, plan_rows
from rm_assets.training.packing.room import GpuMemory, Memory, tokens_that_fit
from rm_assets.training.processes.signals import Stop, StoppedError

MAX_VALIDATION_PAIRS = 512  # of each look at held-out pairs during training; the final evaluation reads all of them
NUM_LOOKS = 10  # at held-out pairs, where there is only one epoch


@dataclass(frozen=True)
class Run:
    """What a step works on."""

    scorer: nn.Module
    choice: Choice
    optimizer: torch.optim.AdamW
    pairs: Pairs
    settings: TrainingSettings
    group: Group
    peak_rate: float
    num_steps: int
    row_tokens: int  # of a micro-batch
    work: Work | None = None  # where the figures of a GPU are shown, and can be


@dataclass(frozen=True)
class Requests:
    """What a process wants between two steps; after the sum over all, what all of them do."""

    stop: bool = False
    save: bool = False


def train(
    model: Any,
    splits: Mapping[str, Pairs],
    choice: Choice,
    settings: TrainingSettings,
    group: Group,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
    stop: Stop | None = None,
) -> dict[str, float]:
    """Train the model in place, from its newest checkpoint where there are some.

    Returns `num_steps`, `seconds`, `train_loss` (the mean over the last epoch's pairs), `peak_learning_rate`, and the
    shares and speeds of `Tally`. Raises TrainingError before the update of a step whose loss or gradient is not finite,
    and StoppedError, its checkpoint saved, where `stop` asks for it.
    """
    run = prepared_run(model, splits["train"], choice, settings, group)
    if group.device.type == "cuda":
        reason = reason_not_to_compile(settings, group.device)
        progress.message(f"layers are not compiled: {reason}" if reason else "layers are compiled in the first steps")
        run = fitted_run(run, GpuMemory(group.device))
        if run.row_tokens < settings.micro_batch_tokens:
            progress.message(f"micro-batches have at most {run.row_tokens} tokens: more do not fit into this GPU")
    stop = stop or Stop()
    with stop.deferred():
        position = _resumed(run, checkpoints, progress)
        with Saver(checkpoints) if checkpoints else contextlib.nullcontext() as saver:
            position = _loop(run, splits, position, progress, saver, stop)
    return {
        "num_steps": run.num_steps,
        "seconds": position.seconds,
        "train_loss": position.loss_sum / len(run.pairs),
        "peak_learning_rate": run.peak_rate,
        **_tally(position).figures(position.seconds, _peak_flops(group) if run.work else None),
    }


def prepared_run(model: Any, pairs: Pairs, choice: Choice, settings: TrainingSettings, group: Group) -> Run:
    """The model spread over the processes, with an optimizer."""
    num_parameters = int(model.num_parameters())
    base = base_of(model)
    prepare_layers(base, settings, group.device)
    scorer = Scorer(model)
    shard(scorer, decoder_layers(base), base.score, group)
    num_steps = settings.epochs * math.ceil(len(pairs) / settings.batch_pairs)
    peak = peak_learning_rate(num_parameters, settings)
    work = _work(scorer, pairs, choice, group)
    optimizer, row_tokens = build_optimizer(scorer, settings), settings.micro_batch_tokens
    return Run(scorer, choice, optimizer, pairs, settings, group, peak, num_steps, row_tokens, work)


def fitted_run(run: Run, memory: Memory) -> Run:
    """The same with micro-batches that fit into this memory in every process, none larger than the setting."""
    trained = [weight for weight in run.scorer.parameters() if weight.requires_grad]
    moments = 2 * sum(local(weight).nbytes for weight in trained)  # of AdamW, from the first step on
    fitting = tokens_that_fit(functools.partial(_tried, run), run.pairs, run.choice.packing, memory, moments)
    every = torch.zeros(run.group.size, dtype=torch.float64, device=run.group.device)
    every[run.group.rank] = min(fitting, run.settings.micro_batch_tokens)
    run.group.add_up(every)
    return replace(run, row_tokens=max(1, int(every.min())))


def _tried(run: Run, plan: MicroPlan) -> None:
    """What a step of two such micro-batches takes, without its update."""
    for last in (False, True):
        sum_gradients_at(run.scorer, last)
        _add_gradients(run, collate(run.pairs, plan, run.group.device), len(run.pairs))
    run.optimizer.zero_grad()


def _work(scorer: nn.Module, pairs: Pairs, choice: Choice, group: Group) -> Work | None:
    """What a token costs, in the process that reports it, where that is known exactly and so is the GPU's peak."""
    if not group.is_first or _peak_flops(group) is None or choice.packing is Packing.PADDED:
        return None  # what needs padded rows may have layers of any kind
    return Work.of(scorer) if is_exact(scorer, pairs) else None


def _resumed(run: Run, checkpoints: Checkpoints | None, progress: Progress) -> Position:
    found = checkpoints.newest() if checkpoints else None
    if found is None:
        progress.start_clock()
        return Position()
    position, tensors = found
    restore(run.scorer, run.optimizer, tensors)
    progress.message(f"goes on after step {position.step}/{run.num_steps}, from its checkpoint")
    progress.start_clock(position.seconds)
    return position


def _loop(
    run: Run,
    splits: Mapping[str, Pairs],
    position: Position,
    progress: Progress,
    saver: Saver | None,
    stop: Stop,
) -> Position:
    looks = validation_steps(run.settings.epochs, run.num_steps // run.settings.epochs)
    saved, steps = time.monotonic(), enumerate(planned_steps(run.settings, run.pairs), start=1)
    if position.step in looks:
        _look(run, splits["validation"], position.step, progress)
    for step, (epoch, rows) in steps:
        if step <= position.step:
            continue
        plans = plan_rows(run.pairs, rows, run.choice.packing, run.row_tokens, run.group.size)
        wanted = functools.partial(_wanted, stop, saver is not None and _is_due(run, step, saved))
        figures, agreed = train_step(run, step, epoch, rows, plans[run.group.rank], wanted)
        tally = tally_of(run.pairs, rows, plans, _operations(run, plans))
        position = _advanced(run, position, figures, len(rows), tally, progress)
        progress.step(figures, run.num_steps, position.num_pairs)
        if saver:
            saver.check()
        if saver and (agreed.save or agreed.stop or step == run.num_steps):
            saver.save(position, captured(run.scorer, run.optimizer))
            saved = time.monotonic()
        if agreed.stop:
            if saver:
                saver.wait()
            progress.message(f"stops after step {step}/{run.num_steps}" + ", which is saved" * bool(saver))
            raise StoppedError(stop.number or signal.SIGTERM)  # another process may have heard it alone
        if step in looks:
            _look(run, splits["validation"], step, progress)
    return position


def _wanted(stop: Stop, save: bool) -> Requests:
    return Requests(bool(stop.number), save)


def _operations(run: Run, plans: list[list[MicroPlan]]) -> float:
    """Floating-point operations of a step, over all processes."""
    if run.work is None:
        return 0.0
    return sum(step_flops(run.work, run.pairs, of_process) for of_process in plans)


def _peak_flops(group: Group) -> float | None:
    if group.device.type != "cuda":
        return None
    peak = peak_flops(torch.cuda.get_device_name(group.device))
    return peak and peak * group.size


def _is_due(run: Run, step: int, saved: float) -> bool:
    """Whether a checkpoint is due; the clock of the first process decides for all."""
    every, minutes = run.settings.checkpoint_every_steps, run.settings.checkpoint_minutes
    return bool(every and step % every == 0) or (run.group.is_first and time.monotonic() - saved >= 60 * minutes)


def _advanced(
    run: Run, position: Position, figures: StepFigures, num_pairs: int, tally: Tally, progress: Progress
) -> Position:
    is_last_epoch = figures.epoch == run.settings.epochs
    return Position(
        step=figures.step,
        num_pairs=position.num_pairs + num_pairs,
        loss_sum=position.loss_sum + figures.loss * num_pairs * is_last_epoch,
        seconds=progress.seconds(),
        tally=asdict(_tally(position) + tally),
    )


def _tally(position: Position) -> Tally:
    return Tally(**position.tally)  # type: ignore[arg-type]  # JSON knows numbers alone


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


def train_step(
    run: Run,
    step: int,
    epoch: int,
    rows: NDArray[np.int64],
    plans: list[MicroPlan],
    wanted: Callable[[], Requests] = Requests,
) -> tuple[StepFigures, Requests]:
    """One update from the pairs `rows`, of which this process computes its plans, and what all processes do next.

    It waits for the device once, to read the sums: until then the next kernels are queued while others run.
    This one is asked what it wants after its gradients, so that a step which takes long is the last one.
    """
    run.optimizer.zero_grad()
    sums = torch.zeros(4, dtype=torch.float64, device=run.group.device)
    losses: list[Tensor] = []
    batches = one_ahead(lambda plan: collate(run.pairs, plan, run.group.device), plans, run.group.device)
    for number, batch in enumerate(batches, start=1):
        sum_gradients_at(run.scorer, last=number == len(plans))
        of_pairs, num_right_ones = _add_gradients(run, batch, len(rows))
        sums[:2] += torch.stack([of_pairs.sum() / len(rows), num_right_ones])
        losses.append(of_pairs)
    asked = wanted()
    sums[2] += asked.stop
    sums[3] += asked.save
    run.group.add_up(sums)
    weights = [weight for weight in run.scorer.parameters() if weight.grad is not None]
    norm = whole(get_total_norm([weight.grad for weight in weights if weight.grad is not None]))
    loss, right, stop, save, grad_norm = torch.cat([sums, norm.double()[None]]).tolist()
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):  # both are of all processes, and so each comes here
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
    return StepFigures(step, epoch, loss, right / len(rows), rate, grad_norm), Requests(stop > 0, save > 0)


def _add_gradients(run: Run, batch: MicroBatch, num_pairs: int) -> tuple[Tensor, Tensor]:
    """The losses of the batch's pairs, float64 [B], and how many are ranked right.

    They are added up in float64: two losses that float32 holds may have a sum that it does not.
    """
    chosen, rejected = scores(run.scorer, batch)
    losses = pair_losses(chosen, rejected, batch.margin, run.settings).double()
    loss = losses.sum() / num_pairs
    (loss * run.group.size).backward()  # type: ignore[no-untyped-call]  # processes average their gradients
    return losses.detach(), num_right(chosen, rejected)


def _losses_of_all(run: Run, plans: list[MicroPlan], losses: list[Tensor]) -> NDArray[np.float64]:
    """The loss of every pair of the split that any process computed in this step, and 0 of all others."""
    found = torch.zeros(len(run.pairs), dtype=torch.float64, device=run.group.device)
    for plan, of_pairs in zip(plans, losses, strict=True):
        found[torch.from_numpy(plan.pairs).to(found.device)] = of_pairs
    run.group.add_up(found)
    return found.cpu().numpy()


def _look(run: Run, pairs: Pairs, step: int, progress: Progress) -> None:
    rows = np.arange(len(pairs), dtype=np.int64)[:: -(-len(pairs) // MAX_VALIDATION_PAIRS) or 1]
    if len(rows):
        found = pair_scores(run.scorer, pairs, rows, run.group, run.choice.packing, run.row_tokens)
        loss, accuracy = mean_loss_and_accuracy(found, pairs, rows, run.settings)
        progress.validation(step, loss, accuracy, len(rows))
