"""Scoring rules of benchmarks with several replies per prompt: a line's pairs are a grid of chosen by rejected replies.

Two rules, each on the lines whose grid is whole (every chosen with every rejected reply):
- `best of prompt` (RewardBench 2, Malik et al. 2025, section 3): a line is right if its chosen reply scores above
  every rejected one, with credit 1 / n if n replies tie for the best. For lines with one chosen reply.
- `style: easy`, `style: normal`, `style: hard` (RM-Bench, Liu et al. 2025, section 4, and `compute_accuracy` in its
  scripts/utils.py): the replies of each side are ordered by style, plainest first. The grid's diagonal compares equal
  styles; where the rejected reply has the richer style the pair is hard. A tie is wrong. Each figure is the mean over
  the domains, `style: mean of chat` the mean of a domain's three figures, and `style: mean`, the benchmark's headline,
  the mean over the domains of these. For lines with as many chosen as rejected replies, two or more.

Every cell of a grid counts, also where replies of a line are equal: a chosen reply that equals a rejected one is a tie.
Plain pairs (RewardBench, Lambert et al. 2024) need no rule: the accuracy by subset is theirs.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

BEST = "best of prompt"
STYLES = {"style: easy": 1, "style: normal": 0, "style: hard": -1}
"""The sign of (place of the chosen reply - place of the rejected one) in the order of styles."""
STYLE_MEAN = "style: mean"

DOMAINS = ("chat", "math", "code", "safety")
"""RM-Bench's: a subset belongs to the one with which it begins, such as `safety-refuse`; any other is a domain."""

PLACES = ["chosen_place", "rejected_place", "num_stated", "num_equal"]
"""Positions of the replies among those of their line and side, from 0, how many pairs the line contains, and how many
cells of its grid have no pair, as their two replies are equal."""

Line = tuple[str, int]
"""A source, and the number of one of its lines."""
Cell = tuple[int, int]
"""The places of a chosen and a rejected reply."""
_LINE = ["source", "line"]


def with_places(
    pairs: pd.DataFrame, equal_cells: Mapping[Line, Collection[Cell]] = MappingProxyType({})
) -> pd.DataFrame:
    """Add PLACES to all pairs of their lines, in order of appearance, by `chosen_key` and `rejected_key`.

    Replies of a side may be equal. Then the places follow from the order of the pairs, which a line with lists of
    chosen and rejected replies gives chosen reply by chosen reply. `equal_cells` are the cells of a line that have no
    pair, as their two replies are equal.
    """
    size = pairs.groupby(_LINE)["chosen_key"].transform("size")
    placed = pairs.assign(num_stated=size, num_equal=0)
    for side in ("chosen", "rejected"):
        key = [*_LINE, f"{side}_key"]
        first = pairs[key].drop_duplicates()
        numbered = first.assign(place=first.groupby(_LINE, sort=False).cumcount())
        placed[f"{side}_place"] = pairs[key].merge(numbered, how="left", on=key)["place"].to_numpy()
    distinct = placed.groupby(_LINE)[["chosen_place", "rejected_place"]].transform("nunique")
    repeated = placed[distinct["chosen_place"] * distinct["rejected_place"] < size]
    for _, line in repeated.groupby(_LINE, sort=False):
        if width := _width(line["chosen_place"].to_numpy(), line["rejected_place"].to_numpy()):
            placed.loc[line.index, PLACES[:2]] = np.column_stack(np.divmod(np.arange(len(line)), width))
    lines = placed.groupby(_LINE, sort=False).indices if equal_cells else {}
    for name, absent in equal_cells.items():
        rows = placed.index[lines.get(name, [])]
        grid = itertools.product(range(math.isqrt(len(rows) + len(absent))), repeat=2)
        if len(cells := [cell for cell in grid if cell not in absent]) == len(rows):
            placed.loc[rows, [*PLACES[:2], "num_equal"]] = [(*cell, len(absent)) for cell in cells]
    return placed


