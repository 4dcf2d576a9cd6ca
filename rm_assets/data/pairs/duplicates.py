"""Pairs that occur more than once, or with both labels: which rows are dropped, decided from hashes alone."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rm_assets.data.pairs.digests import key_digests
from rm_assets.data.tables.reasons import Reason

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class DroppedRows:
    """Rows to drop, in rising order, each as a duplicate or for a conflict; arrays, as there may be millions."""

    rows: NDArray[np.int64]
    is_conflict: NDArray[np.bool_]

    @classmethod
    def none(cls) -> "DroppedRows":
        return cls(np.empty(0, np.int64), np.empty(0, np.bool_))

    def between(self, start: int, end: int) -> "DroppedRows":
        """Those from row `start` up to row `end`, counted from `start`."""
        first, last = np.searchsorted(self.rows, [start, end])
        return DroppedRows(self.rows[first:last] - start, self.is_conflict[first:last])

    def reasons(self) -> dict[int, Reason]:
        rows = zip(self.rows.tolist(), self.is_conflict.tolist(), strict=True)
        return {row: Reason.CONFLICT if is_conflict else Reason.DUPLICATE for row, is_conflict in rows}


def dropped_rows(chosen_keys: pa.ChunkedArray, rejected_keys: pa.ChunkedArray, conflicts: str) -> DroppedRows:
    """Which rows to drop, and why; rows are in the order of source and line.

    `conflicts` is the policy for pairs that occur with both labels: "drop" keeps none of them, "majority" those
    with the label of more rows (none if there are as many of each), "keep" all. For the pairs
    (a, b), (a, b), (c, d), (d, c), (d, c), (e, f) "drop" gives {1: duplicate, 2: conflict, 3: conflict, 4: conflict},
    "majority" {1: duplicate, 2: conflict, 4: duplicate} and "keep" {1: duplicate, 4: duplicate}.
    """
    suspects = suspect_rows(pair_digests(chosen_keys, rejected_keys))
    if not len(suspects):  # taking no rows would copy all of them
        return DroppedRows.none()
    chosen, rejected = _codes(chosen_keys.take(suspects), rejected_keys.take(suspects))
    base = int(max(chosen.max(), rejected.max())) + 1
    known, first_rows, inverse, counts = np.unique(
        chosen * base + rejected, return_index=True, return_inverse=True, return_counts=True
    )
    swapped = rejected * base + chosen
    place = np.minimum(np.searchsorted(known, swapped), len(known) - 1)
    num_swapped = np.where(known[place] == swapped, counts[place], 0)
    conflict = (num_swapped > 0) & (chosen != rejected)
    losing = conflict & {"drop": True, "majority": counts[inverse] <= num_swapped, "keep": False}[conflicts]
    is_first = np.zeros(len(chosen), np.bool_)
    is_first[first_rows] = True
    is_dropped = losing | ~is_first
    return DroppedRows(suspects[is_dropped], losing[is_dropped])


def pair_digests(chosen_keys: pa.ChunkedArray, rejected_keys: pa.ChunkedArray) -> NDArray[np.uint64]:
    """A digest of the two keys of each row, whatever their order: uint64 [rows]."""
    return key_digests(chosen_keys) + key_digests(rejected_keys)


def suspect_rows(digests: NDArray[np.uint64]) -> Codes:
    """The rows whose digest is that of another row as well, in rising order: usually a small part.

    Only among them can be equal pairs, so `dropped_rows` of them alone finds all that are dropped.
    """
    ordered = np.sort(digests)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return np.empty(0, np.int64)
    places = np.minimum(np.searchsorted(repeated, digests), len(repeated) - 1)
    return np.flatnonzero(repeated[places] == digests)


def _codes(chosen_keys: pa.ChunkedArray, rejected_keys: pa.ChunkedArray) -> tuple[Codes, Codes]:
    """Both columns as small integers, equal where the keys are equal: int64 arrays [rows]."""
    both = pa.chunked_array([*chosen_keys.chunks, *rejected_keys.chunks], pa.string())
    encoded = both.dictionary_encode()  # all chunks have one dictionary
    codes = np.concatenate([np.asarray(chunk.indices) for chunk in encoded.chunks])
    return tuple(np.split(codes.astype(np.int64), [len(chosen_keys)]))  # type: ignore[return-value]
