import numpy as np
import pandas as pd
import pytest

from rm_assets.training.report.intervals import bootstrap_interval, wilson_interval


def test_bootstrap_agrees_with_a_loop_that_draws_prompts_one_by_one():
    generator = np.random.default_rng(7)
    prompts = [list(generator.integers(0, 3, size=size) / 2) for size in generator.integers(1, 6, size=120)]
    resampled = []
    for _ in range(4_000):
        drawn = [prompts[index] for index in generator.integers(len(prompts), size=len(prompts))]
        answers = [answer for prompt in drawn for answer in prompt]
        resampled.append(sum(answers) / len(answers))
    keys = [f"prompt{index}" for index, prompt in enumerate(prompts) for _ in prompt]
    correct = pd.Series([answer for prompt in prompts for answer in prompt])
    low, high = bootstrap_interval(correct, pd.Series(keys))
    assert low == pytest.approx(np.percentile(resampled, 2.5), abs=0.008)
    assert high == pytest.approx(np.percentile(resampled, 97.5), abs=0.008)


def test_ten_equal_answers_of_one_prompt_are_no_more_evidence_than_one():
    correct = pd.Series([1.0] * 16 + [0.0] * 4)
    once = bootstrap_interval(correct, pd.Series(range(20)))
    tenfold = bootstrap_interval(correct.repeat(10), pd.Series(range(20)).repeat(10))
    assert tenfold == pytest.approx(once)
    # Resampled accuracy is Binomial(20, 0.8) / 20, whose 2.5 % and 97.5 % quantiles are 12 and 19 of 20.
    assert once == pytest.approx((12 / 20, 19 / 20), abs=0.051)


def test_wilson_interval_of_eight_of_ten():
    # z^2 / n = 0.384146: centre (0.8 + 0.192073) / 1.384146 = 0.716740,
    # reach sqrt(0.16 * 0.384146 + 0.384146^2 / 4) / 1.384146 = 0.313617 / 1.384146 = 0.226578.
    low, high = wilson_interval(0.8, 10)
    assert (low, high) == pytest.approx((0.49016, 0.94332), abs=1e-5)


def test_wilson_interval_of_none_and_of_all_ends_exactly_there():
    count = np.arange(1, 2_000)
    assert (wilson_interval(np.zeros(len(count)), count)[0] == 0).all()
    assert (wilson_interval(np.ones(len(count)), count)[1] == 1).all()
