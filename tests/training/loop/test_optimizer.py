from itertools import pairwise

import pytest
from torch import nn

from rm_assets.settings import TrainingSettings
from rm_assets.training.loop.optimizer import build_optimizer, learning_rate, peak_learning_rate


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    rates = [learning_rate(step, 6, 2.0, 0.34) for step in range(1, 7)]
    # three steps of warm-up, as 2.04 is rounded up, then 1 + cos of 0, 1/3, 2/3 of pi
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 1.5, 0.5])
    assert [learning_rate(step, 6, 1.0, 2 / 6) for step in range(1, 7)] == pytest.approx(
        [1 / 3, 2 / 3, 1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5]
    )


def test_a_training_of_few_steps_warms_up_for_one():
    # half of the peak, then 1 + cos of 0, 1/3, 2/3 of pi
    assert [learning_rate(step, 4, 2.0, 0.05) for step in (1, 2, 3, 4)] == pytest.approx([1.0, 2.0, 1.5, 0.5])
    assert learning_rate(1, 1, 2.0, 0.05) == 1.0


def test_without_warm_up_the_first_step_has_the_peak():
    assert [learning_rate(step, 2, 2.0, 0.0) for step in (1, 2)] == pytest.approx([2.0, 1.0])
    assert learning_rate(1, 1, 2.0, 0.0) == 2.0


@pytest.mark.parametrize(
    ("num_parameters", "rate", "lora_rate"),
    [
        (488e3, 1e-4, 1e-3),
        (110e6, 3e-5, 3e-4),
        (500e6, 1e-5, 1e-4),
        (1.414214e9, 6.324555e-6, 1e-4),  # the geometric mean of 0.5 and 4 billion, and that of their rates
        (4e9, 4e-6, 1e-4),
        (8e9, 2e-6, 1e-4),
        (70e9, 2e-6, 1e-4),
    ],
)
def test_a_learning_rate_that_is_unset_comes_from_the_size_of_the_model(num_parameters, rate, lora_rate):
    assert peak_learning_rate(int(num_parameters), TrainingSettings()) == pytest.approx(rate, rel=1e-3)
    assert peak_learning_rate(int(num_parameters), TrainingSettings(lora_rank=8)) == pytest.approx(lora_rate, rel=1e-3)
    assert peak_learning_rate(int(num_parameters), TrainingSettings(lora_rank=8, learning_rate=0.5)) == 0.5


def test_models_of_similar_size_have_similar_rates():
    sizes = [int(1.1**power) for power in range(100, 280)]
    rates = [peak_learning_rate(size, TrainingSettings()) for size in sizes]
    assert all(0.9 < after / before <= 1 for before, after in pairwise(rates))


def test_weight_decay_touches_matrices_but_no_embedding_norm_or_bias():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    optimizer = build_optimizer(model, TrainingSettings(weight_decay=0.1))
    decayed, plain = optimizer.param_groups
    assert [weight.shape for weight in decayed["params"]] == [(3, 4)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert sorted(weight.numel() for weight in plain["params"]) == [3, 3, 3, 20]


def test_frozen_weights_have_no_place_in_the_optimizer():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, TrainingSettings())
    assert [weight.shape for group in optimizer.param_groups for weight in group["params"]] == [(1, 3), (1,)]
