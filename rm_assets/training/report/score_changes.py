"""Held-out pairs that two models rank differently: one of them right, the other wrong."""

import pandas as pd

from rm_assets.training.report.calibration import wins
from rm_assets.training.report.slices import KEY

_SCORES = ["chosen_score", "rejected_score"]
COLUMNS = [*KEY, "split", *_SCORES, *(f"{name}_before" for name in _SCORES)]


def changed_verdicts(before: pd.DataFrame, now: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The pairs that are newly ranked right, and those newly ranked wrong, of the pairs that both models scored.

    A tie counts as half: towards it from a wrong ranking is better, from a right one worse. Both frames have the schema
    `schemas.SCORES`; the results have COLUMNS, the largest change of the difference of scores first.
    """
    pairs = now.merge(before[[*KEY, *_SCORES]], on=KEY, suffixes=("", "_before"))
    difference = pairs["chosen_score"] - pairs["rejected_score"]
    difference_before = pairs["chosen_score_before"] - pairs["rejected_score_before"]
    change = wins(difference) - wins(difference_before)
    order = (difference - difference_before).abs().sort_values(ascending=False, kind="stable").index
    pairs, change = pairs.loc[order, COLUMNS], change.loc[order]
    return pairs[change > 0], pairs[change < 0]
