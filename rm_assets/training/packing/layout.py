"""The positions of sequences in a packed row, as attention needs them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from rm_assets.training.devices import moved, trains_in_bfloat16

PIECE = 192
"""Queries per call where no kernel computes whole rows: on a CPU, and in float32 on a GPU."""
ALIGNMENT = 8
"""In elements. A GPU's attention reads a mask 16 bytes at a time, and faults if one of its rows is not aligned."""


@dataclass(frozen=True)
class Segment:
    """Tokens [start, end) of a row, which also attend to the `prefix` tokens from `prefix_start` on.

    The first token has the position `prefix`, as if it directly followed the prefix, which is the beginning of an
    earlier segment.
    """

    start: int
    end: int
    prefix_start: int = 0
    prefix: int = 0

    @property
    def num_queries(self) -> int:
        """Tokens of the segment itself."""
        return self.end - self.start

    @property
    def num_keys(self) -> int:
        """Tokens that the last token of the segment attends to."""
        return self.prefix + self.end - self.start


@dataclass(frozen=True, eq=False)
class Kernel:
    """A layout as the arguments of a variable-length attention kernel, on its device.

    Queries of segment i are the tokens from query_ends[i] to query_ends[i + 1] of the row, its keys the tokens
    key_index[key_ends[i] : key_ends[i + 1]]. The largest counts are rounded up to a power of two, so that layers
    are compiled for few of them. For segments [0, 5) and, with a prefix of 2, [5, 7): query_ends 0 5 7,
    key_ends 0 5 9, key_index 0 1 2 3 4 0 1 5 6.
    """

    query_ends: Tensor  # int32 [segments + 1]
    key_ends: Tensor  # int32 [segments + 1]
    key_index: Tensor | None  # int64 [keys]; None if the keys are the row's tokens in order
    max_queries: int
    max_keys: int

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> "Kernel":
        """The kernel arguments for the segments of a row."""
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
            index = moved(torch.cat(parts), device)
        return cls(
            moved(torch.tensor([0, *accumulate(num_queries)], dtype=torch.int32), device),
            moved(torch.tensor([0, *accumulate(num_keys)], dtype=torch.int32), device),
            index,
            _power_of_two(max(num_queries)),
            _power_of_two(max(num_keys)),
        )


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


@dataclass(frozen=True)
class Piece:
    """Queries [start, end) of a row, and the tokens they attend to, in order, as one or two ranges of the row."""

    start: int
    end: int
    keys: tuple[tuple[int, int], ...]

    @property
    def num_keys(self) -> int:
        """Tokens that the last query may attend to."""
        return sum(end - start for start, end in self.keys)


class Layout:
    """The segments of a row in order, together all its tokens; `kernel` on a GPU only.

    Not a dataclass: FSDP copies those field by field for every layer, and the caches here must be shared by all.
    """

    def __init__(self, segments: tuple[Segment, ...], kernel: Kernel | None = None) -> None:
        self.segments = segments
        self.kernel = kernel
        self._max_queries = min(PIECE, max(segment.num_queries for segment in segments))  # of a piece
        self._max_keys = max(segment.num_keys for segment in segments)
        self._pieces: dict[int | None, tuple[Piece, ...]] = {}
        self._masks: dict[tuple[int, int | None, torch.dtype], Tensor] = {}

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> "Layout":
        """The layout of a row whose tensors are on `device`."""
        return cls(tuple(segments), Kernel.of(segments, device) if trains_in_bfloat16(device) else None)

    @property
    def num_tokens(self) -> int:
        return self.segments[-1].end

    def pieces(self, window: int | None) -> tuple[Piece, ...]:
        """The segments in pieces of at most PIECE queries, with no more keys than their `window` reaches.

        A dense kernel also computes the later keys that the mask hides; short pieces have few of them.
        """
        if window not in self._pieces:
            self._pieces[window] = tuple(piece for segment in self.segments for piece in _cut(segment, window))
        return self._pieces[window]

    def mask(self, num_queries: int, num_keys: int, window: int | None, like: Tensor) -> Tensor:
        """The additive mask [num_queries, num_keys] for the last `num_queries` of `num_keys` tokens.

        Zero for a token itself and those before it, at most `window` - 1 tokens back; elsewhere -inf. It is the lower
        right corner of a larger mask, which is cached. Larger masks are made with ALIGNMENT different widths, so that
        every row of the corner begins at a multiple of ALIGNMENT elements: for 13 keys of at most 192, the larger mask
        ends at column 197, and the corner begins at column 184.
        """
        end = self._max_keys + (num_keys - self._max_keys) % ALIGNMENT
        if (end, window, like.dtype) not in self._masks:
            rows = self._max_queries
            unseen = torch.full((rows, end + -end % ALIGNMENT), -torch.inf, device=like.device, dtype=like.dtype)
            mask = unseen.triu(end - rows + 1)  # later tokens
            if window is not None:
                mask += unseen.tril_(end - rows - window)
            self._masks[end, window, like.dtype] = mask
        mask = self._masks[end, window, like.dtype]
        return mask[len(mask) - num_queries :, end - num_keys : end]


def _cut(segment: Segment, window: int | None) -> Iterator[Piece]:
    """The pieces of a segment, of similar size.

    For tokens 10 to 14 after a prefix of 4, with PIECE 3 and a window of 3: queries 10 to 12 attend to the last two
    tokens of the prefix and to 10 to 12, queries 13 and 14 to 11 to 14.
    """
    size = -(-segment.num_queries // -(-segment.num_queries // PIECE))
    for first in range(0, segment.num_queries, size):
        last = min(segment.num_queries, first + size)
        begin = max(0, segment.prefix + first - window + 1) if window else 0  # position of the first key
        prefix = (segment.prefix_start + begin, segment.prefix_start + segment.prefix)
        own = (segment.start + max(0, begin - segment.prefix), segment.start + last)
        keys = (prefix, own) if prefix[0] < prefix[1] else (own,)
        yield Piece(segment.start + first, segment.start + last, keys)
