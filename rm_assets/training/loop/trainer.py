"""The training loop: `train` prepares the run, resumes from a checkpoint and steps through the epochs.

Between two steps it saves a checkpoint when one is due. When a signal asks for it, it leaves within a step
(`stopping.py`), once the last finished one is saved. Validation follows the checkpoint of its step, so a resumed
training repeats it.
"""

import contextlib
import functools
import math
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_assets.settings import TrainingSettings
from rm_assets.training.devices import is_out_of_memory
from rm_assets.training.jobs.result import few_steps_warning
from rm_assets.training.loop.checkpoint import Checkpoints, Position, random_states, restore_state, training_state
from rm_assets.training.loop.group import Group
from rm_assets.training.loop.held_out import mean_loss_and_accuracy, pair_scores
from rm_assets.training.loop.saving import Saver
from rm_assets.training.loop.setup import fit_micro_batches, group_peak_flops, prepare_run
from rm_assets.training.loop.step import Run, train_step
from rm_assets.training.loop.stopping import StepAbandonedError, StopPoints
from rm_assets.training.loop.throughput import Tally, step_flops, tally_step
from rm_assets.training.loop.training_log import StepFigures, TrainingLog
from rm_assets.training.model.adapter import base_of
from rm_assets.training.model.layers import decoder_layers, reason_not_to_compile
from rm_assets.training.model.probe import Choice
from rm_assets.training.packing.micro_batch_size import GpuMemory, micro_batch_tokens
from rm_assets.training.packing.pairs import Pairs
from rm_assets.training.packing.planning import MicroPlan, epoch_steps, plan_rows
from rm_assets.training.processes.signals import Stop, StoppedError

MAX_VALIDATION_PAIRS = 512  # of each validation during training; the final evaluation scores all held-out pairs
NUM_VALIDATIONS = 10  # if there is only one epoch


def train(
    model: Any,
    splits: Mapping[str, Pairs],
    choice: Choice,
    settings: TrainingSettings,
    group: Group,
    log: TrainingLog,
    checkpoints: Checkpoints | None = None,
    stop: Stop | None = None,
) -> dict[str, float]:
    """Train the model in place, from its latest checkpoint if there is one.

    Returns `num_steps`, `seconds`, `train_loss` (the mean over the last epoch's pairs), `peak_learning_rate`, and the
    shares and speeds of `Tally`. Raises TrainingError before the update of a step whose loss or gradient is not finite,
    and StoppedError, its checkpoint saved, if `stop` asks for it.
    """
    run = replace(prepare_run(model, splits["train"], choice, settings, group), progress=log.progress)
    if group.device.type == "cuda":
        reason = reason_not_to_compile(settings, group.device)
        log.message(f"layers are not compiled: {reason}" if reason else "layers are compiled in the first steps")
        run = fit_micro_batches(run, GpuMemory(group.device))
        if run.row_tokens < micro_batch_tokens(settings, group.device):
            log.message(f"micro-batches have at most {run.row_tokens} tokens: more do not fit into this GPU")
    if warning := few_steps_warning(run.num_steps):
        log.message(f"warning: {warning}")
    log.message(f"training: {run.num_steps:,} steps of up to {settings.batch_pairs} pairs")
    stop_points = StopPoints(stop or Stop(), group)
    if reason_not_to_compile(settings, group.device):
        stop_points.before_layers(decoder_layers(base_of(model)))
    with stop_points.stop.deferred():
        position = _resume(run, checkpoints, log)
        with Saver(checkpoints, saved_step=position.step) if checkpoints else contextlib.nullcontext() as saver:
            position = _run_steps(run, splits["validation"], position, log, saver, stop_points)
    return {
        "num_steps": run.num_steps,
        "seconds": position.seconds,
        "train_loss": position.loss_sum / len(run.pairs),
        "peak_learning_rate": run.peak_rate,
        **_tally(position).figures(position.seconds, group_peak_flops(group) if run.flops else None),
    }


def _resume(run: Run, checkpoints: Checkpoints | None, log: TrainingLog) -> Position:
    found = checkpoints.latest() if checkpoints else None
    if found is None:
        log.start_clock()
        return Position()
    position, tensors = found
    restore_state(run.scorer, run.optimizer, tensors)
    log.message(f"resumes after step {position.step}/{run.num_steps}, from its checkpoint")
    log.start_clock(position.seconds)
    return position


