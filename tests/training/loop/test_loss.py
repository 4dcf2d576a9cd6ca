import math
import re

import numpy as np
import pytest
import torch

from rm_assets.settings import TrainingSettings
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.loop.loss import check_margins, large_margin, num_right, pair_losses, worst_pairs
from rm_assets.training.packing.checks import read_splits

CHOSEN, REJECTED, MARGIN = [1.0, 0.0, 3.0], [0.0, 2.0, -3.0], [0.5, 0.0, 7.0]


def losses(**settings):
    tensors = (torch.tensor(values) for values in (CHOSEN, REJECTED, MARGIN))
    return pair_losses(*tensors, TrainingSettings(**settings)).tolist()


def test_the_loss_is_bradley_terry_with_margin_and_centering():
    # -log sigmoid(1 - 0 - 0.5), (0 - 2 - 0), (3 + 3 - 7); the squares of the sums are 1, 4, 0
    expected = [
        math.log(1 + math.exp(-0.5)) + 0.01,
        math.log(1 + math.exp(2.0)) + 0.04,
        math.log(1 + math.exp(1.0)),
    ]
    assert losses(loss="margin") == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx([0.484077, 2.166928, 1.313262], abs=1e-6)


def test_the_plain_loss_is_the_default_and_takes_no_notice_of_the_margin():
    # -log sigmoid(1), (-2), (6)
    assert losses(center_rewards=0) == losses(loss="plain", center_rewards=0)
    assert losses(loss="plain", center_rewards=0) == pytest.approx([0.313262, 2.126928, 0.002476], abs=1e-6)


def test_the_scaled_loss_is_multiplied_by_the_margin_and_centering_is_not():
    # 0.5 * 0.313262 + 0.01, 1 * 2.126928 + 0.04 (no margin given), 7 * 0.0024757
    assert losses(loss="scaled") == pytest.approx([0.166631, 2.166928, 0.017330], abs=1e-6)


def test_smoothing_takes_a_share_of_each_pair_turned_round():
    # 0.9 * 0.313262 + 0.1 * 1.313262, 0.9 * 2.126928 + 0.1 * 0.126928, 0.9 * 0.002476 + 0.1 * 6.002476
    smoothed = losses(loss="plain", label_smoothing=0.1, center_rewards=0)
    assert smoothed == pytest.approx([0.413262, 1.926928, 0.602476], abs=1e-6)


def test_the_smoothed_loss_is_least_where_the_probability_is_the_share_of_right_labels():
    difference = torch.tensor([math.log(0.9 / 0.1)], requires_grad=True)
    zero = torch.zeros(1)
    pair_losses(difference, zero, zero, TrainingSettings(label_smoothing=0.1, center_rewards=0)).backward()
    assert difference.grad.item() == pytest.approx(0, abs=1e-7)


def test_a_pair_far_on_the_wrong_side_has_a_finite_loss_and_gradient():
    chosen = torch.tensor([-500.0], requires_grad=True)
    loss = pair_losses(chosen, torch.tensor([500.0]), torch.tensor([0.0]), TrainingSettings(center_rewards=0))
    loss.backward()
    assert loss.item() == 1000.0
    assert chosen.grad.item() == -1.0


def test_a_negative_margin_cannot_scale_a_loss(make_job, tmp_path):
    margins = [2.0, -0.25, -1.5]
    train = [([7 + number, 5, 1], [7 + number, 6, 1], margin) for number, margin in enumerate(margins)]
    splits = {"train": train, "validation": [], "test": []}
    job = make_job(splits=splits, settings={"loss": "scaled"})
    pairs = read_splits(job, tmp_path)
    with pytest.raises(TrainingError, match=r"margin is -0.25 in pair 'pair1', split 'train': the loss 'scaled'"):
        check_margins(pairs, job.settings)
    check_margins(pairs, TrainingSettings(loss="margin"))
    np.testing.assert_array_equal(pairs["train"].margin, np.array(margins, np.float32))


def test_margins_beyond_the_usual_ones_are_a_warning_where_they_are_subtracted(make_job, tmp_path):
    splits = {"train": [([7, 5, 1], [7, 6, 1], 3.0), ([8, 5, 1], [8, 6, 1], 3.01)], "validation": [], "test": []}
    pairs = read_splits(make_job(splits=splits), tmp_path)["train"]
    assert large_margin(pairs, TrainingSettings(loss="margin")).startswith("margins are up to 3.01, with the loss")
    assert large_margin(pairs, TrainingSettings()) == large_margin(pairs, TrainingSettings(loss="scaled")) == ""
    usual = read_splits(make_job("usual", splits=splits | {"train": splits["train"][:1]}), tmp_path / "usual")["train"]
    assert large_margin(usual, TrainingSettings(loss="margin")) == ""


def test_a_tie_is_half_right():
    assert num_right(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 4.0])).item() == 1.5


def test_a_pair_without_margin_may_be_scaled(make_job, tmp_path):
    splits = {"train": [([7, 5, 1], [7, 6, 1], 0.0)], "validation": [], "test": []}
    check_margins(read_splits(make_job(splits=splits), tmp_path), TrainingSettings(loss="scaled"))


def test_an_error_names_losses_that_are_not_finite_and_then_the_largest(make_job, tmp_path):
    splits = {"train": [([7, 5, 1], [7, 6, 1])] * 8, "validation": [], "test": []}
    pairs = read_splits(make_job(splits=splits), tmp_path)["train"]
    rows, losses = np.arange(7), np.array([0.5, math.nan, 3.0, -4.0, math.inf, 2.0, 0.25])
    found = worst_pairs(pairs, rows, losses)
    assert re.findall(r"(pair\d) \(loss", found) == ["pair1", "pair4", "pair2"]
    assert found.endswith("; see: python -m rm_assets.trace pair1")
