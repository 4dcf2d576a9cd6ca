"""Digests are the first 16 hexadecimal digits of keys, and lead to the keys that two columns share."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from rm_assets.data.pairs import digests
from rm_assets.data.pairs.digests import key_digests, keys_with, shared_digests

KEYS = [hashlib.sha256(bytes([number])).hexdigest()[:32] for number in range(40)] + [
    "0" * 32,
    "9" * 32,
    "a" * 32,
    "f" * 32,
]


def column(*pieces: Sequence[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(piece, pa.string()) for piece in pieces], pa.string())


@pytest.mark.parametrize("joined_rows", [1, 5, 2**16])
def test_a_digest_is_the_number_of_the_first_sixteen_digits(monkeypatch: pytest.MonkeyPatch, joined_rows: int) -> None:
    monkeypatch.setattr(digests, "_JOINED_ROWS", joined_rows)
    expected = [int(key[:16], 16) for key in KEYS]
    assert key_digests(column(KEYS)).tolist() == expected
    assert key_digests(column(KEYS[:3], [], KEYS[3:4], KEYS[4:])).tolist() == expected
    assert key_digests(column(KEYS).slice(7, 9)).tolist() == expected[7:16]
    assert key_digests(column()).tolist() == key_digests(column([], [])).tolist() == []


def test_small_pieces_are_joined_until_they_have_enough_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_JOINED_ROWS", 3)
    pieces = column(*(KEYS[:length] for length in (2, 1, 1, 1, 2, 5, 2)))
    assert [len(piece) for piece in digests._joined(pieces.chunks)] == [3, 4, 5, 2]


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ([5, 1, 9], [9, 2, 5, 7], [5, 9]),
        ([9, 2, 5, 7], [5, 1, 9], [5, 9]),
        ([8], [3, 4, 7], []),
        ([1], [3, 4, 7], []),
        ([4, 4], [4, 6, 7], [4, 4]),
        ([], [3], []),
        ([], [], []),
    ],
)
def test_digests_that_are_in_both_columns(one: list[int], other: list[int], shared: list[int]) -> None:
    assert shared_digests(np.array(one, np.uint64), np.array(other, np.uint64)).tolist() == shared


def test_keys_with_one_of_some_digests() -> None:
    keys = column(KEYS[:5], ["a" * 31 + "b", "a" * 32])
    found = key_digests(keys)
    assert keys_with(keys, found, found[5:6]) == {"a" * 31 + "b", "a" * 32}
    assert keys_with(keys, found, found[[0, 3]]) == {KEYS[0], KEYS[3]}
    assert keys_with(keys, found, found[:0]) == set()
