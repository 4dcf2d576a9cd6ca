"""Held-out evaluation from one score per side: accuracy, its interval, calibration, slices, null baselines.

Everything is exact in that it is computed from every pair of the split, in float64, and depends on the rows
alone, not on their order. A pair's difference is d = r_chosen - r_rejected and the model's probability for it
sigmoid(d); the annotation's margin matters for training and only slices the pairs here. A tie counts one half,
so a model that gives all replies the same score has accuracy 0.5.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rm_assets.training.jobs.training_job import EVALUATION
from rm_assets.training.report.baselines import PROMPT_BASELINES
from rm_assets.training.report.benchmark_rules import PLACES
from rm_assets.training.report.calibration import (
    calibration_bins,
    expected_calibration_error,
    fit_temperature,
    log_losses,
    wins,
)
from rm_assets.training.report.slice_table import ALL, TABLE_COLUMNS, evaluation_table, slice_table, table_row
from rm_assets.training.report.slices import FACTS, KEY, length_bucket, margin_bucket


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What is known about a reward model.

    `metrics`: figures over all test pairs, or over those of all evaluation sets if there are none, see `_metrics`.
    `table`: one row per slice with TABLE_COLUMNS, those of the evaluation sets last. `calibration`: one row per bin of
    confidence, see `calibration_bins`. `pairs`: every pair that counts, of the test split and the evaluation sets, with
    the values that the figures are means of.
    """

    metrics: dict[str, float | int]
    table: pd.DataFrame
    calibration: pd.DataFrame
    pairs: pd.DataFrame


def build_report(
    scores: pd.DataFrame, facts: pd.DataFrame, baselines: pd.DataFrame | None = None, split: str = "test"
) -> Report:
    """The report on the pairs of `split`, and on those of every evaluation set; without the first, the sets together
    take its place.

    `scores` has a row per pair: source, line, pair_id, prompt_key, split, chosen_score, rejected_score,
    chosen_length and rejected_length (tokens of the whole side), margin. `facts` has source, line, pair_id and
    FACTS, and may have the PLACES of a ranking's replies, for these pairs at least, with a row for each place of a pair
    that its line repeats. `baselines` has source, line, pair_id and PROMPT_BASELINES (1, 0.5, 0 or NaN), for any of
    them. The temperature is fitted on the validation split. Raises ValueError for an empty split, a score that is not
    finite, and a pair that is scored twice or has no row in `facts`.
    """
    sets = sorted(name for name in set(scores["split"]) if name.startswith(EVALUATION) and name != split)
    own = [] if sets and not (scores["split"] == split).any() else [split]
    judged = {name: _judged(_joined(_rows_of(scores, name), facts), baselines) for name in (*own, *sets)}
    all_pairs = pd.concat(judged.values(), ignore_index=True)
    pairs = judged[split] if own else all_pairs
    calibration = calibration_bins(pairs["difference"].to_numpy())
    metrics = _metrics(pairs, fit_temperature(_differences(scores[scores["split"] == "validation"]).to_numpy()))
    tables = [slice_table(pairs), *(evaluation_table(name, judged[name], _cells(judged[name], facts)) for name in sets)]
    return Report(
        metrics=metrics,
        table=pd.concat(tables, ignore_index=True),
        calibration=calibration,
        pairs=all_pairs,
    )


def is_above_chance(metrics: Mapping[str, float | int]) -> bool:
    """Whether the whole 95 % interval of the accuracy is above chance."""
    return bool(metrics["accuracy_low"] > 0.5)


def _rows_of(scores: pd.DataFrame, split: str) -> pd.DataFrame:
    rows = scores[scores["split"] == split].sort_values(KEY, kind="stable")
    if rows.empty:
        setting = f"a larger {split}_fraction or " if split in ("validation", "test") else ""
        raise ValueError(f"split {split!r} holds no pairs: it needs {setting}annotations of more prompts")
    finite = np.isfinite(rows[["chosen_score", "rejected_score"]].to_numpy(dtype=np.float64)).all(axis=1)
    if not finite.all():
        raise ValueError(f"{(~finite).sum()} pairs have no finite score, first {_place(rows[~finite])}")
    twice = rows.duplicated(KEY)
    if twice.any() and not split.startswith(EVALUATION):
        raise ValueError(f"{twice.sum()} pairs are scored twice, first {_place(rows[twice])}")
    # Evaluation sets keep pairs that a line contains twice (a ranking with equal replies). They count once, but for
    # the rules of benchmarks, see `_cells`.
    return rows.drop_duplicates(KEY)


def _joined(rows: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    # A line may contain a pair twice (a ranking with equal replies); its rows have the same facts.
    known = facts[[*KEY, *FACTS]].drop_duplicates(KEY)
    joined = rows.merge(known, how="left", on=KEY, indicator="found", validate="one_to_one")
    lost = joined["found"] == "left_only"
    if lost.any():
        raise ValueError(
            f"{lost.sum()} scored pairs have no row in the slices, first {_place(joined[lost])}: "
            "take the slices from the snapshot that the scored pairs come from"
        )
    return joined.drop(columns="found")


def _cells(pairs: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    """The pairs with their PLACES if they are known, each as often as its line contains it."""
    if not set(PLACES).issubset(facts):
        return pairs
    return pairs.merge(facts[[*KEY, *PLACES]].drop_duplicates(), how="left", on=KEY)


def _place(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return f"{first['source']!r} line {first['line']} pair {first['pair_id']!r}"


def _differences(scores: pd.DataFrame) -> pd.Series:
    return scores["chosen_score"].astype("float64") - scores["rejected_score"].astype("float64")


def _judged(pairs: pd.DataFrame, baselines: pd.DataFrame | None) -> pd.DataFrame:
    """Add the values per pair that the figures are means of: `difference`, `correct`, `loss`, `longer`, baselines."""
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

    `temperature` is the best divisor of the scores, see `fit_temperature`, left out if there is none; with it come the
    log loss and the calibration error that it would give.
    """
    row = table_row(pairs, "all", ALL)
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
    differences of scores and of lengths within the pairs, where prompts cancel out. NaN where they are undefined: all
    scores or all lengths equal.
    """
    score, length = (pd.concat([pairs[f"chosen_{name}"], pairs[f"rejected_{name}"]]) for name in ("score", "length"))
    # Each pair counts from both sides: the order of the replies means nothing, and so both means are zero.
    apart, longer = (
        pd.concat([sign * (pairs[f"chosen_{name}"] - pairs[f"rejected_{name}"]) for sign in (1, -1)])
        for name in ("score", "length")
    )
    # Spearman's is Pearson's on the ranks, equal values sharing their mean rank.
    return {
        "score_length_pearson": score.corr(length),
        "score_length_spearman": score.rank().corr(length.rank()),
        "difference_length_spearman": apart.rank().corr(longer.rank()),
    }
