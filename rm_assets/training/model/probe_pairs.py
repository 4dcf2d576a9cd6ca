"""The pairs that a model is tested on before training: a few of the data, and synthetic ones for edge cases."""

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_assets.training.packing.pairs import KEYS_SCHEMA, Pairs, Sequences, common_prefix

NUM_REAL = 2
MAX_REAL_TOKENS = 192  # of each of their sides; the rest is cut off
MAX_WINDOW = 1024  # longer sliding windows are not tested: it would take too long
_Ids = NDArray[np.int32]


def probe_pairs(config: Any, pairs: Pairs, max_length: int | None = None) -> Pairs:
    """Rankings of two or three sequences, a function of a model's text configuration and the split alone.

    None is longer than `max_length`, by default the positions of the configuration.

    The first pairs of the data; a sequence and the same without its last token; two of different lengths with nothing
    in common; three replies to a prompt that is longer than the model's sliding window, if that is short.
    """
    limit = int(max_length or getattr(config, "max_position_embeddings", None) or 1 << 30)
    generator = np.random.default_rng(0)

    def synthetic(length: int) -> _Ids:
        return generator.integers(0, config.vocab_size, max(1, min(length, limit)), dtype=np.int32)

    def joined(*parts: _Ids) -> _Ids:
        return np.concatenate(parts)[:limit]

    window = int(getattr(config, "sliding_window", None) or 0)
    prompt = synthetic(min(window if window <= MAX_WINDOW else 0, limit - 16) + 5)
    whole = synthetic(13)
    rankings = [
        *_real(pairs, limit),
        [whole[:-1], whole],
        [synthetic(3), synthetic(29)],
        [joined(prompt, synthetic(4)), joined(prompt, synthetic(9)), joined(prompt[:-2], synthetic(11))],
    ]
    return pairs_of(rankings)


def _real(pairs: Pairs, limit: int) -> list[list[_Ids]]:
    rankings = []
    for row in range(min(NUM_REAL, len(pairs))):
        sides = [
            pairs.sequences[int(side[row])][: min(limit, MAX_REAL_TOKENS)] for side in (pairs.chosen, pairs.rejected)
        ]
        rankings.append(sides)
    return rankings


def pairs_of(rankings: list[list[_Ids]]) -> Pairs:
    """A split in memory: all pairs of each ranking's sequences, the earlier one chosen."""
    sequences = [sequence for ranking in rankings for sequence in ranking]
    starts = np.cumsum([0, *map(len, rankings)])
    rows = [
        (number, int(start) + chosen, int(start) + rejected)
        for number, (start, ranking) in enumerate(zip(starts[:-1], rankings, strict=True))
        for chosen, rejected in combinations(range(len(ranking)), 2)
    ]
    ranking, chosen, rejected = np.array(rows, np.int64).reshape(-1, 3).T
    prefix = [
        min(min(common_prefix(ranking[0], other), len(ranking[0]) - 1, len(other) - 1) for other in ranking)
        for ranking in rankings
    ]
    offsets = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
    ids = np.concatenate(sequences) if sequences else np.empty(0, np.int32)
    margin = np.zeros(len(rows), np.float32)
    keys = KEYS_SCHEMA.empty_table()
    return Pairs(keys, Sequences(ids, offsets), chosen, rejected, ranking, np.array(prefix, np.int32), margin)
