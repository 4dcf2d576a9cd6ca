"""The table of the report: a row of figures for all pairs, for each value of each slice, and for evaluation sets."""

from typing import Any

import numpy as np
import pandas as pd

from rm_assets.data.tables import schemas
from rm_assets.training.report.baselines import PROMPT_BASELINES
from rm_assets.training.report.benchmark_rules import BEST, STYLE_MEAN, STYLES, benchmark_rows
from rm_assets.training.report.calibration import calibration_bins, expected_calibration_error
from rm_assets.training.report.intervals import bootstrap_interval
from rm_assets.training.report.slices import NO_MARGIN, SLICES

ALL = "all"
NO_SUBSET = "(none)"
NO_AGREEMENT = "not stated"
_OWN_VALUES = {ALL, NO_SUBSET, BEST, *STYLES}
JUDGEBENCH = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "code",
}
"""The categories of JudgeBench (Tan et al. 2025, table 1), by the beginnings of its subsets."""
_OWN_BEGINNINGS = ("'", '"', STYLE_MEAN)
"""Values of the report's own rows, which a subset must not share."""
TABLE_COLUMNS = schemas.REPORT.names


def slice_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """One row for all pairs, then one per value of each slice, sorted."""
    agreement = pairs["agreement"].where(pairs["agreement"] != "", NO_AGREEMENT)
    named = pairs.assign(subset=_named_subsets(pairs), agreement=agreement)
    rows = [table_row(pairs, "all", ALL)]
    for name in SLICES:
        if name in ("subset", "agreement") and not pairs[name].any():
            continue  # no annotation states it
        if name == "margin" and (pairs["margin"] == NO_MARGIN).all():
            continue
        rows += [table_row(group, name, str(value)) for value, group in named.groupby(name, sort=True, observed=True)]
    return pd.DataFrame(rows, columns=TABLE_COLUMNS)


def _named_subsets(pairs: pd.DataFrame) -> pd.Series:
    return pairs["subset"].map({subset: _subset_name(subset) for subset in pairs["subset"].unique()})


def _subset_name(subset: str) -> str:
    """A subset's value in the table, quoted where it equals one of the report's own: `'all'` for a subset named all."""
    if not subset:
        return NO_SUBSET
    return repr(subset) if subset in _OWN_VALUES or subset.startswith(_OWN_BEGINNINGS) else subset


def _category(subset: str) -> str:
    return next((name for beginning, name in JUDGEBENCH.items() if subset.startswith(beginning)), "")


def evaluation_table(split: str, pairs: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The rows of an evaluation set: all its pairs, those of each subset, those of JudgeBench's categories, and its
    benchmark's own rules.

    `cells` are the pairs as `benchmark_rows` takes them.
    """
    rows = [table_row(pairs, split, ALL)]
    if pairs["subset"].any():
        groups = pairs.groupby(_named_subsets(pairs), sort=True)
        rows += [table_row(group, split, str(subset)) for subset, group in groups]
        categories = pairs["subset"].map({subset: _category(subset) for subset in pairs["subset"].unique()})
        if categories.all():
            rows += [table_row(group, split, str(name)) for name, group in pairs.groupby(categories, sort=True)]
    for value, judged in benchmark_rows(cells):
        interval = bootstrap_interval(judged["correct"], judged["prompt_key"], judged["weight"])
        rows.append(
            {
                "slice": split,
                "value": value,
                "num_pairs": len(judged),
                "num_prompts": judged["prompt_key"].nunique(),
                "accuracy": np.average(judged["correct"], weights=judged["weight"]),
                "accuracy_low": interval[0],
                "accuracy_high": interval[1],
            }
        )
    return pd.DataFrame(rows, columns=TABLE_COLUMNS)


def table_row(pairs: pd.DataFrame, name: str, value: str) -> dict[str, Any]:
    """The figures of a slice; standard deviations are those of the population.

    `longer_wins` is the accuracy of preferring the side with more tokens; PROMPT_BASELINES are means
    over the pairs that were scored again for them, NaN if none was.
    """
    accuracy_low, accuracy_high = bootstrap_interval(pairs["correct"], pairs["prompt_key"])
    bins = calibration_bins(pairs["difference"].to_numpy())
    return {
        "slice": name,
        "value": value,
        "num_pairs": len(pairs),
        "num_prompts": pairs["prompt_key"].nunique(),
        "accuracy": pairs["correct"].mean(),
        "accuracy_low": accuracy_low,
        "accuracy_high": accuracy_high,
        "log_loss": pairs["loss"].mean(),
        "expected_calibration_error": expected_calibration_error(bins),
        "mean_chosen_score": pairs["chosen_score"].mean(),
        "std_chosen_score": pairs["chosen_score"].std(ddof=0),
        "mean_rejected_score": pairs["rejected_score"].mean(),
        "std_rejected_score": pairs["rejected_score"].std(ddof=0),
        "longer_wins": pairs["longer"].mean(),
        "shorter_wins": 1 - pairs["longer"].mean(),
        **{baseline: pairs[baseline].mean() for baseline in PROMPT_BASELINES},
    }
