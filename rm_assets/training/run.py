"""A training job from start to end: `train_and_publish` is its table of contents.

Pairs are read and checked, a packing is chosen, the model is trained (`loop/trainer.py`; the loss is in `loop/loss.py`)
and saved, the held-out pairs are scored with what was saved, and the manifest publishes the result.
"""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from numpy.typing import NDArray

from rm_assets.training.devices import is_out_of_memory, trains_in_bfloat16
from rm_assets.training.jobs.result import (
    ADAPTER,
    METRICS,
    MODEL,
    SCORES_FILE,
    SCRATCH,
    clear_output,
    copied_figures,
    copy_trained,
    remove_scratch,
    write_manifest,
)
from rm_assets.training.jobs.training_job import TrainingError, TrainingJob, memory_advice
from rm_assets.training.loop.checkpoint import Checkpoints
from rm_assets.training.loop.group import Group, join_group, leave_group, peak_memory
from rm_assets.training.loop.held_out import evaluate, split_metrics, write_scores
from rm_assets.training.loop.loss import check_margins, large_margin
from rm_assets.training.loop.sharding import is_sharded, whole_trained_weights
from rm_assets.training.loop.tracking import open_tracker
from rm_assets.training.loop.trainer import train
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.model.adapter import merged, save_adapter, with_adapter
from rm_assets.training.model.architecture import empty_model, max_positions
from rm_assets.training.model.exactness import set_attention
from rm_assets.training.model.offloading import move_to
from rm_assets.training.model.probe import Choice, choose_packing, use_packing
from rm_assets.training.model.quantization import quantize_base
from rm_assets.training.model.reward_model import (
    Origin,
    build_model,
    build_with_origin,
    load_model,
    load_tokenizer,
    num_embeddings,
)
from rm_assets.training.model.scoring import Scorer
from rm_assets.training.packing.checks import check_pairs, read_splits
from rm_assets.training.packing.micro_batch_size import micro_batch_tokens
from rm_assets.training.packing.pairs import Pairs
from rm_assets.training.packing.planning import Packing
from rm_assets.training.processes.signals import Stop
from rm_assets.training.report.calibration import wins
from rm_assets.training.report.intervals import bootstrap_interval
from rm_assets.training.saved_model.golden_scores import read_golden_scores, write_golden_scores
from rm_assets.training.saved_model.model_card import lineage, model_card
from rm_assets.training.saved_model.model_directory import require_same_tokenizer, save_model, share_files

_MAX_NAMED = 5
"""Unused weights that the log names."""


