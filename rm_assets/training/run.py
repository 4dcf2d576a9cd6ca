"""A training job from its description to its manifest."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from rm_assets.training.batches import Pairs
from rm_assets.training.card import model_card
from rm_assets.training.checks import check_pairs, read_splits
from rm_assets.training.evaluation import evaluate, split_metrics, write_scores
from rm_assets.training.golden import read_golden_scores, write_golden_scores
from rm_assets.training.group import Group
from rm_assets.training.job import TrainingJob
from rm_assets.training.model import (
    build_model,
    load_model,
    load_tokenizer,
    max_positions,
    num_embeddings,
    save_model,
)
from rm_assets.training.progress import Progress
from rm_assets.training.result import ERROR, MANIFEST, METRICS, MODEL, SCORES_FILE, write_manifest
from rm_assets.training.trainer import train


def run_job(job: TrainingJob, group: Group, progress: Progress) -> None:
    """Train, save, score the held-out pairs with what was saved, and publish the result.

    Every process of the group calls this; the first one writes. Raises TrainingError.
    """
    started = time.perf_counter()
    splits = read_splits(job)
    tokenizer = load_tokenizer(job)
    model = build_model(job)
    check_pairs(splits, num_embeddings(model), job.pad_token_id, max_positions(model))
    progress.message(_opening(job, splits, model, group))
    figures = train(model.to(group.device), splits, job.settings, group, progress)
    figures["seconds"] = time.perf_counter() - progress.started
    directory = Path(job.output_directory)
    if group.is_first:
        save_model(model, tokenizer, directory / MODEL)
    group.wait()
    metrics = _metrics(job, model, splits, figures) | _evaluate(job, splits, group)
    if group.is_first:
        metrics["total_seconds"] = time.perf_counter() - started
        _publish(job, metrics, tokenizer)
    progress.message(f"wrote the model and the scores of {metrics['validation_pairs']} + {metrics['test_pairs']} pairs")


def clear_output(directory: Path) -> None:
    """Make the directory and remove what an earlier attempt left, its manifest first."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, f"{MANIFEST}.tmp", ERROR, METRICS, SCORES_FILE):
        (directory / name).unlink(missing_ok=True)
    if (directory / MODEL).exists():
        shutil.rmtree(directory / MODEL)


def _opening(job: TrainingJob, splits: dict[str, Pairs], model: Any, group: Group) -> str:
    counts = ", ".join(f"{len(pairs)} {name}" for name, pairs in splits.items())
    kind = "a toy with random weights" if job.toy else "a pretrained model"
    where = f"{group.size} processes" if group.size > 1 else "1 process"
    return f"{kind}, {model.num_parameters():,} parameters · pairs: {counts} · {where} on {group.device.type}"


def _metrics(
    job: TrainingJob, model: Any, splits: dict[str, Pairs], figures: dict[str, float]
) -> dict[str, float | int | str | None]:
    trained = len(splits["train"]) * job.settings.epochs
    return {
        **figures,
        "num_parameters": int(model.num_parameters()),
        "pairs_per_second": trained / figures["seconds"],
        "train_pairs": len(splits["train"]),
        "device": model.device.type,
    }


def _evaluate(job: TrainingJob, splits: dict[str, Pairs], group: Group) -> dict[str, float | int | None]:
    directory = Path(job.output_directory)
    saved = load_model(directory / MODEL).to(group.device)
    held_out = {name: pairs for name, pairs in splits.items() if name != "train"}
    scores = evaluate(saved, held_out, group, job.settings.micro_batch_pairs)
    if group.is_first:
        write_scores(directory / SCORES_FILE, held_out, scores)
        write_golden_scores(directory / MODEL, saved)
    return split_metrics(held_out, scores, job.settings.center_rewards)


def _publish(job: TrainingJob, metrics: dict[str, Any], tokenizer: Any) -> None:
    directory = Path(job.output_directory)
    (directory / MODEL / "README.md").write_text(
        model_card(job, metrics, tokenizer, read_golden_scores(directory / MODEL))
    )
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    write_manifest(directory, job.key, job.data_snapshot, metrics, versions)
