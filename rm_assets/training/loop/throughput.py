"""What the rows of a training cost, and what sharing saved: tokens counted from the plans of all processes."""

from collections.abc import Sequence
from dataclasses import dataclass

from rm_assets.training.packing.pair_store import Pairs
from rm_assets.training.packing.planning import MicroPlan, Packing, Rows, num_tokens


@dataclass(frozen=True)
class Tally:
    """Pairs, the tokens of both their sides, those of them that were computed, and all computed ones with padding.

    `operations` are floating-point operations by `rm_assets.training.loop.flops`, where there is a GPU to compare with.
    """

    pairs: int = 0
    pair_tokens: int = 0
    real_tokens: int = 0
    computed_tokens: int = 0
    operations: float = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.pairs + other.pairs,
            self.pair_tokens + other.pair_tokens,
            self.real_tokens + other.real_tokens,
            self.computed_tokens + other.computed_tokens,
            self.operations + other.operations,
        )

    def figures(self, seconds: float, peak_flops: float | None = None) -> dict[str, float]:
        """Speeds, and shares between 0 and 1.

        `tokens_per_second` counts the tokens of both sides of every pair, shared or not; `saved_by_sharing` is the
        share of these that were not computed, `padding` that of padding in what was. `mfu` compares the operations
        with the peak of all GPUs, where that is known.
        """
        figures = {
            "pairs_per_second": self.pairs / seconds,
            "tokens_per_second": self.pair_tokens / seconds,
            "saved_by_sharing": 1 - self.real_tokens / self.pair_tokens,
            "padding": 1 - self.real_tokens / self.computed_tokens,
        }
        return figures | ({"mfu": self.operations / seconds / peak_flops} if peak_flops else {})


def tally_of(pairs: Pairs, rows: Rows, plans: Sequence[Sequence[MicroPlan]], operations: float = 0.0) -> Tally:
    """The tally of a step: its rows, the plans of every process, and the operations of all of them."""
    sides = (pairs.chosen[rows], pairs.rejected[rows])
    every = [plan for of_process in plans for plan in of_process]
    computed = [num_tokens(pairs, plan) for plan in every]
    return Tally(
        pairs=len(rows),
        pair_tokens=sum(int(pairs.sequences.lengths_of(side).sum()) for side in sides),
        real_tokens=sum(_real_tokens(pairs, plan, tokens) for plan, tokens in zip(every, computed, strict=True)),
        computed_tokens=sum(computed),
        operations=operations,
    )


def _real_tokens(pairs: Pairs, plan: MicroPlan, computed: int) -> int:
    if not plan.branches:
        return 0
    if plan.packing is not Packing.PADDED:
        return computed
    return sum(int(pairs.sequences.lengths_of(branches.sequences).sum()) for branches in plan.branches)
