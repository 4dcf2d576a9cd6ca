"""Where the sequences of a packed row lie, as attention needs to know it."""

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """Tokens [start, end) of a row; they see the tokens [prefix_start, prefix_end), and those of their own before them.

    The own tokens follow the prefix: the first has the position prefix_end - prefix_start.
    """

    start: int
    end: int
    prefix_start: int
    prefix_end: int

    @property
    def num_keys(self) -> int:
        """Tokens that the last token of the segment sees."""
        return self.prefix_end - self.prefix_start + self.end - self.start


@dataclass(frozen=True, eq=False)
class Layout:
    """The segments of a row in order, and the same as kernels for sequences of varying length read it.

    The keys of segment i are row tokens key_index[key_ends[i] : key_ends[i + 1]], its queries those from
    query_ends[i]; the longest counts are rounded up to a power of two, so that few of them differ.
    """

    segments: tuple[Segment, ...]
    query_ends: Tensor | None = None  # int32 [segments + 1]
    key_ends: Tensor | None = None  # int32 [segments + 1]
    key_index: Tensor | None = None  # int64 [keys]
    max_queries: int = 0
    max_keys: int = 0
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, segments: list[Segment], device: torch.device) -> "Layout":
        """The layout of the segments; the kernels' part of it only where they run, on a GPU."""
        if device.type == "cpu":
            return cls(tuple(segments))
        queries = [segment.end - segment.start for segment in segments]
        keys = [segment.num_keys for segment in segments]
        index = [
            part
            for segment in segments
            for part in (
                torch.arange(segment.prefix_start, segment.prefix_end),
                torch.arange(segment.start, segment.end),
            )
        ]
        return cls(
            tuple(segments),
            torch.tensor([0, *accumulate(queries)], dtype=torch.int32, device=device),
            torch.tensor([0, *accumulate(keys)], dtype=torch.int32, device=device),
            torch.cat(index).to(device),
            1 << (max(queries) - 1).bit_length(),
            1 << (max(keys) - 1).bit_length(),
        )
