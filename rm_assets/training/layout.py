"""Where the sequences of a packed row lie, as attention needs to know it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """Tokens [start, end) of a row, which also see the `prefix` tokens from `prefix_start` on.

    The own tokens follow the prefix: the first has the position `prefix`. The prefix lies at the start of an earlier
    segment, that of the first branch.
    """

    start: int
    end: int
    prefix_start: int = 0
    prefix: int = 0

    @property
    def num_queries(self) -> int:
        """Tokens of the segment's own."""
        return self.end - self.start

    @property
    def num_keys(self) -> int:
        """Tokens that the last token of the segment sees."""
        return self.prefix + self.end - self.start


@dataclass(frozen=True, eq=False)
class Kernel:
    """A layout as kernels for sequences of varying length read it, on the device where they run.

    Queries of segment i are the tokens from query_ends[i] to query_ends[i + 1] of the row, its keys the tokens
    key_index[key_ends[i] : key_ends[i + 1]]. The largest counts are rounded up to a power of two, so that a compiled
    layer meets few of them. For segments [0, 5) and, with a prefix of 2, [5, 7): query_ends 0 5 7, key_ends 0 5 9,
    key_index 0 1 2 3 4 0 1 5 6.
    """

    query_ends: Tensor  # int32 [segments + 1]
    key_ends: Tensor  # int32 [segments + 1]
    key_index: Tensor | None  # int64 [keys]; None where the keys are the row's tokens as they lie
    max_queries: int
    max_keys: int

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> "Kernel":
        """The kernels' view of the segments of a row."""
        num_queries = [segment.num_queries for segment in segments]
        num_keys = [segment.num_keys for segment in segments]
        index = None
        if any(segment.prefix for segment in segments):
            parts = [
                torch.arange(start, end)
                for segment in segments
                for start, end in (
                    (segment.prefix_start, segment.prefix_start + segment.prefix),
                    (segment.start, segment.end),
                )
            ]
            index = torch.cat(parts).to(device)
        return cls(
            torch.tensor([0, *accumulate(num_queries)], dtype=torch.int32, device=device),
            torch.tensor([0, *accumulate(num_keys)], dtype=torch.int32, device=device),
            index,
            _power_of_two(max(num_queries)),
            _power_of_two(max(num_keys)),
        )


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


@dataclass(frozen=True, eq=False)
class Layout:
    """The segments of a row in order, together all its tokens; `kernel` on a GPU only."""

    segments: tuple[Segment, ...]
    kernel: Kernel | None = None
    masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)
    """Masks that the layers of one forward and backward pass share; see `mask`."""

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> "Layout":
        """The layout of a row whose tensors are on `device`."""
        return cls(tuple(segments), Kernel.of(segments, device) if device.type == "cuda" else None)

    @property
    def num_tokens(self) -> int:
        """Tokens of the row."""
        return self.segments[-1].end

    def mask(self, num_queries: int, num_keys: int, window: int | None, like: Tensor) -> Tensor:
        """What is added to the logits [num_queries, num_keys] of the last `num_queries` of `num_keys` tokens.

        Zero where a token sees another: itself, and what comes before it, at most `window` - 1 tokens back.
        """
        key = (num_queries, num_keys, window)
        if key not in self.masks:
            query = torch.arange(num_keys - num_queries, num_keys, device=like.device)[:, None]
            distance = query - torch.arange(num_keys, device=like.device)
            seen = (distance >= 0) & (distance < (window or num_keys))
            mask = torch.zeros(num_queries, num_keys, device=like.device, dtype=like.dtype)
            self.masks[key] = mask.masked_fill_(~seen, -torch.inf)
        return self.masks[key]
