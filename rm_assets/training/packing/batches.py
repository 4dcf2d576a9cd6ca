"""From a plan to the tensors of a micro-batch, and the layout that attention reads.

Letters: S sequences, T tokens of a row, B pairs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rm_assets.training.devices import moved
from rm_assets.training.packing.layout import Layout, Segment
from rm_assets.training.packing.pairs import Pairs
from rm_assets.training.packing.planning import IDLE_TOKENS, MicroPlan, Packing, Rows


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass.

    Packed: `ids` and `positions` int64 [1, T], with a `layout`. Padded: `ids` int64 [S, T], with neither.
    `last` int64 [S] is the index of each sequence's last token in the flattened ids. `chosen` and `rejected` int64 [B]
    are the numbers of each pair's sequences, `margin` is float32 [B]; `rows` are the pairs' numbers in their split.
    """

    ids: Tensor
    positions: Tensor | None
    layout: Layout | None
    last: Tensor
    chosen: Tensor
    rejected: Tensor
    margin: Tensor
    rows: Rows


def collate(pairs: Pairs, plan: MicroPlan, device: torch.device) -> MicroBatch:
    """The micro-batch of a plan. One without pairs has IDLE_TOKENS, whose score is not used."""
    numbers = [number for branches in plan.branches for number in branches.sequences.tolist()]
    if plan.packing is Packing.PADDED:
        ids, last = _padded(pairs, numbers)
        positions = layout = None
    else:
        ids, positions, last, segments = _packed(pairs, plan)
        layout = Layout.of(segments, device)
    place = {number: index for index, number in enumerate(numbers)}
    chosen, rejected = (
        moved(torch.tensor([place[number] for number in side[plan.pairs].tolist()], dtype=torch.int64), device)
        for side in (pairs.chosen, pairs.rejected)
    )
    return MicroBatch(
        ids=moved(torch.from_numpy(ids), device),
        positions=None if positions is None else moved(torch.from_numpy(positions), device),
        layout=layout,
        last=moved(torch.from_numpy(last), device),
        chosen=chosen,
        rejected=rejected,
        margin=moved(torch.from_numpy(pairs.margin[plan.pairs]), device),
        rows=plan.pairs,
    )


def _padded(pairs: Pairs, numbers: list[int]) -> tuple[Rows, Rows]:
    sequences = [pairs.sequences[number] for number in numbers] or [np.zeros(IDLE_TOKENS, np.int32)]
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    ids = np.zeros((len(sequences), lengths.max()), np.int64)  # masked by length, so any id may be the padding
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
    return ids, np.arange(len(sequences)) * ids.shape[1] + lengths - 1


def _packed(pairs: Pairs, plan: MicroPlan) -> tuple[Rows, Rows, Rows, list[Segment]]:
    """Ids [1, T], positions [1, T], last [S] and the segments of a row.

    For the sequences [7, 8, 9] and [7, 8, 5, 6] with a prefix of 2: ids 7 8 9 5 6, positions 0 1 2 2 3, last 2 and 4.
    """
    ids, positions, last, segments = [], [], [], []
    end = 0
    for branches in plan.branches:
        start, prefix = end, 0  # the first branch carries the prefix
        for number in branches.sequences.tolist():
            own = pairs.sequences[number][prefix:]
            ids.append(own)
            positions.append(np.arange(prefix, prefix + len(own)))
            segments.append(Segment(end, end + len(own), start, prefix))
            end += len(own)
            last.append(end - 1)
            prefix = branches.prefix
    if not ids:
        nothing = np.zeros((1, IDLE_TOKENS), np.int64)  # every model has the position 0
        return nothing, nothing, np.zeros(1, np.int64), [Segment(0, IDLE_TOKENS)]
    # not [None], whose stride of 0 would make compiled layers recompile
    row = np.concatenate(ids).astype(np.int64).reshape(1, -1)
    return row, np.concatenate(positions).reshape(1, -1), np.array(last, np.int64), segments
