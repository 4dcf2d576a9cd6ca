"""Which pairs form a step, and how they are laid out in rows: pure functions, the same in every process.

A step's pairs depend only on (seed, epoch, snapshot, step). Their rows depend on the number of processes too, and every
process plans the rows of all: all have the same number of micro-batches.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rm_assets.training.packing.pairs import Pairs

Rows = NDArray[np.int64]
"""Numbers of pairs in a split, int64 [n]."""

GROWTH = 16  # if a step does not fit, rows grow by a sixteenth at a time, which keeps planning fast
IDLE_TOKENS = 16  # of a micro-batch without pairs; compiled layers would be recompiled for a single token
MAX_WASTE = 0.25  # share of padding in a padded row, for its shortest pair


class Packing(StrEnum):
    """How sequences are laid out in a micro-batch."""

    SHARED = "shared"
    """One row; sequences of a ranking share their prefix."""
    PACKED = "packed"
    """One row; every sequence whole."""
    PADDED = "padded"
    """A row for each sequence, padded on the right; pairs of similar length together."""


@dataclass(frozen=True)
class Branches:
    """Sequences that share their first `prefix` tokens, by number: int64 [k], distinct."""

    prefix: int
    sequences: NDArray[np.int64]


@dataclass(frozen=True)
class MicroPlan:
    """What one process computes at once: pairs and their sequences; empty if other processes have one more."""

    pairs: Rows
    branches: tuple[Branches, ...]
    packing: Packing


def epoch_steps(pairs: Pairs, seed: int, epoch: int, batch_pairs: int) -> list[Rows]:
    """The pairs of every step of an epoch; the last step may be smaller.

    Rankings are shuffled and their pairs stay together (InstructGPT, 2203.02155, 3.5), so that a step can share their
    sequences; if every ranking is one pair, this is a permutation of the pairs.
    """
    num_rankings = len(pairs.prefix)
    order = np.random.default_rng([seed, epoch]).permutation(num_rankings)
    sizes = np.bincount(pairs.ranking, minlength=num_rankings)
    starts, sizes = (np.cumsum(sizes) - sizes)[order], sizes[order]
    ends = np.cumsum(sizes)
    rows = np.repeat(starts - (ends - sizes), sizes) + np.arange(len(pairs))
    return [rows[start : start + batch_pairs] for start in range(0, len(rows), batch_pairs)]


def plan_rows(
    pairs: Pairs, rows: Rows, packing: Packing, row_tokens: int, num_processes: int = 1
) -> list[list[MicroPlan]]:
    """The micro-batches of every process for these pairs: [process][number], the same number in each.

    A micro-batch has at most `row_tokens` tokens, padding included, unless a single pair has more.
    """
    if packing is Packing.PADDED:
        plans = _padded_plans(pairs, rows, row_tokens, num_processes)
    else:
        plans = _packed_plans(pairs, rows, packing, row_tokens, num_processes)
    nothing = MicroPlan(np.empty(0, np.int64), (), packing)
    plans += [nothing] * (-len(plans) % num_processes)
    return [plans[process::num_processes] for process in range(num_processes)]


def num_tokens(pairs: Pairs, plan: MicroPlan) -> int:
    """Tokens that a micro-batch computes, padding included."""
    if not plan.branches:
        return IDLE_TOKENS
    lengths = [pairs.sequences.lengths_of(branches.sequences) for branches in plan.branches]
    if plan.packing is Packing.PADDED:
        [part] = lengths
        return len(part) * int(part.max())
    return sum(_cost(part, branches.prefix) for part, branches in zip(lengths, plan.branches, strict=True))


def _cost(lengths: NDArray[np.int64], prefix: int) -> int:
    return int(lengths.sum()) - prefix * (len(lengths) - 1)


def _packed_plans(pairs: Pairs, rows: Rows, packing: Packing, row_tokens: int, num_processes: int) -> list[MicroPlan]:
    """Rows of similar size, longest first: each item, largest first, goes to the emptiest row (LPT, Graham 1969).

    Consecutive rows have similar sizes, and the processes compute `num_processes` of them at a time.
    """
    items = sorted(_items(pairs, rows, packing, row_tokens), key=lambda item: -item[0])
    total = sum(cost for cost, _, _ in items)
    num_rows = num_processes * -(-total // (row_tokens * num_processes))
    while True:
        bins: list[list[tuple[int, Rows, Branches]]] = [[] for _ in range(num_rows)]
        loads = [(0, number) for number in range(num_rows)]
        for item in items:
            load, number = loads[0]
            bins[number].append(item)
            heapq.heapreplace(loads, (load + item[0], number))
        if all(len(row) < 2 or sum(cost for cost, _, _ in row) <= row_tokens for row in bins):
            break
        num_rows += num_processes * max(1, num_rows // (GROWTH * num_processes))
    bins.sort(key=lambda row: -sum(cost for cost, _, _ in row))
    return [
        MicroPlan(np.concatenate([part for _, part, _ in row]), tuple(branches for _, _, branches in row), packing)
        for row in bins
        if row
    ]


def _items(pairs: Pairs, rows: Rows, packing: Packing, row_tokens: int) -> Iterator[tuple[int, Rows, Branches]]:
    """The pairs of each ranking with their tokens, split if a ranking is larger than a row."""
    sides = np.stack([pairs.chosen[rows], pairs.rejected[rows]], axis=1)
    prefixes = pairs.prefix[pairs.ranking[rows]] * (packing is Packing.SHARED)
    costs = pairs.sequences.lengths_of(sides).sum(axis=1) - prefixes
    starts = np.flatnonzero(np.diff(pairs.ranking[rows], prepend=-1))
    for start, end in pairwise([*starts.tolist(), len(rows)]):
        prefix = int(prefixes[start])
        if end - start == 1 and sides[start, 0] != sides[start, 1]:  # the common case, kept fast
            yield int(costs[start]), rows[start:end], Branches(prefix, sides[start])
        else:
            yield from _parts(pairs, rows[start:end], sides[start:end], prefix, row_tokens)


def _parts(
    pairs: Pairs, rows: Rows, sides: NDArray[np.int64], prefix: int, row_tokens: int
) -> Iterator[tuple[int, Rows, Branches]]:
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or _cost_of(pairs, sides[start : end + 1], prefix)[0] > row_tokens:
            cost, branches = _cost_of(pairs, sides[start:end], prefix)
            yield cost, rows[start:end], branches
            start = end


def _cost_of(pairs: Pairs, sides: NDArray[np.int64], prefix: int) -> tuple[int, Branches]:
    sequences = np.unique(sides)
    return _cost(pairs.sequences.lengths_of(sequences), prefix), Branches(prefix, sequences)


def _padded_plans(pairs: Pairs, rows: Rows, row_tokens: int, num_processes: int) -> list[MicroPlan]:
    """Pairs of similar length together, the longest first: memory peaks at the start."""
    longest = np.maximum(
        pairs.sequences.lengths_of(pairs.chosen[rows]), pairs.sequences.lengths_of(pairs.rejected[rows])
    )
    order = np.argsort(-longest, kind="stable")
    limit = row_tokens if num_processes == 1 else min(row_tokens, -(-2 * int(longest.sum()) // num_processes))
    plans: list[MicroPlan] = []
    start = 0
    for end in range(1, len(rows) + 1):
        width = longest[order[start]]
        if end == len(rows) or longest[order[end]] < (1 - MAX_WASTE) * width or 2 * (end + 1 - start) * width > limit:
            part = rows[order[start:end]]
            both = np.concatenate([pairs.chosen[part], pairs.rejected[part]])
            plans.append(MicroPlan(part, (Branches(0, np.unique(both)),), Packing.PADDED))
            start = end
    return plans
