"""Which split a prompt is in."""

import hashlib

import numpy as np

from rm_assets.data.pairs.splits import splits_of


def test_splits_have_about_the_shares_that_were_asked_for_and_depend_on_the_prompt_alone() -> None:
    prompts = [f"prompt {number}" for number in range(4000)]
    names = splits_of(prompts, "key", 0.05, 0.10).tolist()
    assert names == [name for prompt in prompts for name in splits_of([prompt], "key", 0.05, 0.10).tolist()]
    # Four standard deviations of a binomial share: 4 * sqrt(0.1 * 0.9 / 4000) = 0.019.
    assert abs(names.count("test") / 4000 - 0.10) < 0.019
    assert abs(names.count("validation") / 4000 - 0.05) < 0.014
    assert names != splits_of(prompts, "other key", 0.05, 0.10).tolist()


def test_a_larger_test_fraction_moves_no_prompt_out_of_the_test_split() -> None:
    small, large = (
        set(np.flatnonzero(splits_of([str(n) for n in range(500)], "key", 0.05, fraction) == "test"))
        for fraction in (0.1, 0.3)
    )
    assert small < large


def position(prompt: str, seed: str) -> float:
    """Where a prompt lies in [0, 1), from the definition: 64 bits of BLAKE2b under a hash of the seed."""
    key = hashlib.blake2b(seed.encode(), digest_size=32).digest()
    return int.from_bytes(hashlib.blake2b(prompt.encode(), key=key, digest_size=8).digest(), "big") / 2**64


def test_a_split_begins_exactly_at_its_fraction() -> None:
    at = position("prompt", "key")
    above = np.nextafter(at, 1)
    assert splits_of(["prompt"], "key", 0.25, at).tolist() == ["validation"]
    assert splits_of(["prompt"], "key", 0.25, above).tolist() == ["test"]
    assert splits_of(["prompt"], "key", at / 2, at / 2).tolist() == ["train"]
    assert splits_of(["prompt"], "key", at / 2, above - at / 2).tolist() == ["validation"]
