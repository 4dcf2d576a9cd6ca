import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_assets.training.report.calibration import (
    calibration_bins,
    expected_calibration_error,
    fit_temperature,
    log_losses,
    wins,
)
from rm_assets.training.report.intervals import wilson_interval

LN2, LN11 = math.log(2), math.log(11)


def test_calibration_bins_by_hand():
    bins = calibration_bins(np.array([0.0, LN2, -LN2, LN11, 800.0]))
    assert list(bins["num_pairs"]) == [1, 0, 0, 2, 0, 0, 0, 0, 1, 1]
    filled = bins[bins["num_pairs"] > 0]
    assert list(filled["confidence"]) == pytest.approx([1 / 2, 2 / 3, 11 / 12, 1])
    assert list(filled["frequency"]) == [0.5, 0.5, 1, 1]
    assert bins.loc[3, ["bin_low", "bin_high"]].tolist() == pytest.approx([0.65, 0.70])
    assert bins.loc[3, ["frequency_low", "frequency_high"]].tolist() == pytest.approx(wilson_interval(0.5, 2))
    assert bins.loc[1, ["confidence", "frequency", "frequency_low", "frequency_high"]].isna().all()


def test_calibration_error_weighs_bins_by_their_pairs():
    # Odds 2, one right of two: confidence 2/3, frequency 1/2. Odds 11, two right of two: 11/12 against 1.
    bins = calibration_bins(np.array([LN2, -LN2, LN11, LN11]))
    assert expected_calibration_error(bins) == pytest.approx((2 * (2 / 3 - 1 / 2) + 2 * (1 - 11 / 12)) / 4)


def test_the_temperature_that_makes_the_confidence_the_frequency():
    # Three of four right at d = 3 ln 3: at T = 3 the probability is sigmoid(ln 3) = 3/4.
    difference = 3 * math.log(3) * np.array([1, 1, 1, -1])
    assert fit_temperature(difference) == pytest.approx(3)
    # At d = ln 3 / 2 the model is not sure enough: T = 1 / 2.
    assert fit_temperature(difference / 6) == pytest.approx(0.5)


@pytest.mark.parametrize("difference", [[], [1.0, 2.0], [0.0, 1.0], [-1.0, -2.0], [1.0, -1.0], [0.0, 0.0]])
def test_without_a_best_temperature_there_is_none(difference):
    assert fit_temperature(np.array(difference)) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-30, 30, allow_subnormal=False), min_size=2, max_size=40))
def test_no_other_temperature_has_a_smaller_log_loss(values):
    difference = np.array(values)
    temperature = fit_temperature(difference)
    if temperature is None or not 1e-6 < temperature < 1e6:
        return
    best = log_losses(difference / temperature).mean()
    for other in (0.9 * temperature, 0.99 * temperature, 1.01 * temperature, 1.1 * temperature):
        assert best <= log_losses(difference / other).mean() + 1e-12


def test_a_tie_wins_half():
    assert wins(np.array([2.5, 0.0, -1.0])).tolist() == [1, 0.5, 0]