def _width(chosen: NDArray[np.int64], rejected: NDArray[np.int64]) -> int:
    """How many rejected replies a line has whose pairs are a grid, row by row; 0 if they are none.

    Equal replies have equal numbers. [0, 0, 0, 0] and [0, 1, 0, 1] may be two equal chosen replies or one: a grid with
    as many replies on both sides comes first, as that is what benchmarks repeat.
    """
    side = math.isqrt(len(chosen))
    for width in (side, len(chosen)):
        if len(chosen) % width:
            continue
        better, worse = chosen.reshape(-1, width), rejected.reshape(-1, width)
        if (len(better) == width or len(better) == 1) and (better == better[:, :1]).all() and (worse == worse[0]).all():
            return width
    return 0


def benchmark_rows(cells: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The name of each rule that applies to these pairs, and a data frame with `correct`, `prompt_key` and `weight`.

    `cells` has source, line, prompt_key, chosen_score, rejected_score, PLACES and, if there are domains, subset: a row
    per pair, and one more wherever its line repeats it. The figure is the mean of `correct`, weighted. Nothing is
    yielded without PLACES, or if no line has several replies.
    """
    if not set(PLACES).issubset(cells):
        return
    grids = cells.groupby(_LINE)[["chosen_place", "rejected_place"]].transform("nunique")
    num_pairs = cells.groupby(_LINE)["prompt_key"].transform("size")
    side = np.sqrt(num_pairs + cells["num_equal"]).astype("int64")
    grids = grids.where(cells["num_equal"] == 0, side, axis=0)  # a reply that only equals others has no pair
    complete = (num_pairs == cells["num_stated"]) & (num_pairs > 1)
    is_grid = grids["chosen_place"] * grids["rejected_place"] == num_pairs + cells["num_equal"]
    whole = cells.assign(num_chosen=grids["chosen_place"], num_rejected=grids["rejected_place"])[complete & is_grid]
    rankings = whole[whole["num_chosen"] == 1]
    if len(rankings):
        yield BEST, _best_of_lines(rankings)
    squares = whole[whole["num_chosen"] == whole["num_rejected"]]
    if len(squares):
        yield from _style_rows(squares)


def _best_of_lines(rankings: pd.DataFrame) -> pd.DataFrame:
    """A row per line: 1 if the chosen reply is the best, 1 / n if n tie for it, 0 if another is better."""
    ties = rankings["chosen_score"] == rankings["rejected_score"]
    lines = rankings.assign(ties=ties).groupby(_LINE)
    lost = (lines["chosen_score"].first() < lines["rejected_score"].max()).to_numpy()
    credit = np.where(lost, 0.0, 1 / (1 + lines["ties"].sum().to_numpy()))
    return pd.DataFrame({"correct": credit, "prompt_key": lines["prompt_key"].first().to_numpy(), "weight": 1.0})


def _style_rows(squares: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """RM-Bench's figures: each style over all domains, then each domain if there are several, then all."""
    squares = pd.concat([squares, *_equal_cells(squares)], ignore_index=True)
    judged = pd.DataFrame(
        {
            "correct": (squares["chosen_score"] > squares["rejected_score"]).astype("float64"),
            "prompt_key": squares["prompt_key"],
            "style": np.sign(squares["chosen_place"] - squares["rejected_place"]),
            "domain": [_domain(subset) for subset in squares["subset"]] if "subset" in squares else "",
        }
    )
    # Of each domain every style weighs the same, however many lines it has.
    judged["weight"] = 1 / judged.groupby(["domain", "style"])["correct"].transform("size")
    for name, sign in STYLES.items():
        yield name, judged[judged["style"] == sign]
    domains = judged.groupby("domain")
    if len(domains) > 1:
        for domain, cells in domains:
            yield f"{STYLE_MEAN} of {domain or '(none)'}", cells
    yield STYLE_MEAN, judged


def _equal_cells(squares: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The cells of two equal replies, for which there is no pair: they tie whatever the model."""
    for _, line in squares[squares["num_equal"] > 0].groupby(_LINE, sort=False):
        places = itertools.product(range(line["num_chosen"].iloc[0]), repeat=2)
        absent = sorted({*places} - {*zip(line["chosen_place"], line["rejected_place"], strict=True)})
        rows = line.iloc[[0] * len(absent)].assign(chosen_score=0.0, rejected_score=0.0)
        yield rows.assign(**dict(zip(("chosen_place", "rejected_place"), zip(*absent, strict=True), strict=True)))


def _domain(subset: str) -> str:
    return next((domain for domain in DOMAINS if subset.startswith(domain)), subset)
