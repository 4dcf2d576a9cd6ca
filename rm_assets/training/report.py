"""Held-out evaluation from one score per side: accuracy, its interval, calibration, slices, null baselines.

Everything is exact in that it is computed from every pair of the split, in float64, and depends on the rows
alone, not on their order. A pair's difference is d = r_chosen - r_rejected and the model's probability for it
sigmoid(d); the annotation's margin is a device of training and plays no part here. A tie counts as one half,
so that a model that scores everything alike has accuracy 0.5. Not covered: agreement between annotators,
which needs several annotations of one pair.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

NUM_BINS = 10
NUM_RESAMPLES = 1_000
SEED = 0
TABLE_COLUMNS = ["slice", "value", "num_pairs", "accuracy", "accuracy_low", "accuracy_high", "log_loss"]
TABLE_COLUMNS += ["longer_wins", "shorter_wins"]
# `source` comes last: there may be thousands of files, and a table that is cut for display loses its end.
SLICES = ("format", "num_turns", "length_difference", "subset", "source")
# Upper ends of chosen_length - rejected_length, in tokens; no ratio, which a long prompt would blur.
LENGTH_BUCKETS = {
    -65: "chosen shorter by over 64",
    -17: "chosen shorter by 17 to 64",
    -1: "chosen shorter by 1 to 16",
    0: "equal length",
    16: "chosen longer by 1 to 16",
    64: "chosen longer by 17 to 64",
    np.inf: "chosen longer by over 64",
}
_KEY = ["source", "line", "pair_id"]
_NORMAL_QUANTILE = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What is known about a reward model on one split.

    `metrics`: figures over all pairs, see `_metrics`. `table`: one row per slice with TABLE_COLUMNS.
    `calibration`: one row per bin of confidence, see `calibration_bins`.
    """

    metrics: dict[str, float | int]
    table: pd.DataFrame
    calibration: pd.DataFrame


def reward_model_report(scores: pd.DataFrame, slices: pd.DataFrame, split: str = "test") -> Report:
    """The report on the pairs of `split`.

    `scores` has a row per pair: source, line, pair_id, prompt_key, split, chosen_score, rejected_score,
    chosen_length and rejected_length (tokens of the whole side). `slices` has source, line, pair_id, format,
    num_turns and subset, for these pairs at least. Raises ValueError for an empty split, a score that is not
    finite, and a pair that is scored twice or has no row in `slices`.
    """
    pairs = _judged(_joined(_rows_of(scores, split), slices))
    calibration = calibration_bins(pairs["difference"].to_numpy())
    metrics = _metrics(pairs, calibration)
    return Report(metrics=metrics, table=_slice_table(pairs, metrics), calibration=calibration)


def above_chance(metrics: Mapping[str, float | int]) -> bool:
    """Whether the whole 95 % interval of the accuracy lies above a coin's."""
    return bool(metrics["accuracy_low"] > 0.5)


def _rows_of(scores: pd.DataFrame, split: str) -> pd.DataFrame:
    rows = scores[scores["split"] == split].sort_values(_KEY, kind="stable", ignore_index=True)
    if rows.empty:
        setting = f"a larger {split}_fraction or " if split in ("validation", "test") else ""
        raise ValueError(f"split {split!r} holds no pairs: it needs {setting}annotations of more prompts")
    finite = np.isfinite(rows[["chosen_score", "rejected_score"]].to_numpy(dtype=np.float64)).all(axis=1)
    if not finite.all():
        raise ValueError(f"{(~finite).sum()} pairs have no finite score, first {_place(rows[~finite])}")
    twice = rows.duplicated(_KEY)
    if twice.any():
        raise ValueError(f"{twice.sum()} pairs are scored twice, first {_place(rows[twice])}")
    return rows


def _joined(rows: pd.DataFrame, slices: pd.DataFrame) -> pd.DataFrame:
    # One line may state the same pair twice (a ranking with equal replies); its rows agree in every slice.
    known = slices[[*_KEY, "format", "num_turns", "subset"]].drop_duplicates(_KEY)
    joined = rows.merge(known, how="left", on=_KEY, indicator="found", validate="one_to_one")
    lost = joined["found"] == "left_only"
    if lost.any():
        raise ValueError(
            f"{lost.sum()} scored pairs have no row in the slices, first {_place(joined[lost])}: "
            "take the slices from the snapshot that the scored pairs were made of"
        )
    return joined


