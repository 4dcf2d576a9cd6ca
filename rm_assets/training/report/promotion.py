"""Champion and challenger: whether a new model is worse than the promoted one, on the same pairs.

The test is paired and exact. Its units are prompts, because pairs of one prompt are not independent: each prompt on
which the models differ votes for the one that is right more often, and the number of votes is binomial. With one
pair per prompt it is McNemar's test in its exact form (McNemar 1947; Dietterich 1998, section 3.1).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pandas as pd

from rm_assets.training.report.calibration import wins
from rm_assets.training.report.intervals import bootstrap_interval
from rm_assets.training.report.slices import KEY


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the same pairs; the null hypothesis of `p_value` (one-sided): the challenger is not worse."""

    num_pairs: int
    num_prompts: int
    champion_accuracy: float
    challenger_accuracy: float
    challenger_accuracy_low: float
    difference_low: float
    difference_high: float
    prompts_won: int
    prompts_lost: int
    p_value: float

    @property
    def difference(self) -> float:
        """Challenger's accuracy minus champion's."""
        return self.challenger_accuracy - self.champion_accuracy

    def figures(self) -> dict[str, Any]:
        """All numbers, by name."""
        return asdict(self) | {"difference": self.difference}


class Verdict(NamedTuple):
    """Whether the challenger replaces the champion, and why, in one sentence."""

    promoted: bool
    reason: str


def compare_models(champion: pd.DataFrame, challenger: pd.DataFrame) -> Comparison:
    """Compare two models on the pairs that both scored; raises ValueError if there are none.

    Both frames have KEY, chosen_score and rejected_score; `challenger` has prompt_key too.
    """
    pairs = challenger.merge(champion, on=KEY, suffixes=("", "_champion"), validate="one_to_one")
    if pairs.empty:
        raise ValueError("the two models have no scored pair in common")
    right = wins(pairs["chosen_score"] - pairs["rejected_score"])
    right_before = wins(pairs["chosen_score_champion"] - pairs["rejected_score_champion"])
    change = right - right_before
    by_prompt = change.groupby(pairs["prompt_key"]).sum()
    won, lost = int((by_prompt > 0).sum()), int((by_prompt < 0).sum())
    low, high = bootstrap_interval((change + 1) / 2, pairs["prompt_key"])  # as a share, from 0 for lost to 1 for won
    return Comparison(
        num_pairs=len(pairs),
        num_prompts=len(by_prompt),
        champion_accuracy=float(right_before.mean()),
        challenger_accuracy=float(right.mean()),
        challenger_accuracy_low=bootstrap_interval(right, pairs["prompt_key"])[0],
        difference_low=2 * low - 1,
        difference_high=2 * high - 1,
        prompts_won=won,
        prompts_lost=lost,
        p_value=sign_test(won, lost),
    )


def sign_test(won: int, lost: int) -> float:
    """The probability of at most `won` heads in `won + lost` tosses of a coin. For 1 and 3: (1 + 4) / 16."""
    tosses = won + lost
    return float(sum(math.comb(tosses, heads) for heads in range(won + 1)) / 2**tosses)


def verdict(comparison: Comparison, level: float) -> Verdict:
    """Promoted unless the challenger is worse, or may be no better than a coin.

    A model is worse if it is right less often and the probability of so few prompts won is at most `level`. It must
    also be above chance (95 %): if today's labels are noise, no two models can be distinguished.
    """
    found = (
        f"{comparison.challenger_accuracy:.3f} against the champion's {comparison.champion_accuracy:.3f} on "
        f"{comparison.num_pairs} pairs of {comparison.num_prompts} prompts (won {comparison.prompts_won}, lost "
        f"{comparison.prompts_lost}, exact one-sided p = {comparison.p_value:.3g}, level {level:g})"
    )
    if comparison.difference < 0 and comparison.p_value <= level:
        return Verdict(False, f"the new model is worse: {found}")
    if comparison.challenger_accuracy_low <= 0.5:
        reason = f"the new model's accuracy is not above chance (at least {comparison.challenger_accuracy_low:.3f})"
        return Verdict(False, f"{reason}: {found}")
    return Verdict(True, f"the new model is not worse: {found}")
