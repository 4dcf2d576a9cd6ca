"""Held-out evaluation from one score per side: accuracy, its interval, calibration, slices, null baselines.

Everything is exact in that it is computed from every pair of the split, in float64, and depends on the rows
alone, not on their order. A pair's difference is d = r_chosen - r_rejected and the model's probability for it
sigmoid(d); the annotation's margin is a device of training and only slices the pairs here. A tie counts as one
half, so that a model that scores everything alike has accuracy 0.5.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rm_assets.training.jobs.training_job import EVALUATION
from rm_assets.training.report.baselines import PROMPT_BASELINES
from rm_assets.training.report.benchmark_rules import BEST, PLACES, STYLES, benchmark_rows
from rm_assets.training.report.calibration import (
    calibration_bins,
    expected_calibration_error,
    fitted_temperature,
    log_losses,
    wins,
)
from rm_assets.training.report.intervals import bootstrap_interval
from rm_assets.training.report.slices import FACTS, KEY, NO_MARGIN, SLICES, length_bucket, margin_bucket

ALL = "all"
NO_SUBSET = "(none)"
NO_AGREEMENT = "not stated"
_OWN_VALUES = {ALL, NO_SUBSET, BEST, *STYLES}
"""What the report calls rows of its own, beside those of subsets."""
TABLE_COLUMNS = ["slice", "value", "num_pairs", "num_prompts", "accuracy", "accuracy_low", "accuracy_high"]
TABLE_COLUMNS += ["log_loss", "expected_calibration_error", "mean_chosen_score", "std_chosen_score"]
TABLE_COLUMNS += ["mean_rejected_score", "std_rejected_score", "longer_wins", "shorter_wins", *PROMPT_BASELINES]


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What is known about a reward model.

    `metrics`: figures over all test pairs, see `_metrics`. `table`: one row per slice with TABLE_COLUMNS, those
    of the evaluation sets last. `calibration`: one row per bin of confidence, see `calibration_bins`. `pairs`:
    every pair that counts, of the test split and the evaluation sets, with what the figures are means of.
    """

    metrics: dict[str, float | int]
    table: pd.DataFrame
    calibration: pd.DataFrame
    pairs: pd.DataFrame


def build_report(
    scores: pd.DataFrame, facts: pd.DataFrame, baselines: pd.DataFrame | None = None, split: str = "test"
) -> Report:
    """The report on the pairs of `split`, and on those of every evaluation set.

    `scores` has a row per pair: source, line, pair_id, prompt_key, split, chosen_score, rejected_score,
    chosen_length and rejected_length (tokens of the whole side), margin. `facts` has source, line, pair_id and
    FACTS, and may have the PLACES of a ranking's replies, for these pairs at least. `baselines` has source, line,
    pair_id and PROMPT_BASELINES (1, 0.5, 0 or NaN), for any of them. The temperature is fitted on the validation
    split. Raises ValueError for an empty split, a score that is not finite, and a pair that is scored twice or has
    no row in `facts`.
    """
    sets = sorted(name for name in set(scores["split"]) if name.startswith(EVALUATION) and name != split)
    judged = {name: _judged(_joined(_rows_of(scores, name), facts), baselines) for name in (split, *sets)}
    pairs = judged[split]
    calibration = calibration_bins(pairs["difference"].to_numpy())
    metrics = _metrics(pairs, fitted_temperature(_differences(scores[scores["split"] == "validation"]).to_numpy()))
    tables = [_slice_table(pairs), *(_evaluation_table(name, judged[name]) for name in sets)]
    return Report(
        metrics=metrics,
        table=pd.concat(tables, ignore_index=True),
        calibration=calibration,
        pairs=pd.concat(judged.values(), ignore_index=True),
    )


def is_above_chance(metrics: Mapping[str, float | int]) -> bool:
    """Whether the whole 95 % interval of the accuracy lies above a coin's."""
    return bool(metrics["accuracy_low"] > 0.5)