def _place(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return f"{first['source']!r} line {first['line']} pair {first['pair_id']!r}"


def _judged(pairs: pd.DataFrame) -> pd.DataFrame:
    """Adds what the figures are means of: `difference`, `correct`, `loss`, `longer`, a value per pair."""
    scores = {name: pairs[name].astype("float64") for name in ("chosen_score", "rejected_score")}
    difference = scores["chosen_score"] - scores["rejected_score"]
    tokens = pairs["chosen_length"].astype("int64") - pairs["rejected_length"].astype("int64")
    return pairs.assign(
        **scores,
        difference=difference,
        correct=_wins(difference),
        loss=np.logaddexp(0.0, -difference),  # -log sigmoid(difference), without overflow
        longer=_wins(tokens),
        length_difference=pd.cut(tokens, [-np.inf, *LENGTH_BUCKETS], labels=list(LENGTH_BUCKETS.values())),
    )


def _wins(difference: Any) -> Any:
    """For [2.5, 0, -1] this is [1, 0.5, 0]."""
    return (np.sign(difference) + 1) / 2


def _metrics(pairs: pd.DataFrame, calibration: pd.DataFrame) -> dict[str, float | int]:
    """The figures over all pairs; standard deviations are those of the population.

    `accuracy_low` and `accuracy_high` are `bootstrap_interval`'s; `expected_calibration_error` is defined at
    `calibration_bins`; `longer_wins` is the accuracy of preferring the side with more tokens.
    """
    accuracy_low, accuracy_high = bootstrap_interval(pairs["correct"], pairs["prompt_key"])
    gap = (calibration["frequency"] - calibration["confidence"]).abs()
    figures = {
        "accuracy": pairs["correct"].mean(),
        "accuracy_low": accuracy_low,
        "accuracy_high": accuracy_high,
        "log_loss": pairs["loss"].mean(),
        "expected_calibration_error": (gap * calibration["num_pairs"]).sum() / len(pairs),
        "mean_chosen_score": pairs["chosen_score"].mean(),
        "std_chosen_score": pairs["chosen_score"].std(ddof=0),
        "mean_rejected_score": pairs["rejected_score"].mean(),
        "std_rejected_score": pairs["rejected_score"].std(ddof=0),
        "mean_score_margin": pairs["difference"].mean(),
        "longer_wins": pairs["longer"].mean(),
        "shorter_wins": 1 - pairs["longer"].mean(),
        **_score_length_correlation(pairs),
    }
    counts = {"num_pairs": len(pairs), "num_prompts": int(pairs["prompt_key"].nunique())}
    return counts | {name: float(value) for name, value in figures.items()}


def _score_length_correlation(pairs: pd.DataFrame) -> dict[str, float]:
    """Pearson's and Spearman's correlation of score and length, over both sides of all pairs.

    Length is that of the whole side, in tokens, prompt included. Both are left out where they are undefined:
    all scores or all lengths equal.
    """
    score, length = (
        pd.concat([pairs[f"chosen_{name}"], pairs[f"rejected_{name}"]], ignore_index=True)
        for name in ("score", "length")
    )
    if score.nunique() == 1 or length.nunique() == 1:
        return {}
    # Spearman's is Pearson's on the ranks, equal values sharing their mean rank.
    return {
        "score_length_pearson": score.corr(length),
        "score_length_spearman": score.rank().corr(length.rank()),
    }


def bootstrap_interval(correct: pd.Series, prompt_keys: pd.Series) -> tuple[float, float]:
    """The 95 % percentile interval of the accuracy, resampling prompts (Efron and Tibshirani 1993, ch. 13).

    Pairs of one prompt are not independent, so a resample draws whole prompts, with replacement. It matters
    only how many prompts of a kind (sum of `correct`, number of pairs) are drawn: those counts are
    multinomial, which needs no list of drawn prompts. Where every prompt has the same accuracy no resample
    differs from another, and three right answers of three would pass for certainty: there Wilson's interval
    over the prompts takes its place.
    """
    prompts = correct.groupby(prompt_keys).agg(["sum", "count"]).to_numpy()
    kinds, num_prompts = np.unique(prompts, axis=0, return_counts=True)
    if len(np.unique(kinds[:, 0] / kinds[:, 1])) == 1:
        low, high = wilson_interval(correct.mean(), len(prompts))
        return float(low), float(high)
    generator = np.random.default_rng(SEED)
    drawn = generator.multinomial(len(prompts), num_prompts / len(prompts), size=NUM_RESAMPLES)
    low, high = np.percentile((drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1]), [2.5, 97.5])
    return float(low), float(high)


