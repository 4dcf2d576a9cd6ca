import pytest
from torch import nn

from rm_assets.settings import TrainingSettings
from rm_assets.training.loop.optimizer import build_optimizer, learning_rate, peak_learning_rate


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    rates = [learning_rate(step, 6, 2.0, 0.34) for step in range(1, 7)]
    # two steps of warm-up, then 1 + cos of 0, 1/4, 2/4, 3/4 of pi
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5])


def test_without_warm_up_the_first_step_has_the_peak():
    assert [learning_rate(step, 2, 2.0, 0.0) for step in (1, 2)] == pytest.approx([2.0, 1.0])
    assert learning_rate(1, 1, 2.0, 0.0) == 2.0


@pytest.mark.parametrize(
    ("num_parameters", "rate"), [(17e6, 1e-4), (100e6, 1e-5), (596e6, 1e-5), (1.7e9, 4e-6), (4e9, 4e-6), (8e9, 2e-6)]
)
def test_a_learning_rate_that_is_unset_comes_from_the_size_of_the_model(num_parameters, rate):
    assert peak_learning_rate(int(num_parameters), TrainingSettings()) == rate
    assert peak_learning_rate(int(num_parameters), TrainingSettings(lora_rank=8)) == pytest.approx(10 * rate)
    assert peak_learning_rate(int(num_parameters), TrainingSettings(lora_rank=8, learning_rate=0.5)) == 0.5


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
