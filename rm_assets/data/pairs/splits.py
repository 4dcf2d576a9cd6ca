"""Which prompts train and which are held out, by a keyed hash of the prompt alone."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")


def splits_of(
    prompt_keys: Sequence[str], seed: str, validation_fraction: float, test_fraction: float
) -> NDArray[np.str_]:
    """The split of each prompt: a keyed hash as a number in [0, 1); test first, then validation, the rest is train.

    It depends on the prompt alone, so no prompt changes its split as data arrive.
    """
    keyed = hashlib.blake2b(key=hashlib.blake2b(seed.encode(), digest_size=32).digest(), digest_size=8)
    digests = []
    for prompt_key in prompt_keys:
        digest = keyed.copy()
        digest.update(prompt_key.encode())
        digests.append(digest.digest())
    positions = np.frombuffer(b"".join(digests), ">u8") / 2**64
    return np.select(
        [positions < test_fraction, positions < test_fraction + validation_fraction], ["test", "validation"], "train"
    )
