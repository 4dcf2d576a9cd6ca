"""95 % intervals of a share: by bootstrap over prompts, and Wilson's for independent trials."""

from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

NUM_RESAMPLES = 1_000
SEED = 0
MIN_PROMPTS = 10
"""With fewer prompts, resamples are too similar to show the uncertainty."""

METHOD = (
    f"95 % percentile bootstrap over prompts, {NUM_RESAMPLES} resamples, seed {SEED}; "
    f"Wilson's interval over prompts where these are fewer than {MIN_PROMPTS}, or all have the same accuracy"
)
"""The method for the readers of a report."""

_ROUNDING = 1e-9
_NORMAL_QUANTILE = NormalDist().inv_cdf(0.975)


def bootstrap_interval(
    correct: pd.Series, prompt_keys: pd.Series, weights: pd.Series | float = 1.0
) -> tuple[float, float]:
    """The 95 % percentile interval of the weighted accuracy, resampling prompts (Efron and Tibshirani 1993, ch. 13).

    Pairs of one prompt are not independent, so a resample draws whole prompts, with replacement. Only the number of
    drawn prompts of each kind (weighted sum of `correct`, sum of weights) matters, and these counts are multinomial. If
    all prompts have the same accuracy, all resamples are equal, and three right answers of three would look certain:
    then, and with fewer than MIN_PROMPTS prompts, it is Wilson's interval over the prompts.
    """
    weighted = pd.DataFrame({"sum": correct * weights, "count": weights}, index=correct.index)
    prompts = weighted.groupby(prompt_keys).sum().to_numpy()
    kinds, num_prompts = np.unique(prompts, axis=0, return_counts=True)
    if len(prompts) < MIN_PROMPTS or np.ptp(kinds[:, 0] / kinds[:, 1]) < _ROUNDING:
        low, high = wilson_interval(weighted["sum"].sum() / weighted["count"].sum(), len(prompts))
        return float(low), float(high)
    generator = np.random.default_rng(SEED)
    drawn = generator.multinomial(len(prompts), num_prompts / len(prompts), size=NUM_RESAMPLES)
    low, high = np.percentile((drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1]), [2.5, 97.5])
    return float(low), float(high)


def wilson_interval(share: Any, count: Any) -> tuple[Any, Any]:
    """The 95 % interval of a share of `count` independent trials (Wilson 1927); elementwise on arrays."""
    weight = _NORMAL_QUANTILE**2 / count
    centre = (share + weight / 2) / (1 + weight)
    half_width = np.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    # At 0 and 1 the interval ends at the share; rounding must not move that end.
    low, high = np.minimum(centre - half_width, share), np.maximum(centre + half_width, share)
    return np.maximum(low, 0.0), np.minimum(high, 1.0)
