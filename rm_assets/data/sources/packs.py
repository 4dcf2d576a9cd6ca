"""Which small files share a shard: a pack of consecutive files, so that thousands of them cost as little as a few.

Packs follow from the files alone, never from the order in which they arrived (content-defined chunking, as in LBFS,
Muthitacharoen et al. 2001, over names instead of bytes): the sorted list is cut before every file whose hashed name
says so, on average one in `_FILES_PER_CUT`. What is still too large is cut before its smallest hash, and again. So a
file that is added, changed or removed changes its own pack, or two where it joins or parts them. A larger file
between small ones parts them as well, because rows stay in the order of files.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence

from rm_assets.data.sources.discovery import EVALUATION_PREFIX

SMALL_BYTES = 64 * 2**10
"""A file is small if its rows are one block of at most this size; it may then share a shard."""
MIN_FILES = 8
"""Fewer files than this make a shard each, as large ones do."""
MAX_FILES, MAX_BYTES = 256, 2 * 2**20
"""Limits of a pack: a changed file computes its whole pack again."""
_FILES_PER_CUT = 128


def name_runs(sources: Sequence[str]) -> Iterator[slice]:
    """The sorted files between two cuts that follow from the names alone; no pack reaches beyond them."""
    begin = 0
    for place, source in enumerate(sources):
        if place > begin and (_hash(source) % _FILES_PER_CUT == 0 or _are_apart(sources[place - 1], source)):
            yield slice(begin, place)
            begin = place
    if sources:
        yield slice(begin, len(sources))


def cut_packs(sources: Sequence[str], sizes: Sequence[int | None], max_bytes: int = MAX_BYTES) -> Iterator[slice]:
    """The packs of the files of one run, in order, and each file that is in none by itself.

    `sizes` are in bytes, None for a file that is not small; a pack has at most `max_bytes`, or MAX_BYTES if less.
    """
    limit = min(max_bytes, MAX_BYTES)
    for part in _within_limits(sources, [size or 0 for size in sizes], limit, range(len(sources))):
        for is_small, places in itertools.groupby(part, key=lambda place: sizes[place] is not None):
            run = list(places)
            if is_small and len(run) >= MIN_FILES:
                yield slice(run[0], run[-1] + 1)
            else:
                yield from (slice(place, place + 1) for place in run)


def _within_limits(sources: Sequence[str], sizes: Sequence[int], limit: int, places: range) -> Iterator[range]:
    num_bytes = sum(sizes[places.start : places.stop])
    if len(places) < MIN_FILES or (len(places) <= MAX_FILES and num_bytes <= limit):
        yield places
        return
    # neither part has fewer than MIN_FILES, unless the whole has less than two times as many
    inner = places[MIN_FILES : len(places) - MIN_FILES + 1] or places[1:]
    middle = min(inner, key=lambda place: _hash(sources[place]))
    yield from _within_limits(sources, sizes, limit, range(places.start, middle))
    yield from _within_limits(sources, sizes, limit, range(middle, places.stop))


def _hash(source: str) -> int:
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[-8:], "big")


def _are_apart(before: str, source: str) -> bool:
    """Whether the sources of evaluation sets sort between two files: all rejects are sorted by source."""
    return before < EVALUATION_PREFIX <= source
