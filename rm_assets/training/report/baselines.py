"""Null baselines: the accuracy of a judge that cannot know which reply is better.

Two need no model: the longer or the shorter reply wins. Two ask the model itself: with one empty user message in
place of the prompt, and with the prompt of another pair. A model that is as good without the right prompt judges
replies by their looks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rm_assets.training.report.calibration import wins
from rm_assets.training.report.slices import KEY

WITHOUT_PROMPT = "without_prompt"
OTHER_PROMPT = "other_prompt"
PROMPT_BASELINES = (WITHOUT_PROMPT, OTHER_PROMPT)
LENGTH_BASELINES = ("longer_wins", "shorter_wins")
EMPTY_PROMPT = [{"role": "user", "content": ""}]
MIN_PAIRS = 30
"""With fewer pairs in a slice, the interval is so wide that every baseline would be near."""
_SEED = 0


def prompt_variants(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each pair with each replacement of its prompt, named by `variant`; the replies stay.

    `pairs` are rows of validated_preferences. If more than half of the pairs share a prompt, some of them would get
    their own prompt, and have no variant OTHER_PROMPT.
    """
    others = other_prompts([pair["prompt_key"] for pair in pairs])
    without = [dict(pair) | {"variant": WITHOUT_PROMPT, "prompt": EMPTY_PROMPT, "tools": None} for pair in pairs]
    swapped = [
        dict(pair) | {"variant": OTHER_PROMPT, "prompt": other["prompt"], "tools": other["tools"]}
        for pair, other in zip(pairs, (pairs[row] for row in others), strict=True)
        if other["prompt_key"] != pair["prompt_key"]
    ]
    return without + swapped


def other_prompts(prompt_keys: Sequence[str]) -> NDArray[np.int64]:
    """For each row, the row whose prompt it gets: a permutation that avoids its own prompt where possible.

    The rows are shuffled, sorted by prompt and rotated by the count of the most frequent prompt, so each gets
    another prompt unless that one has more than half of the rows. For the prompts a, b, b it is
    [1, 0, 2] or [2, 1, 0] (one of the b keeps its own), for a, b it is [1, 0].
    """
    shuffled = np.random.default_rng(_SEED).permutation(len(prompt_keys))
    prompts, _ = pd.factorize(np.array(prompt_keys, dtype=object)[shuffled])  # numbered in order of appearance
    ordered = shuffled[np.argsort(prompts, kind="stable")]
    result = np.empty(len(ordered), dtype=np.int64)
    result[ordered] = np.roll(ordered, -int(np.bincount(prompts).max(initial=0)))
    return result


def baseline_results(scored: pd.DataFrame) -> pd.DataFrame:
    """A row per pair with PROMPT_BASELINES: 1, 0.5 or 0 by its variants' scores, NaN without a score.

    `scored` has source, line, pair_id, variant, chosen_score and rejected_score.
    """
    judged = scored.assign(won=wins(scored["chosen_score"] - scored["rejected_score"]))
    wide = judged.set_index([*KEY, "variant"])["won"].unstack("variant")
    return wide.reindex(columns=list(PROMPT_BASELINES)).reset_index().rename_axis(columns=None)


def near_baselines(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The rows of a report's table, of MIN_PAIRS pairs or more, where a baseline reaches the model's 95 % interval.

    Slices by length difference are left out: there a length rule is right or wrong by definition. Columns: slice,
    value, num_pairs, accuracy, accuracy_low, baseline (its name), reaches (its accuracy).
    """
    kept = table[(table["num_pairs"] >= MIN_PAIRS) & (table["slice"] != "length_difference")]
    columns = ["slice", "value", "num_pairs", "accuracy", "accuracy_low"]
    long = kept.melt(id_vars=columns, value_vars=list(names), var_name="baseline", value_name="reaches")
    return long[long["reaches"] >= long["accuracy_low"]].reset_index(drop=True)
