import math

import pytest
import torch

from rm_assets.training.loss import num_right, pair_losses


def test_the_loss_is_bradley_terry_with_margin_and_centering():
    chosen, rejected = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 2.0, -3.0])
    margin = torch.tensor([0.5, 0.0, 7.0])
    # -log sigmoid(1 - 0 - 0.5), (0 - 2 - 0), (3 + 3 - 7); the squares of the sums are 1, 4, 0
    expected = [
        math.log(1 + math.exp(-0.5)) + 0.01,
        math.log(1 + math.exp(2.0)) + 0.04,
        math.log(1 + math.exp(1.0)),
    ]
    assert pair_losses(chosen, rejected, margin, 0.01).tolist() == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx([0.484077, 2.166928, 1.313262], abs=1e-6)


def test_a_pair_far_on_the_wrong_side_has_a_finite_loss_and_gradient():
    chosen = torch.tensor([-500.0], requires_grad=True)
    loss = pair_losses(chosen, torch.tensor([500.0]), torch.tensor([0.0]), 0.0)
    loss.backward()
    assert loss.item() == 1000.0
    assert chosen.grad.item() == -1.0


def test_a_tie_is_half_right():
    assert num_right(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 4.0])).item() == 1.5