def run(job: TrainingJob, log: Callable[[str], object], stop: Stop) -> None:
    """Run the job as one process of the group that torchrun's environment describes, or alone."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    group = join_group()
    training_log = TrainingLog()
    if group.is_first:
        output = Path(job.output_directory)
        clear_output(output)
        track = open_tracker(job.settings, output, job.key[:16], job.settings.decisive())
        training_log = TrainingLog(output / METRICS, log, track)
    try:
        train_and_publish(job, group, training_log, stop)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = f"out of memory on {group.device.type} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise TrainingError(f"{reason}: {memory_advice(job.settings)}") from error
    leave_group()


def train_and_publish(job: TrainingJob, group: Group, log: TrainingLog, stop: Stop | None = None) -> None:
    """Train, save, score the held-out pairs with what was saved, and publish the result.

    Resumes from the latest checkpoint in the job's output directory. Every process of the group calls this; the first
    one writes. Raises TrainingError, and StoppedError if `stop` asked for it.
    """
    started = time.perf_counter()
    splits = _read_pairs(job, group, Path(job.output_directory) / SCRATCH)
    tokenizer = load_tokenizer(job)
    figures = _take_trained(job, group, log) if job.trained else _train(job, splits, tokenizer, group, log, stop)
    log.message(f"scoring {sum(len(pairs) for name, pairs in splits.items() if name != 'train'):,} held-out pairs")
    metrics: dict[str, Any] = {
        **figures,
        **_evaluate(job, splits, Packing(figures["packing"]), group, log),
        "total_seconds": time.perf_counter() - started,
    }
    if group.is_first:
        _publish(job, metrics, tokenizer)
    log.message(f"wrote the model and the scores of {metrics['validation_pairs']} + {metrics['test_pairs']} pairs")


def _take_trained(job: TrainingJob, group: Group, log: TrainingLog) -> dict[str, Any]:
    """The weights of a published model, and the figures of its training."""
    assert job.trained
    if group.is_first:
        copy_trained(Path(job.output_directory), Path(job.trained))
    group.wait()
    log.message("no training: a model has these weights already, and scores the held-out pairs")
    return copied_figures(Path(job.trained))


def _train(
    job: TrainingJob, splits: dict[str, Pairs], tokenizer: Any, group: Group, log: TrainingLog, stop: Stop | None
) -> dict[str, Any]:
    """Train the model and save it; returns the figures of the training."""
    directory = Path(job.output_directory)
    log.message("loading the model")
    model, origin = build_with_origin(job)
    check_pairs(splits, num_embeddings(model), job.pad_token_id, max_positions(model))
    check_margins(splits, job.settings)
    require_same_tokenizer(tokenizer, model.config)
    if job.settings.load_in_4bit:
        log.message(quantize_base(model, group.device))
    model = with_adapter(model, job.settings)
    log.message("trying packings: a shared prompt is computed once where scores and gradients stay exact")
    choice = _choose_packing(model, splits["train"], group)
    num_parameters = int(model.num_parameters())
    for text in (_opening(job, origin, splits, num_parameters, group), *_warnings(origin)):
        log.message(text)
    log.message(choice.reason)
    if warning := large_margin(splits["train"], job.settings):
        log.message(f"warning: {warning}")
    log_line = log.message if group.is_first else print
    checkpoints = Checkpoints(directory, job.key, group, log_line, job.settings.rounding())
    figures = train(model, splits, choice, job.settings, group, log, checkpoints, stop)
    _save(job, model, tokenizer, group)
    del model  # and its gradients: the saved model needs their memory
    gc.collect()  # sharded layers and their hooks reference each other, as adapters do
    return {
        **figures,
        "head": origin.head,
        "num_parameters": num_parameters,
        "packing": choice.packing,
        "packing_reason": choice.reason,
        "train_pairs": len(splits["train"]),
        "device": group.device.type,
        "peak_memory_bytes": peak_memory(group),
    }


def _read_pairs(job: TrainingJob, group: Group, scratch: Path) -> dict[str, Pairs]:
    """The pairs of every split, from a store that the first process writes unless an earlier attempt did."""
    if group.is_first:
        read_splits(job, scratch)
    group.wait()
    return read_splits(job, scratch)


def _choose_packing(model: Any, pairs: Pairs, group: Group) -> Choice:
    """The packing that the first process verified, in every process: all must lay out rows alike."""
    packings, number = list(Packing), torch.zeros(1, device=group.device)
    choice = None
    if group.is_first:
        choice = choose_packing(model, pairs, group.device)
        number += packings.index(choice.packing)
    group.all_reduce(number)
    if choice is None:
        choice = Choice(packings[int(number)], "as the first process chose")
        use_packing(model, choice.packing)
    return choice


def _opening(job: TrainingJob, origin: Origin, splits: dict[str, Pairs], num_parameters: int, group: Group) -> str:
    counts = ", ".join(f"{len(pairs)} {name}" for name, pairs in splits.items())
    kind = "a toy with random weights" if job.toy else f"a pretrained model, head: {origin.head}"
    where = f"{group.size} processes" if group.size > 1 else "1 process"
    return f"{kind}, {num_parameters:,} parameters · pairs: {counts} · {where} on {group.device.type}"


def _warnings(origin: Origin) -> list[str]:
    if not origin.unused:
        return []
    more = ", …" if len(origin.unused) > _MAX_NAMED else ""
    names = ", ".join(origin.unused[:_MAX_NAMED]) + more
    return [f"warning: {len(origin.unused)} weights of the checkpoint have no place in this model: {names}"]


def _save(job: TrainingJob, model: Any, tokenizer: Any, group: Group) -> None:
    """Write the trained model as a stock one, and its adapter.

    Sharded weights are gathered into a new model, in which those that were not trained are float32, as in the base.
    So are adapters of a quantized one: its weights are rounded too coarsely to be published.
    """
    directory = Path(job.output_directory)
    if is_sharded(group) or job.settings.load_in_4bit:
        weights = whole_trained_weights(model, group)
        if group.is_first:
            model = with_adapter(build_model(job), job.settings)
            model.load_state_dict(weights, strict=False)
    if group.is_first:
        save_adapter(model, lineage(job)[-1], directory)
        share_files(directory / ADAPTER)
        model = merged(model)
        if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
            raise TrainingError("weights are not finite after the last step: they have diverged (lower learning_rate)")
        save_model(model, tokenizer, directory / MODEL, job.settings.saved_dtype)
    group.wait()


def _evaluate(
    job: TrainingJob, splits: dict[str, Pairs], packing: Packing, group: Group, log: TrainingLog
) -> dict[str, Any]:
    directory = Path(job.output_directory)
    saved = load_model(directory / MODEL)
    if where := move_to(saved, group.device):
        log.message(where)
    if job.trained:
        check_pairs(splits, num_embeddings(saved), job.pad_token_id, max_positions(saved))
    stock = saved.config._attn_implementation
    use_packing(saved, packing)
    held_out = {name: pairs for name, pairs in splits.items() if name != "train"}
    bfloat16, row_tokens = trains_in_bfloat16(group.device), micro_batch_tokens(job.settings, group.device)
    evaluation = evaluate(Scorer(saved), held_out, group, packing, row_tokens, bfloat16, log.progress)
    scores = evaluation.scores
    metrics = split_metrics(held_out, scores, job.settings)
    if group.is_first:
        write_scores(directory / SCORES_FILE, held_out, scores)
        if evaluation.rounding is None:
            set_attention(saved, stock)
        else:  # its weights are rounded
            del saved
            saved = load_model(directory / MODEL)
            move_to(saved, group.device)
        log.message("writing golden scores: of fixed conversations, by which a server is verified")
        write_golden_scores(directory / MODEL, saved)
    intervals = [_interval(name, pairs, scores[name]) for name, pairs in held_out.items()]
    return metrics | {name: end for ends in intervals for name, end in ends} | evaluation.figures()


def _interval(split: str, pairs: Pairs, scores: NDArray[np.float32]) -> list[tuple[str, float]]:
    """The 95 % interval of a split's accuracy, as `<split>_accuracy_low` and `_high`; nothing without pairs."""
    if not len(pairs):
        return []
    low, high = bootstrap_interval(
        pd.Series(wins(scores[:, 0] - scores[:, 1])), pairs.keys.column("prompt_key").to_pandas()
    )
    return [(f"{split}_accuracy_low", low), (f"{split}_accuracy_high", high)]


def _publish(job: TrainingJob, metrics: dict[str, Any], tokenizer: Any) -> None:
    directory = Path(job.output_directory)
    golden, saved = read_golden_scores(directory / MODEL), empty_model(directory / MODEL)
    card = model_card(job, metrics, tokenizer, golden, saved)
    (directory / MODEL / "README.md").write_text(card, encoding="utf-8")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    write_manifest(directory, job.key, job.data_snapshot, metrics, versions, job.weights_key)
    remove_scratch(directory)
