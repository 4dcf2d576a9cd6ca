"""Before the first step: shards the model, builds its optimizer, and fits micro-batches to the GPU's memory."""

import functools
import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rm_assets.settings import TrainingSettings
from rm_assets.training.loop.group import Group
from rm_assets.training.loop.optimizer import build_optimizer, peak_learning_rate
from rm_assets.training.loop.sharding import local, shard, sum_gradients_at
from rm_assets.training.loop.step import Run, add_gradients
from rm_assets.training.loop.throughput import ModelFlops, is_exact, peak_flops
from rm_assets.training.model.adapter import base_of
from rm_assets.training.model.architecture import head_modules
from rm_assets.training.model.layers import decoder_layers, prepare_layers, round_frozen_weights
from rm_assets.training.model.probe import Choice
from rm_assets.training.model.scoring import Scorer
from rm_assets.training.packing.batches import collate
from rm_assets.training.packing.micro_batch_size import Memory, largest_micro_batch, micro_batch_tokens
from rm_assets.training.packing.pairs import Pairs
from rm_assets.training.packing.planning import MicroPlan, Packing


def prepare_run(model: Any, pairs: Pairs, choice: Choice, settings: TrainingSettings, group: Group) -> Run:
    """Shard the model over the processes and build its optimizer."""
    num_parameters = int(model.num_parameters())
    base = base_of(model)
    prepare_layers(base, settings, group.device)
    round_frozen_weights(base, group.device)
    scorer = Scorer(model)
    shard(scorer, list(decoder_layers(base)), list(head_modules(base).values()), group)
    return Run(
        scorer=scorer,
        choice=choice,
        optimizer=build_optimizer(scorer, settings),
        pairs=pairs,
        settings=settings,
        group=group,
        peak_rate=peak_learning_rate(num_parameters, settings),
        num_steps=settings.epochs * math.ceil(len(pairs) / settings.batch_pairs),
        row_tokens=micro_batch_tokens(settings, group.device),
        flops=_model_flops(scorer, pairs, choice, group),
    )


def fit_micro_batches(run: Run, memory: Memory) -> Run:
    """The same run with micro-batches that fit into memory in every process, none larger than the setting."""
    trained = [weight for weight in run.scorer.parameters() if weight.requires_grad]
    moments = 2 * sum(local(weight).nbytes for weight in trained)  # of AdamW, from the first step on
    fitting = largest_micro_batch(functools.partial(_try, run), run.pairs, run.choice.packing, memory, moments)
    every = torch.zeros(run.group.size, dtype=torch.float64, device=run.group.device)
    every[run.group.rank] = min(fitting, run.row_tokens)
    run.group.all_reduce(every)
    return replace(run, row_tokens=max(1, int(every.min())))


def _try(run: Run, plan: MicroPlan) -> None:
    """Compute a step of two such micro-batches, without its update."""
    for last in (False, True):
        sum_gradients_at(run.scorer, last)
        add_gradients(run, collate(run.pairs, plan, run.group.device), len(run.pairs))
    run.optimizer.zero_grad()


def _model_flops(scorer: nn.Module, pairs: Pairs, choice: Choice, group: Group) -> ModelFlops | None:
    """The operations per token, in the process that reports them, if they and the GPU's peak are known exactly."""
    if not group.is_first or group_peak_flops(group) is None or choice.packing is Packing.PADDED:
        return None  # a model that needs padded rows may have layers of any kind
    return ModelFlops.of(scorer) if is_exact(scorer, pairs) else None


def group_peak_flops(group: Group) -> float | None:
    """Peak operations per second of all GPUs together, or None if unknown."""
    if group.device.type != "cuda":
        return None
    peak = peak_flops(torch.cuda.get_device_name(group.device))
    return peak and peak * group.size
