"""Scoring rules of benchmarks with several replies per prompt: a line's pairs are a grid of chosen by rejected replies.

Two rules, each on the lines whose grid is whole (every chosen with every rejected reply):
- `best of prompt` (RewardBench 2, Malik et al. 2025, section 3): a line is right if its chosen reply scores above
  every rejected one, with credit 1 / n if n replies tie for the best. For lines with one chosen reply.
- `style: easy`, `style: normal`, `style: hard` (RM-Bench, Liu et al. 2025, section 4): the replies of each side are
  ordered by style, plainest first. The grid's diagonal compares equal styles; where the rejected reply has the richer
  style the pair is hard. For lines with as many chosen as rejected replies, two or more.

Plain pairs (RewardBench, Lambert et al. 2024) need no rule: the accuracy by subset is theirs.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

BEST = "best of prompt"
STYLES = {"style: easy": 1, "style: normal": 0, "style: hard": -1}
"""The sign of (place of the chosen reply - place of the rejected one) in the order of styles."""

PLACES = ["chosen_place", "rejected_place", "num_stated"]
"""Positions of the replies among those of their line and side, from 0, and how many pairs the line contains."""

_LINE = ["source", "line"]


def with_places(pairs: pd.DataFrame) -> pd.DataFrame:
    """Add PLACES to all pairs of their lines, in order of appearance, by `chosen_key` and `rejected_key`."""
    places = {}
    for side in ("chosen", "rejected"):
        key = [*_LINE, f"{side}_key"]
        first = pairs[key].drop_duplicates()
        numbered = first.assign(place=first.groupby(_LINE, sort=False).cumcount())
        places[f"{side}_place"] = pairs[key].merge(numbered, how="left", on=key)["place"].to_numpy()
    return pairs.assign(**places, num_stated=pairs.groupby(_LINE)["chosen_key"].transform("size"))


def benchmark_rows(pairs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The name of each rule that applies to these pairs, and a data frame with `correct` and `prompt_key`.

    `pairs` has source, line, prompt_key, correct, chosen_score, rejected_score and PLACES. Nothing is yielded without
    PLACES, or if no line has several replies.
    """
    if not set(PLACES) <= set(pairs):
        return
    grids = pairs.groupby(_LINE)[["chosen_place", "rejected_place"]].transform("nunique")
    num_pairs = pairs.groupby(_LINE)["correct"].transform("size")
    complete = (num_pairs == pairs["num_stated"]) & (num_pairs > 1)
    is_grid = grids["chosen_place"] * grids["rejected_place"] == num_pairs
    whole = pairs.assign(num_chosen=grids["chosen_place"], num_rejected=grids["rejected_place"])[complete & is_grid]
    rankings = whole[whole["num_chosen"] == 1]
    if len(rankings):
        yield BEST, _best_of_lines(rankings)
    squares = whole[(whole["num_chosen"] == whole["num_rejected"]) & (whole["num_chosen"] > 1)]
    if len(squares):
        richer = np.sign(squares["chosen_place"] - squares["rejected_place"])
        for name, sign in STYLES.items():
            yield name, squares.loc[richer == sign, ["correct", "prompt_key"]]


def _best_of_lines(rankings: pd.DataFrame) -> pd.DataFrame:
    """A row per line: 1 if the chosen reply is the best, 1 / n if n tie for it, 0 if another is better."""
    ties = rankings["chosen_score"] == rankings["rejected_score"]
    lines = rankings.assign(ties=ties).groupby(_LINE)
    lost = (lines["chosen_score"].first() < lines["rejected_score"].max()).to_numpy()
    credit = np.where(lost, 0.0, 1 / (1 + lines["ties"].sum().to_numpy()))
    return pd.DataFrame({"correct": credit, "prompt_key": lines["prompt_key"].first().to_numpy()})