def _run_steps(
    run: Run, validation: Pairs, position: Position, log: TrainingLog, saver: Saver | None, stop_points: StopPoints
) -> Position:
    """Run the steps after `position`; returns the position after the last one."""
    validations = validation_steps(run.settings.epochs, run.num_steps // run.settings.epochs)

    def validate_if_due() -> Position:
        if position.step not in validations or position.is_validated:
            return position
        with _save_if_abandoned(run, position, log, saver, stop_points.stop):
            _validate(run, validation, position.step, log, stop_points)
        return replace(position, is_validated=True)

    position = validate_if_due()
    saved = time.monotonic()
    for step, (epoch, rows) in enumerate(planned_steps(run.settings, run.pairs), start=1):
        if step <= position.step:
            continue
        plans = plan_rows(run.pairs, rows, run.choice.packing, run.row_tokens, run.group.size)
        is_save_due = functools.partial(_is_due, run, step, saved)
        with _save_if_abandoned(run, position, log, saver, stop_points.stop):
            figures, save = train_step(run, step, epoch, rows, plans[run.group.rank], stop_points, is_save_due)
        tally = tally_step(run.pairs, rows, plans, _flops(run, plans))
        position = _advance(run, position, figures, len(rows), tally, log)
        log.step(figures, run.num_steps, position.num_pairs)
        if saver:
            saver.check()
        if saver and (save or step == run.num_steps):
            saver.save(position, training_state(run.scorer, run.optimizer))
            saved = time.monotonic()
        position = validate_if_due()
    return position


@contextlib.contextmanager
def _save_if_abandoned(
    run: Run, position: Position, log: TrainingLog, saver: Saver | None, stop: Stop
) -> Iterator[None]:
    """If the code inside is abandoned, save `position`, the last finished step, and raise StoppedError.

    That step is also saved if memory runs out, but only by a single process: several would wait for each other.
    """
    states = random_states()

    def save() -> bool:
        if saver is None or position.step == 0:
            return False
        saver.save_and_wait(position, training_state(run.scorer, run.optimizer, states))
        return True

    try:
        yield
    except StepAbandonedError:
        log.message(f"stops after step {position.step}/{run.num_steps}" + ", which is saved" * save())
        # the signal may have reached only another process
        raise StoppedError(stop.number or signal.SIGTERM) from None
    except Exception as error:
        # AdamW counts its step before it changes weights
        steps = {int(state["step"]) for state in run.optimizer.state.values()}
        if is_out_of_memory(error) and run.group.size == 1 and steps == {position.step} and save():
            log.message(f"out of memory after step {position.step}/{run.num_steps}, which is saved")
        raise


def planned_steps(settings: TrainingSettings, pairs: Pairs) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The epoch (from 1) and the rows of every step; a pure function, the same in every process."""
    for epoch in range(1, settings.epochs + 1):
        for rows in epoch_steps(pairs, settings.seed, epoch, settings.batch_pairs):
            yield epoch, rows


def validation_steps(epochs: int, steps_per_epoch: int) -> set[int]:
    """The steps that a validation follows: the last one of each epoch, or NUM_VALIDATIONS in a single epoch."""
    if epochs > 1:
        return {epoch * steps_per_epoch for epoch in range(1, epochs + 1)}
    return {math.ceil(number * steps_per_epoch / NUM_VALIDATIONS) for number in range(1, NUM_VALIDATIONS + 1)}


def _validate(run: Run, pairs: Pairs, step: int, log: TrainingLog, stop_points: StopPoints) -> None:
    """Log loss and accuracy on at most MAX_VALIDATION_PAIRS held-out pairs, evenly spaced."""
    rows = np.arange(len(pairs), dtype=np.int64)[:: -(-len(pairs) // MAX_VALIDATION_PAIRS) or 1]
    if len(rows):

        def progress(num_done: int) -> None:
            log.progress(f"validation after step {step}: {num_done} of {len(rows)} pairs scored")

        arguments = (run.group, run.choice.packing, run.row_tokens, stop_points, progress)
        found = pair_scores(run.scorer, pairs, rows, *arguments)
        loss, accuracy = mean_loss_and_accuracy(found, pairs, rows, run.settings)
        log.validation(step, loss, accuracy, len(rows))


def _is_due(run: Run, step: int, saved: float) -> bool:
    """Whether a checkpoint is due; the clock of the first process decides for all."""
    every, minutes = run.settings.checkpoint_every_steps, run.settings.checkpoint_minutes
    return bool(every and step % every == 0) or (run.group.is_first and time.monotonic() - saved >= 60 * minutes)


def _advance(
    run: Run, position: Position, figures: StepFigures, num_pairs: int, tally: Tally, log: TrainingLog
) -> Position:
    is_last_epoch = figures.epoch == run.settings.epochs
    return Position(
        step=figures.step,
        num_pairs=position.num_pairs + num_pairs,
        loss_sum=position.loss_sum + figures.loss * num_pairs * is_last_epoch,
        seconds=log.seconds(),
        tally=asdict(_tally(position) + tally),
    )


def _tally(position: Position) -> Tally:
    return Tally(**position.tally)  # type: ignore[arg-type]  # JSON has only numbers


def _flops(run: Run, plans: list[list[MicroPlan]]) -> float:
    """Floating-point operations of a step, over all processes."""
    return sum(step_flops(run.flops, run.pairs, plan) for plan in plans) if run.flops else 0.0
