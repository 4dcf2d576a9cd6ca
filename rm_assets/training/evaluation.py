"""Scores of held-out pairs, each the score of its sequence alone whatever it is batched with."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from rm_assets.data.parquet import write_table
from rm_assets.settings import TrainingSettings
from rm_assets.training.batches import collate
from rm_assets.training.devices import moved, one_ahead
from rm_assets.training.group import Group
from rm_assets.training.job import TrainingError
from rm_assets.training.loss import num_right, pair_losses, worst_pairs
from rm_assets.training.planning import Packing, Rows, plan_rows
from rm_assets.training.result import SCORES
from rm_assets.training.scoring import scores as scores_of
from rm_assets.training.store import Pairs


@torch.no_grad()  # no inference mode: what FSDP gathers into is written again by training, after a resumed look
def pair_scores(
    scorer: nn.Module, pairs: Pairs, rows: Rows, group: Group, packing: Packing, row_tokens: int
) -> NDArray[np.float32]:
    """The scores of the rows, float32 [rows, 2], chosen first; each process computes a share and gets all."""
    found = torch.zeros(len(pairs), 2, device=group.device)
    plans = plan_rows(pairs, rows, packing, row_tokens, group.size)[group.rank]
    for batch in one_ahead(lambda plan: collate(pairs, plan, group.device), plans, group.device):
        both = torch.stack(scores_of(scorer, batch), dim=1)
        found[moved(torch.from_numpy(batch.rows), group.device)] = both
    group.add_up(found)  # zero but for one process, so the sum is exact
    return found.cpu().numpy()[rows]


def mean_loss_and_accuracy(
    scores: NDArray[np.float32], pairs: Pairs, rows: Rows, settings: TrainingSettings
) -> tuple[float, float]:
    """The mean training loss, and the share of pairs whose chosen side scores higher, a tie counting one half.

    `scores` float32 [rows, 2], chosen first, are those of these rows. Raises TrainingError for a loss that is not
    finite.
    """
    chosen, rejected = torch.from_numpy(scores).unbind(1)
    losses = pair_losses(chosen, rejected, torch.tensor(pairs.margin[rows]), settings).double()
    loss = float(losses.mean())
    if not math.isfinite(loss):
        raise TrainingError(
            f"loss of held-out pairs is {loss!r}: the weights are spoilt, lower learning_rate, or the margins "
            f"too large; {worst_pairs(pairs, rows, losses.numpy())}"
        )
    return loss, float(num_right(chosen, rejected)) / len(scores)


def evaluate(
    scorer: nn.Module, splits: Mapping[str, Pairs], group: Group, packing: Packing, row_tokens: int
) -> dict[str, NDArray[np.float32]]:
    """Scores of every pair of every split, each float32 [pairs, 2], chosen first."""
    return {
        name: pair_scores(scorer, pairs, np.arange(len(pairs)), group, packing, row_tokens)
        for name, pairs in splits.items()
    }


def split_metrics(
    splits: Mapping[str, Pairs], scores: Mapping[str, NDArray[np.float32]], settings: TrainingSettings
) -> dict[str, float | int | None]:
    """`<split>_loss`, `<split>_accuracy` (None where it has no pairs) and `<split>_pairs` for each split."""
    metrics: dict[str, float | int | None] = {}
    for name, found in scores.items():
        pairs = splits[name]
        rows = np.arange(len(pairs))
        loss, accuracy = mean_loss_and_accuracy(found, pairs, rows, settings) if len(pairs) else (None, None)
        metrics |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy, f"{name}_pairs": len(pairs)}
    return metrics


def write_scores(path: Path, splits: Mapping[str, Pairs], scores: Mapping[str, NDArray[np.float32]]) -> None:
    """A row for each pair with the schema SCORES; a file without rows where there are no held-out pairs."""
    tables = [_scores_table(name, splits[name], found) for name, found in scores.items()]
    write_table(path, pa.concat_tables(tables))


def _scores_table(split: str, pairs: Pairs, scores: NDArray[np.float32]) -> pa.Table:
    columns = {name: pairs.keys.column(name) for name in pairs.keys.column_names} | {
        "split": pa.array([split] * len(pairs), pa.string()),
        "chosen_score": scores[:, 0],
        "rejected_score": scores[:, 1],
        "chosen_length": pairs.lengths("chosen").astype(np.int32),
        "rejected_length": pairs.lengths("rejected").astype(np.int32),
        "margin": pairs.margin,
    }
    return pa.table([columns[name] for name in SCORES.names], schema=SCORES)