def wilson_interval(share: Any, count: Any) -> tuple[Any, Any]:
    """The 95 % interval of a share of `count` independent trials (Wilson 1927); elementwise on arrays."""
    weight = _NORMAL_QUANTILE**2 / count
    centre = (share + weight / 2) / (1 + weight)
    reach = np.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    # At 0 and 1 the interval ends there; rounding must not put that end beside the share itself.
    low, high = np.minimum(centre - reach, share), np.maximum(centre + reach, share)
    return np.maximum(low, 0.0), np.minimum(high, 1.0)


def calibration_bins(difference: np.ndarray) -> pd.DataFrame:
    """How often the model is right, by how sure it is; `difference` (pairs,) is r_chosen - r_rejected.

    Guo et al. 2017 for pairs: confidence is max(p, 1 - p) with p = sigmoid(difference), so NUM_BINS equal
    bins, closed on the right, cover 0.5 to 1; frequency is the accuracy in the bin, a tie counting one half.
    Counting each pair from both sides, (p, right) and (1 - p, wrong), over 0 to 1 would mirror these bins and
    give the same error. Columns: bin_low, bin_high, num_pairs, confidence (mean), frequency, and the 95 %
    interval frequency_low, frequency_high (Wilson); all but the first three are NaN in an empty bin.
    """
    edges = np.linspace(0.5, 1.0, NUM_BINS + 1)
    confidence = 1 / (1 + np.exp(-np.abs(difference)))
    pairs = pd.DataFrame({"confidence": confidence, "frequency": _wins(difference)})
    bins = pairs.groupby(np.searchsorted(edges[1:-1], confidence, side="left"))
    means = bins.mean().reindex(range(NUM_BINS))
    num_pairs = bins.size().reindex(range(NUM_BINS), fill_value=0)
    low, high = wilson_interval(means["frequency"], num_pairs.where(num_pairs > 0))
    frame = {"bin_low": edges[:-1], "bin_high": edges[1:], "num_pairs": num_pairs}
    return pd.DataFrame(frame | dict(means.items()) | {"frequency_low": low, "frequency_high": high})


def _slice_table(pairs: pd.DataFrame, metrics: Mapping[str, float | int]) -> pd.DataFrame:
    """One row for all pairs, with the interval of the metrics, then one per value of each slice, sorted.

    A slice's interval is Wilson's over its pairs. It takes them for independent, and is too narrow where a
    prompt has many pairs.
    """
    everything = _slice_rows(pairs.assign(all="all"), "all")
    everything[["accuracy_low", "accuracy_high"]] = metrics["accuracy_low"], metrics["accuracy_high"]
    names = [name for name in SLICES if name != "subset" or (pairs["subset"] != "").any()]
    named = pairs.assign(subset=pairs["subset"].where(pairs["subset"] != "", "(none)"))
    return pd.concat([everything, *(_slice_rows(named, name) for name in names)], ignore_index=True)


def _slice_rows(pairs: pd.DataFrame, name: str) -> pd.DataFrame:
    groups = pairs.groupby(name, sort=True, observed=True)
    rows = groups[["correct", "loss", "longer"]].mean()
    rows.columns = pd.Index(["accuracy", "log_loss", "longer_wins"])
    rows["num_pairs"] = groups.size()
    rows["accuracy_low"], rows["accuracy_high"] = wilson_interval(rows["accuracy"], rows["num_pairs"])
    rows["shorter_wins"] = 1 - rows["longer_wins"]
    rows.insert(0, "value", [str(value) for value in rows.index])
    rows.insert(0, "slice", name)
    return rows.reset_index(drop=True)[TABLE_COLUMNS]