def _rows_of(scores: pd.DataFrame, split: str) -> pd.DataFrame:
    rows = scores[scores["split"] == split].sort_values(KEY, kind="stable", ignore_index=True)
    if rows.empty:
        setting = f"a larger {split}_fraction or " if split in ("validation", "test") else ""
        raise ValueError(f"split {split!r} holds no pairs: it needs {setting}annotations of more prompts")
    finite = np.isfinite(rows[["chosen_score", "rejected_score"]].to_numpy(dtype=np.float64)).all(axis=1)
    if not finite.all():
        raise ValueError(f"{(~finite).sum()} pairs have no finite score, first {_place(rows[~finite])}")
    twice = rows.duplicated(KEY)
    if twice.any() and not split.startswith(EVALUATION):
        raise ValueError(f"{twice.sum()} pairs are scored twice, first {_place(rows[twice])}")
    # Evaluation sets keep what a line states twice (a ranking with equal replies); it counts once.
    return rows.drop_duplicates(KEY, ignore_index=True)


def _joined(rows: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    # One line may state the same pair twice (a ranking with equal replies); its rows agree in every fact.
    known = facts[[name for name in (*KEY, *FACTS, *PLACES) if name in facts or name in FACTS]].drop_duplicates(KEY)
    joined = rows.merge(known, how="left", on=KEY, indicator="found", validate="one_to_one")
    lost = joined["found"] == "left_only"
    if lost.any():
        raise ValueError(
            f"{lost.sum()} scored pairs have no row in the slices, first {_place(joined[lost])}: "
            "take the slices from the snapshot that the scored pairs were made of"
        )
    return joined.drop(columns="found")


def _place(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return f"{first['source']!r} line {first['line']} pair {first['pair_id']!r}"


def _differences(scores: pd.DataFrame) -> pd.Series:
    return scores["chosen_score"].astype("float64") - scores["rejected_score"].astype("float64")


def _judged(pairs: pd.DataFrame, baselines: pd.DataFrame | None) -> pd.DataFrame:
    """Adds what the figures are means of: `difference`, `correct`, `loss`, `longer`, baselines, a value per pair."""
    difference = _differences(pairs)
    tokens = pairs["chosen_length"].astype("int64") - pairs["rejected_length"].astype("int64")
    judged = pairs.assign(
        chosen_score=pairs["chosen_score"].astype("float64"),
        rejected_score=pairs["rejected_score"].astype("float64"),
        difference=difference,
        correct=wins(difference),
        loss=log_losses(difference),
        longer=wins(tokens),
        length_difference=length_bucket(tokens),
        margin=margin_bucket(pairs["margin"]),
    )
    if baselines is None:
        return judged.assign(**dict.fromkeys(PROMPT_BASELINES, np.nan))
    known = baselines[[*KEY, *PROMPT_BASELINES]].drop_duplicates(KEY)
    return judged.merge(known, how="left", on=KEY, validate="one_to_one")


def _metrics(pairs: pd.DataFrame, temperature: float | None) -> dict[str, float | int]:
    """The figures over all pairs: those of their row in the table, and what is known of all pairs only.

    `temperature` divides the scores best, see `fitted_temperature`, and is left out where there is none; with it
    comes what the log loss and the calibration error would be.
    """
    row = _row(pairs, "all", ALL)
    figures = {name: row[name] for name in TABLE_COLUMNS[4:]}
    difference = pairs["difference"].to_numpy()
    figures |= {"mean_score_margin": difference.mean(), "tied_share": (difference == 0).mean()}
    if temperature is not None:
        figures |= {
            "temperature": temperature,
            "log_loss_at_temperature": log_losses(difference / temperature).mean(),
            "calibration_error_at_temperature": expected_calibration_error(calibration_bins(difference / temperature)),
        }
    figures |= _score_length_correlation(pairs)
    counts = {name: int(row[name]) for name in ("num_pairs", "num_prompts")}
    return counts | {name: float(value) for name, value in figures.items() if np.isfinite(value)}


def _score_length_correlation(pairs: pd.DataFrame) -> dict[str, float]:
    """Pearson's and Spearman's correlation of score and length, over both sides of all pairs.

    Length is that of the whole side, in tokens, prompt included. `difference_length_spearman` is that of the
    differences of scores and of lengths within the pairs, where prompts cancel out. All are left out where they
    are undefined: all scores or all lengths equal.
    """
    score, length = (
        pd.concat([pairs[f"chosen_{name}"], pairs[f"rejected_{name}"]], ignore_index=True)
        for name in ("score", "length")
    )
    # Each pair from both sides: which of two replies stands first says nothing, and both means are zero.
    apart, longer = (
        pd.concat([sign * (pairs[f"chosen_{name}"] - pairs[f"rejected_{name}"]) for sign in (1, -1)], ignore_index=True)
        for name in ("score", "length")
    )
    # Spearman's is Pearson's on the ranks, equal values sharing their mean rank.
    found = {
        "score_length_pearson": _correlation(score, length),
        "score_length_spearman": _correlation(score.rank(), length.rank()),
        "difference_length_spearman": _correlation(apart.rank(), longer.rank()),
    }
    return {name: value for name, value in found.items() if value is not None}


def _correlation(one: pd.Series, other: pd.Series) -> float | None:
    if one.nunique() == 1 or other.nunique() == 1:
        return None
    return float(one.corr(other))


def _slice_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """One row for all pairs, then one per value of each slice, sorted."""
    agreement = pairs["agreement"].where(pairs["agreement"] != "", NO_AGREEMENT)
    named = pairs.assign(subset=_named_subsets(pairs), agreement=agreement)
    rows = [_row(pairs, "all", ALL)]
    for name in SLICES:
        # A slice that no annotation fills would say nothing.
        if (name in ("subset", "agreement") and not pairs[name].any()) or (
            name == "margin" and _without_margins(pairs)
        ):
            continue
        rows += [_row(group, name, str(value)) for value, group in named.groupby(name, sort=True, observed=True)]
    return pd.DataFrame(rows, columns=TABLE_COLUMNS)


def _without_margins(pairs: pd.DataFrame) -> bool:
    return bool((pairs["margin"] == NO_MARGIN).all())


def _named_subsets(pairs: pd.DataFrame) -> pd.Series:
    return pairs["subset"].map({subset: _subset_name(subset) for subset in pairs["subset"].unique()})


def _subset_name(subset: str) -> str:
    """A subset's value in the table, for each another and none of the report's own: `'all'` where it is called all."""
    if not subset:
        return NO_SUBSET
    return repr(subset) if subset in _OWN_VALUES or subset[0] in "'\"" else subset


def _evaluation_table(split: str, pairs: pd.DataFrame) -> pd.DataFrame:
    """The rows of an evaluation set: all its pairs, those of each subset, and its benchmark's own rules."""
    return pd.DataFrame(_evaluation_rows(split, pairs), columns=TABLE_COLUMNS)


def _evaluation_rows(split: str, pairs: pd.DataFrame) -> Iterator[dict[str, Any]]:
    yield _row(pairs, split, ALL)
    if pairs["subset"].any():
        for subset, group in pairs.groupby(_named_subsets(pairs), sort=True):
            yield _row(group, split, str(subset))
    for value, judged in benchmark_rows(pairs):
        interval = bootstrap_interval(judged["correct"], judged["prompt_key"])
        figures = {"num_pairs": len(judged), "num_prompts": judged["prompt_key"].nunique()}
        yield figures | {
            "slice": split,
            "value": value,
            "accuracy": judged["correct"].mean(),
            "accuracy_low": interval[0],
            "accuracy_high": interval[1],
        }


def _row(pairs: pd.DataFrame, name: str, value: str) -> dict[str, Any]:
    """The figures of a slice; standard deviations are those of the population.

    `longer_wins` is the accuracy of preferring the side with more tokens; PROMPT_BASELINES are those of the
    pairs that were scored anew for them, and NaN where none was.
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
