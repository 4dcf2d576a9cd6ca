import pytest
import torch
from torch import nn

from rm_assets.settings import TrainingSettings
from rm_assets.training.optimizer import build_optimizer, flat_gradients, learning_rate


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    settings = TrainingSettings(learning_rate=2.0, warmup_fraction=0.34)
    rates = [learning_rate(step, 6, settings) for step in range(1, 7)]
    # two steps of warm-up, then 1 + cos of 0, 1/4, 2/4, 3/4 of pi
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5])


def test_without_warm_up_the_first_step_has_the_peak():
    settings = TrainingSettings(learning_rate=2.0, warmup_fraction=0.0)
    assert [learning_rate(step, 2, settings) for step in (1, 2)] == pytest.approx([2.0, 1.0])
    assert learning_rate(1, 1, settings) == 2.0


def test_weight_decay_touches_matrices_but_no_embedding_norm_or_bias():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    optimizer = build_optimizer(model, TrainingSettings(weight_decay=0.1))
    decayed, plain = optimizer.param_groups
    assert [weight.shape for weight in decayed["params"]] == [(3, 4)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert sorted(weight.numel() for weight in plain["params"]) == [3, 3, 3, 20]


def test_backward_adds_every_gradient_into_the_flat_vector():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[2.0, 3.0]])
        model[1].weight[:] = 5.0
    flat = flat_gradients(model, num_sums=1)
    for _ in range(2):
        model(torch.tensor([[7.0, 11.0]])).sum().backward()
    # d/dw1 = 5 * x = 35, 55; d/dw2 = 2 * 7 + 3 * 11 = 47; twice
    assert flat.tolist() == [70.0, 110.0, 94.0, 0.0]
