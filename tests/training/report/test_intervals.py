from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest

from rm_assets.training.report import intervals
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


def test_the_interval_leaves_out_two_and_a_half_percent_on_each_side(monkeypatch):
    # With one pair per prompt, resampled accuracy is Binomial(n, 0.2) / n; the quantiles of 200,000 draws are exact to
    # 0.01 standard deviations, and half a percentile is 0.08 of them.
    monkeypatch.setattr(intervals, "NUM_RESAMPLES", 200_000)
    correct = pd.Series([1.0, 0.0, 0.0, 0.0, 0.0] * 4_000)
    found = bootstrap_interval(correct, pd.Series(range(20_000)))
    deviation = (0.2 * 0.8 / 20_000) ** 0.5
    expected = [0.2 + NormalDist().inv_cdf(share) * deviation for share in (0.025, 0.975)]
    assert found == pytest.approx(expected, abs=0.03 * deviation)


def test_ten_prompts_are_resampled_and_nine_are_not():
    nine, ten = (pd.Series([1.0] * (number - 1) + [0.0]) for number in (9, 10))
    assert bootstrap_interval(nine, pd.Series(range(9))) == pytest.approx(wilson_interval(8 / 9, 9))
    low, high = bootstrap_interval(ten, pd.Series(range(10)))
    # Resampled accuracy is Binomial(10, 0.9) / 10: 7 or fewer with 7 %, 6 or fewer with 1.3 %, all ten with 35 %.
    assert (low, high) == (pytest.approx(0.7), 1)


def test_prompts_of_equal_accuracy_get_wilsons_interval_over_the_prompts():
    # Twelve prompts with two or four pairs each, half of them right: a resample has always half of its pairs right.
    prompts = pd.Series([number for number in range(12) for _ in range(2 + 2 * (number % 2))])
    found = bootstrap_interval(pd.Series([1.0, 0.0] * 18), prompts)
    assert found == pytest.approx(wilson_interval(0.5, 12))


def test_the_interval_is_that_of_the_weighted_accuracy():
    # The weight of a pair is that of so many copies of it in the same prompt.
    correct, prompts = pd.Series([1.0, 0.0, 1.0, 0.0] * 8), pd.Series(range(32))
    weights = pd.Series([3.0, 1.0, 2.0, 2.0] * 8)
    copies = weights.astype(int)
    found = bootstrap_interval(correct, prompts, weights)
    assert found == pytest.approx(bootstrap_interval(correct.repeat(copies), prompts.repeat(copies)))
    few = bootstrap_interval(correct[:4], prompts[:4], weights[:4])
    assert few == pytest.approx(wilson_interval(5 / 8, 4))
