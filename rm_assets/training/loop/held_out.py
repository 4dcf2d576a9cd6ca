"""Scores of held-out pairs: each is the score of its sequence alone, whatever it is batched with.

On a GPU the final scores are computed in bfloat16, several times as fast as in float32. A sample of the pairs is
computed in both, and the difference is published with the scores.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from rm_assets.data.storage.parquet import write_table
from rm_assets.data.tables import schemas
from rm_assets.settings import TrainingSettings
from rm_assets.training.devices import moved, prefetch
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.loop.group import Group
from rm_assets.training.loop.loss import num_right, pair_losses, worst_pairs
from rm_assets.training.loop.stopping import StopPoints
from rm_assets.training.model.scoring import Scorer, round_weights
from rm_assets.training.model.scoring import scores as scores_of
from rm_assets.training.packing.batches import collate
from rm_assets.training.packing.pairs import Pairs
from rm_assets.training.packing.planning import Packing, Rows, plan_rows

NUM_SAMPLED = 64
"""Pairs that are computed in both precisions. If there are no more than these, all are computed in float32."""


@dataclass(frozen=True)
class Rounding:
    """What bfloat16 changed in a sample of the pairs: the largest difference of a score, and pairs ranked differently.

    A pair is ranked by which of its sides scores higher, or as a tie.
    """

    sample_pairs: int
    largest_difference: float
    changed_pairs: int

    @classmethod
    def of(cls, exact: NDArray[np.float32], rounded: NDArray[np.float32]) -> "Rounding":
        """The difference of scores in float32 and in bfloat16 of the same pairs, each float32 [pairs, 2]."""
        rankings = [np.sign(scores[:, 0] - scores[:, 1]) for scores in (exact, rounded)]
        largest = np.abs(exact.astype(np.float64) - rounded).max()
        return cls(len(exact), float(largest), int((rankings[0] != rankings[1]).sum()))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of every pair of every split, each float32 [pairs, 2], chosen first; `rounding` if not in float32."""

    scores: dict[str, NDArray[np.float32]]
    rounding: Rounding | None = None

    @property
    def precision(self) -> str:
        """The precision of the scores and its effect, as a sentence."""
        num_pairs = sum(map(len, self.scores.values()))
        what = f"scores of {num_pairs:,} held-out pairs computed in"
        if self.rounding is None:
            return f"{what} float32"
        sample, changed = self.rounding.sample_pairs, self.rounding.changed_pairs
        ranked = f"{changed} of {sample} pairs were" if changed else "no pair was"
        return (
            f"{what} bfloat16; on a float32 sample of {sample} pairs the largest difference of a score was "
            f"{self.rounding.largest_difference:.2g} and {ranked} ranked differently"
        )

    def figures(self) -> dict[str, str | float | int]:
        """The precision for the manifest: `scores_dtype`, `scores_precision`, and the figures of the rounding."""
        found: dict[str, str | float | int] = {"scores_dtype": "float32", "scores_precision": self.precision}
        if self.rounding is None:
            return found
        return found | {
            "scores_dtype": "bfloat16",
            "bfloat16_sample_pairs": self.rounding.sample_pairs,
            "bfloat16_sample_largest_difference": self.rounding.largest_difference,
            "bfloat16_sample_changed_pairs": self.rounding.changed_pairs,
        }


@torch.no_grad()  # not inference mode: training writes again to the buffers that FSDP gathers into
def pair_scores(
    scorer: nn.Module,
    pairs: Pairs,
    rows: Rows,
    group: Group,
    packing: Packing,
    row_tokens: int,
    stop_points: StopPoints | None = None,
    progress: Callable[[int], object] = lambda num_done: None,
) -> NDArray[np.float32]:
    """The scores of the rows, float32 [rows, 2], chosen first; each process computes a part and gets all.

    `progress` is called with the number of pairs that are scored so far, between micro-batches.
    Raises StepAbandonedError at one of the `stop_points`.
    """
    found = torch.zeros(len(pairs), 2, device=group.device)
    plans = plan_rows(pairs, rows, packing, row_tokens, group.size)[group.rank]
    num_done = 0
    for batch in prefetch(lambda plan: collate(pairs, plan, group.device), plans, group.device):
        if stop_points:
            stop_points.before_micro_batch()
        progress(num_done)
        num_done += group.size * len(batch.rows)
        both = torch.stack(scores_of(scorer, batch), dim=1)
        found[moved(torch.from_numpy(batch.rows), group.device)] = both
    group.all_reduce(found)  # zero in all processes but one, so the sum is exact
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
            f"loss of held-out pairs is {loss!r}: the weights have diverged (lower learning_rate) or the margins are "
            f"too large; {worst_pairs(pairs, rows, losses.numpy())}"
        )
    return loss, float(num_right(chosen, rejected)) / len(scores)


def evaluate(
    scorer: Scorer,
    splits: Mapping[str, Pairs],
    group: Group,
    packing: Packing,
    row_tokens: int,
    bfloat16: bool = False,
    progress: Callable[[str], object] = lambda text: None,
) -> Evaluation:
    """Scores of every pair of every split. In `bfloat16` the scorer's weights stay rounded."""

    def scored(rows: Mapping[str, Rows]) -> dict[str, NDArray[np.float32]]:
        return {name: score_split(name, rows[name]) for name in splits}

    def score_split(name: str, rows: Rows) -> NDArray[np.float32]:
        def show(num_done: int) -> None:
            progress(f"{num_done:,} of {len(rows):,} {name} pairs scored")

        return pair_scores(scorer, splits[name], rows, group, packing, row_tokens, progress=show)

    every = {name: np.arange(len(pairs)) for name, pairs in splits.items()}
    if not bfloat16 or sum(map(len, splits.values())) <= NUM_SAMPLED:
        return Evaluation(scored(every))
    sample = _sample(splits, NUM_SAMPLED)
    exact = scored(sample)
    round_weights(scorer)
    found = scored(every)
    sample_scores = [found[name][rows] for name, rows in sample.items()]
    return Evaluation(found, Rounding.of(np.concatenate([*exact.values()]), np.concatenate(sample_scores)))


def _sample(splits: Mapping[str, Pairs], size: int) -> dict[str, Rows]:
    """Rows of `size` pairs, evenly spaced over all splits; for splits of 3 and 5 and a size of 4: 0, 2 and 1, 3."""
    ends = np.cumsum([len(pairs) for pairs in splits.values()])
    places = np.arange(size) * ends[-1] // size
    parts = np.split(places, np.searchsorted(places, ends[:-1]))
    return {name: part - (end - len(splits[name])) for name, part, end in zip(splits, parts, ends, strict=True)}


def split_metrics(
    splits: Mapping[str, Pairs], scores: Mapping[str, NDArray[np.float32]], settings: TrainingSettings
) -> dict[str, float | int | None]:
    """`<split>_loss`, `<split>_accuracy` (None if it has no pairs) and `<split>_pairs` for each split."""
    metrics: dict[str, float | int | None] = {}
    for name, found in scores.items():
        pairs = splits[name]
        rows = np.arange(len(pairs))
        loss, accuracy = mean_loss_and_accuracy(found, pairs, rows, settings) if len(pairs) else (None, None)
        metrics |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy, f"{name}_pairs": len(pairs)}
    return metrics


def write_scores(path: Path, splits: Mapping[str, Pairs], scores: Mapping[str, NDArray[np.float32]]) -> None:
    """Write a row for each pair, with the schema schemas.SCORES; no rows if there are no held-out pairs."""
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
    return pa.table([columns[name] for name in schemas.SCORES.names], schema=schemas.SCORES)
