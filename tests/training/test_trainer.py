import math

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from rm_assets.settings import TrainingSettings
from rm_assets.training.checks import read_splits
from rm_assets.training.evaluation import mean_loss_and_accuracy, pair_scores
from rm_assets.training.group import ALONE
from rm_assets.training.job import TrainingError
from rm_assets.training.model import build_model
from rm_assets.training.planning import Packing
from rm_assets.training.probe import choose_packing
from rm_assets.training.progress import Progress
from rm_assets.training.scoring import Scorer
from rm_assets.training.trainer import planned_steps, train, validation_steps

from .conftest import learnable_pairs


def train_job(job, tmp_path, model=None):
    """The trained model, the splits, and what train() returned."""
    model = model or build_model(job)
    splits = read_splits(job, tmp_path / "scratch")
    choice = choose_packing(model, splits["train"], ALONE.device)
    (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
    return (
        model,
        splits,
        train(model, splits, choice, job.settings, ALONE, Progress(tmp_path / "metrics.jsonl", print)),
    )


def step_lines(tmp_path):
    import json

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_sixteen_pairs_are_learnt_by_heart(make_job, tmp_path):
    generator = np.random.default_rng(0)
    pairs = [tuple(generator.integers(3, 40, size=length).tolist() for length in (5, 6)) for _ in range(16)]
    job = make_job(splits={"train": pairs}, settings={"epochs": 40, "batch_pairs": 16})
    model, splits, figures = train_job(job, tmp_path)
    scores = pair_scores(Scorer(model), splits["train"], np.arange(16), ALONE, Packing.SHARED, 8192)
    assert (scores[:, 0] > scores[:, 1]).all()
    assert figures["train_loss"] < 0.2 < 0.5 < step_lines(tmp_path)[0]["loss"]


def test_the_first_step_has_the_loss_and_gradient_of_plain_autograd(make_job, tmp_path):
    triples = [(chosen, rejected, 0.25 * number) for number, (chosen, rejected) in enumerate(learnable_pairs(5))]
    settings = {"batch_pairs": 5, "micro_batch_tokens": 20, "center_rewards": 0.1}
    job = make_job(splits={"train": triples}, settings=settings)
    plain = build_model(job)
    total = 0.0
    for chosen, rejected, margin in triples:
        high, low = (plain(input_ids=torch.tensor([ids])).logits.squeeze() for ids in (chosen, rejected))
        total = total - logsigmoid(high - low - margin) + 0.1 * (high + low) ** 2
    (total / 5).backward()
    norm = math.sqrt(sum(float(weight.grad.square().sum()) for weight in plain.parameters()))
    train_job(job, tmp_path)
    [line] = step_lines(tmp_path)
    assert line["loss"] == pytest.approx(total.item() / 5, rel=1e-5)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_a_gradient_above_the_limit_is_scaled_down_to_it(make_job, tmp_path):
    job = make_job(settings={"max_grad_norm": 1e-3, "epochs": 1, "batch_pairs": 12})
    model, _, _ = train_job(job, tmp_path)
    [line] = step_lines(tmp_path)
    left = math.sqrt(sum(float(weight.grad.square().sum()) for weight in model.parameters()))
    assert line["grad_norm"] > 0.01
    assert left == pytest.approx(1e-3, rel=1e-4)


def test_a_margin_that_is_no_number_stops_before_the_update_and_names_the_pairs(make_job, tmp_path):
    pairs = [(*pair, math.nan if number == 2 else 0.0) for number, pair in enumerate(learnable_pairs(3))]
    job = make_job(splits={"train": pairs})
    model = build_model(job)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(TrainingError, match=r"loss is nan .* at step 1, stopped before its update") as caught:
        train_job(job, tmp_path, model)
    assert {word.strip(",") for word in str(caught.value).split() if word.startswith("pair") and word[4].isdigit()} == {
        "pair0",
        "pair1",
        "pair2",
    }
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_weights_that_are_infinite_stop_the_training(make_job, tmp_path):
    job = make_job()
    model = build_model(job)
    with torch.no_grad():
        model.score.weight[0, 0] = math.inf
    with pytest.raises(TrainingError, match="at step 1, stopped before its update"):
        train_job(job, tmp_path, model)


def test_every_epoch_has_all_pairs_in_another_order(make_job, tmp_path):
    job = make_job(settings={"epochs": 2, "batch_pairs": 5})
    pairs = read_splits(job, tmp_path)["train"]
    steps = [(epoch, rows.tolist()) for epoch, rows in planned_steps(job.settings, pairs)]
    assert [(epoch, len(rows)) for epoch, rows in steps] == [(1, 5), (1, 5), (1, 2), (2, 5), (2, 5), (2, 2)]
    first, second = ([row for of, rows in steps if of == epoch for row in rows] for epoch in (1, 2))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_held_out_pairs_are_looked_at_ten_times_in_one_epoch_or_after_each():
    assert validation_steps(1, 40) == {4, 8, 12, 16, 20, 24, 28, 32, 36, 40}
    assert validation_steps(1, 3) == {1, 2, 3}
    assert validation_steps(3, 7) == {7, 14, 21}


def test_the_mean_loss_and_the_accuracy_of_scores():
    scores = np.array([[1, 0], [0, 0], [0, 2], [5, -5]], np.float32)
    loss, accuracy = mean_loss_and_accuracy(
        scores, np.array([0.5, 0, 0, 10], np.float32), TrainingSettings(center_rewards=0.01)
    )
    # 0.474077 + 0.01, log 2, 2.126928 + 0.04, log 2; equal scores are half right
    assert loss == pytest.approx((0.484077 + 0.693147 + 2.166928 + 0.693147) / 4, abs=1e-6)
    assert accuracy == 2.5 / 4


def test_scores_that_are_no_numbers_are_an_error_not_a_metric():
    with pytest.raises(TrainingError, match="loss of held-out pairs is nan: the weights are spoilt"):
        mean_loss_and_accuracy(np.full((1, 2), np.nan, np.float32), np.zeros(1, np.float32), TrainingSettings())
