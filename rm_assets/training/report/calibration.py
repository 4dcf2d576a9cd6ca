"""Calibration of a model's probabilities: reliability bins, expected calibration error, and the best temperature.

A pair's difference is d = r_chosen - r_rejected, and the model's probability for the chosen side sigmoid(d).
"""

from typing import Any

import numpy as np
import pandas as pd

from rm_assets.training.report.intervals import wilson_interval

NUM_BINS = 10
_NUM_HALVINGS = 60


def wins(difference: Any) -> Any:
    """For [2.5, 0, -1] this is [1, 0.5, 0]: a tie counts one half."""
    return (np.sign(difference) + 1) / 2


def log_losses(difference: Any) -> Any:
    """-log sigmoid(d) of each pair, without overflow."""
    return np.logaddexp(0.0, -difference)


def calibration_bins(difference: np.ndarray) -> pd.DataFrame:
    """How often the model is right, by its confidence; `difference` (pairs,) is r_chosen - r_rejected.

    Guo et al. 2017 for pairs: confidence is max(p, 1 - p) with p = sigmoid(difference), so NUM_BINS equal
    bins, closed on the right, cover 0.5 to 1; frequency is the accuracy in the bin, a tie counting one half.
    Counting each pair from both sides, (p, right) and (1 - p, wrong), over 0 to 1 would mirror these bins and
    give the same error. Columns: bin_low, bin_high, num_pairs, confidence (mean), frequency, and the 95 %
    interval frequency_low, frequency_high (Wilson); all but the first three are NaN in an empty bin.
    """
    edges = np.linspace(0.5, 1.0, NUM_BINS + 1)
    confidence = 1 / (1 + np.exp(-np.abs(difference)))
    pairs = pd.DataFrame({"confidence": confidence, "frequency": wins(difference)})
    bins = pairs.groupby(np.searchsorted(edges[1:-1], confidence, side="left"))
    means = bins.mean().reindex(range(NUM_BINS))
    num_pairs = bins.size().reindex(range(NUM_BINS), fill_value=0)
    low, high = wilson_interval(means["frequency"], num_pairs)
    frame = {"bin_low": edges[:-1], "bin_high": edges[1:], "num_pairs": num_pairs}
    return pd.DataFrame(frame | dict(means.items()) | {"frequency_low": low, "frequency_high": high})


def expected_calibration_error(bins: pd.DataFrame) -> float:
    """The mean distance between confidence and frequency, over all pairs (Guo et al. 2017, equation 3)."""
    gap = (bins["frequency"] - bins["confidence"]).abs()
    return float((gap * bins["num_pairs"]).sum() / bins["num_pairs"].sum())


def fit_temperature(difference: np.ndarray) -> float | None:
    """The T > 0 at which sigmoid(d / T) has the least log loss on these pairs (Guo et al. 2017, section 4.2).

    Above 1 the model was overconfident. None if there is no best one: if no pair is ranked wrong, the loss falls
    with T towards 0; if d is not positive on average, it falls as T grows, towards that of a coin.
    """
    if (difference >= 0).all() or difference.mean() <= 0:
        return None
    # The loss is convex in b = 1 / T, falling at b = 0 and rising for large b: bisect where its slope changes sign.
    low, high = 0.0, 1.0
    while _slope(difference, high) < 0:
        low, high = high, 2 * high
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(difference, middle) < 0 else (low, middle)
    return 2 / (low + high)


def _slope(difference: np.ndarray, inverse: float) -> float:
    """The derivative of the mean log loss of `inverse * d` with respect to `inverse`: mean(-d sigmoid(-inverse d))."""
    return float(np.mean(-difference * np.exp(-np.logaddexp(0.0, inverse * difference))))
