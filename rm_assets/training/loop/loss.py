"""The Bradley-Terry loss and its options."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from rm_assets.settings import TrainingSettings
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.packing.pairs import Pairs

LARGEST_USUAL_MARGIN = 3.0
"""Of Llama 2 (2307.09288, table 27); with a margin of m, the loss calls for a difference of scores beyond m."""


def pair_losses(chosen: Tensor, rejected: Tensor, margin: Tensor, settings: TrainingSettings) -> Tensor:
    """The loss of each pair, float32 [B], from its two scores and its margin, each float32 [B].

    With the difference d = r_chosen - r_rejected, the loss of Bradley and Terry 1952 is `-log sigmoid(d)` ("plain").
    "margin" takes `d - margin` for d (Llama 2, 2307.09288, eq. 2, with margins of at most 3; Llama 3, 2407.21783,
    4.1.2, found no gain and dropped it). "scaled" multiplies the loss by the margin (HelpSteer2-Preference, 2410.01257,
    "Scaled BT"); a margin of 0, which means that the annotation gives none, counts as 1. Label smoothing e gives
    `-(1 - e) log sigmoid(d) - e log sigmoid(-d)` (2401.06080, eq. 7), which has its least value at sigmoid(d) = 1 - e.
    The likelihood depends only on differences; `center_rewards * (r_chosen + r_rejected)^2` pins the free constant near
    zero (2312.09244, eq. 2).

    Worked example: scores 1 and 0, margin 0.5 and weight 0.01 give log(1 + exp(-0.5)) + 0.01 = 0.474077 + 0.01;
    plain, the default, log(1 + exp(-1)) + 0.01 = 0.313262 + 0.01; scaled, half of 0.313262, + 0.01.
    """
    difference = chosen - rejected
    if settings.loss == "margin":
        difference = difference - margin
    losses = -logsigmoid(difference)
    if settings.label_smoothing:
        losses = (1 - settings.label_smoothing) * losses - settings.label_smoothing * logsigmoid(-difference)
    if settings.loss == "scaled":
        losses = losses * torch.where(margin == 0, torch.ones_like(margin), margin)
    return losses + settings.center_rewards * (chosen + rejected).square()


def large_margin(pairs: Pairs, settings: TrainingSettings) -> str:
    """A warning if the loss "margin" would subtract more than LARGEST_USUAL_MARGIN, else ""."""
    largest = float(pairs.margin.max(initial=0.0))
    if settings.loss != "margin" or largest <= LARGEST_USUAL_MARGIN:
        return ""
    return (
        f"margins are up to {largest:.4g}, with the loss 'margin' they are usually at most {LARGEST_USUAL_MARGIN:g}: "
        "scores will be far apart where the labels are not certain; give smaller margins, or set loss to plain"
    )


def check_margins(splits: Mapping[str, Pairs], settings: TrainingSettings) -> None:
    """Raise TrainingError for a negative margin with the loss "scaled", which would reverse the preference."""
    if settings.loss != "scaled":
        return
    for split, pairs in splits.items():
        wrong = np.flatnonzero(pairs.margin < 0)
        if wrong.size:
            [pair_id] = pairs.pair_ids(wrong[:1])
            raise TrainingError(
                f"margin is {float(pairs.margin[wrong[0]])!r} in pair {pair_id!r}, split {split!r}: the loss 'scaled' "
                "multiplies by it; give non-negative margins, or choose another loss"
            )


NUM_NAMED = 3
"""Pairs that an error names."""


def worst_pairs(pairs: Pairs, rows: NDArray[np.int64], losses: NDArray[np.float64]) -> str:
    """For an error: the rows whose loss is not finite, then those of the largest loss, and how to see the first."""
    order = np.argsort(-np.where(np.isfinite(losses), losses, np.inf), kind="stable")[:NUM_NAMED]
    pair_ids = pairs.pair_ids(rows[order])
    found = zip(pair_ids, losses[order], pairs.margin[rows[order]], strict=True)
    named = ", ".join(f"{pair_id} (loss {loss:.4g}, margin {margin:.4g})" for pair_id, loss, margin in found)
    return f"of {len(rows)} pairs these have the largest losses: {named}; see: python -m rm_assets.trace {pair_ids[0]}"


def num_right(chosen: Tensor, rejected: Tensor) -> Tensor:
    """How many pairs, of scores float32 [B] each, are ranked right, a tie counting one half: a float64 scalar."""
    return (chosen.detach() - rejected.detach()).sign().add(1).double().sum() / 2
