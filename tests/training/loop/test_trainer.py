import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid
from torch.overrides import TorchFunctionMode
from toy_pairs import learnable_pairs

from rm_assets.settings import TrainingSettings
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.held_out import mean_loss_and_accuracy, pair_scores
from rm_assets.training.loop.setup import prepare_run
from rm_assets.training.loop.step import train_step
from rm_assets.training.loop.trainer import planned_steps, train, validation_steps
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.model.probe import choose_packing
from rm_assets.training.model.reward_model import build_model
from rm_assets.training.model.scoring import Scorer
from rm_assets.training.packing.checks import read_splits
from rm_assets.training.packing.planning import Packing, plan_rows


def train_job(job, tmp_path, model=None):
    """The trained model, the splits, and what train() returned."""
    model = model or build_model(job)
    splits = read_splits(job, tmp_path / "scratch")
    choice = choose_packing(model, splits["train"], SINGLE_PROCESS.device)
    (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
    return (
        model,
        splits,
        train(model, splits, choice, job.settings, SINGLE_PROCESS, TrainingLog(tmp_path / "metrics.jsonl", print)),
    )


def with_margins(make_job, tmp_path, *margins):
    """Pairs pair0, pair1, ... with these margins."""
    pairs = [(*pair, margin) for pair, margin in zip(learnable_pairs(len(margins)), margins, strict=True)]
    return read_splits(make_job(splits={"train": pairs}), tmp_path / "scratch")["train"]


def step_lines(tmp_path):
    import json

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_sixteen_pairs_are_learnt_by_heart(make_job, tmp_path):
    generator = np.random.default_rng(0)
    pairs = [tuple(generator.integers(3, 40, size=length).tolist() for length in (5, 6)) for _ in range(16)]
    job = make_job(splits={"train": pairs}, settings={"epochs": 40, "batch_pairs": 16})
    model, splits, figures = train_job(job, tmp_path)
    scores = pair_scores(Scorer(model), splits["train"], np.arange(16), SINGLE_PROCESS, Packing.SHARED, 8192)
    assert (scores[:, 0] > scores[:, 1]).all()
    assert figures["train_loss"] < 0.2 < 0.5 < step_lines(tmp_path)[0]["loss"]


def test_the_first_step_has_the_loss_and_gradient_of_plain_autograd(make_job, tmp_path):
    triples = [(chosen, rejected, 0.25 * number) for number, (chosen, rejected) in enumerate(learnable_pairs(5))]
    settings = {"batch_pairs": 5, "micro_batch_tokens": 20, "center_rewards": 0.1, "loss": "margin"}
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


class Waits(TorchFunctionMode):
    """Counts what waits for a device: numbers that leave a tensor."""

    NAMES = frozenset(["item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__float__", "__int__", "__index__"])

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if getattr(function, "__name__", "") in self.NAMES:
            self.names.append(function.__name__)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("max_grad_norm", [1e-3, 1e3])
def test_a_step_waits_for_its_device_once(make_job, tmp_path, max_grad_norm):
    job = make_job(settings={"batch_pairs": 12, "micro_batch_tokens": 30, "max_grad_norm": max_grad_norm})
    pairs = read_splits(job, tmp_path)["train"]
    model = build_model(job)
    run = prepare_run(model, pairs, choose_packing(model, pairs, SINGLE_PROCESS.device), job.settings, SINGLE_PROCESS)
    [(_, rows)] = planned_steps(job.settings, pairs)
    [plans] = plan_rows(pairs, rows, Packing.SHARED, 30)
    assert len(plans) > 2
    with Waits() as waits:
        train_step(run, 1, 1, rows, plans)
    assert waits.names == ["tolist"]


def test_a_step_shows_how_many_of_its_pairs_are_done(make_job, tmp_path):
    job = make_job(settings={"batch_pairs": 12, "micro_batch_tokens": 30})
    pairs, said = read_splits(job, tmp_path)["train"], []
    model = build_model(job)
    run = prepare_run(model, pairs, choose_packing(model, pairs, SINGLE_PROCESS.device), job.settings, SINGLE_PROCESS)
    [(_, rows)] = planned_steps(job.settings, pairs)
    [plans] = plan_rows(pairs, rows, Packing.SHARED, 30)
    train_step(replace(run, progress=said.append), 1, 1, rows, plans)
    done = np.cumsum([0, *(len(plan.pairs) for plan in plans[:-1])])
    assert said == [f"step 1/1: {count} of 12 pairs done" for count in done]


def test_a_gradient_above_the_limit_is_scaled_down_to_it(make_job, tmp_path):
    job = make_job(settings={"max_grad_norm": 1e-3, "epochs": 1, "batch_pairs": 12})
    model, _, _ = train_job(job, tmp_path)
    [line] = step_lines(tmp_path)
    left = math.sqrt(sum(float(weight.grad.square().sum()) for weight in model.parameters()))
    assert line["grad_norm"] > 0.01
    assert left == pytest.approx(1e-3, rel=1e-4)


def test_a_margin_that_is_no_number_stops_before_the_update_and_names_the_pairs(make_job, tmp_path):
    pairs = [(*pair, math.nan if number == 2 else 0.0) for number, pair in enumerate(learnable_pairs(3))]
    job = make_job(splits={"train": pairs}, settings={"loss": "margin"})
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


def test_validation_follows_every_epoch_or_a_tenth_of_a_single_one():
    assert validation_steps(1, 40) == {4, 8, 12, 16, 20, 24, 28, 32, 36, 40}
    assert validation_steps(1, 3) == {1, 2, 3}
    assert validation_steps(3, 7) == {7, 14, 21}


def test_the_mean_loss_and_the_accuracy_of_scores(make_job, tmp_path):
    scores = np.array([[1, 0], [0, 0], [0, 2], [5, -5]], np.float32)
    pairs = with_margins(make_job, tmp_path, 0.5, 0, 0, 10)
    loss, accuracy = mean_loss_and_accuracy(scores, pairs, np.arange(4), TrainingSettings(loss="margin"))
    # 0.474077 + 0.01, log 2, 2.126928 + 0.04, log 2; equal scores are half right
    assert loss == pytest.approx((0.484077 + 0.693147 + 2.166928 + 0.693147) / 4, abs=1e-6)
    assert accuracy == 2.5 / 4


def test_scores_that_are_no_numbers_are_an_error_not_a_metric(make_job, tmp_path):
    scores = np.array([[1, 0], [np.nan, np.nan], [0, 9]], np.float32)
    with pytest.raises(TrainingError, match=r"loss of held-out pairs is nan: .*: pair1 \(loss nan, margin 0\), pair2"):
        mean_loss_and_accuracy(scores, with_margins(make_job, tmp_path, 0, 0, 0), np.arange(3), TrainingSettings())


# --- margins at the end of float32 ----------------------------------------------------------------------------


def test_losses_that_float32_holds_and_their_sum_not_are_added_up(make_job, tmp_path):
    pairs = [(*pair, 3e38 if number in (2, 5) else 0.0) for number, pair in enumerate(learnable_pairs(8))]
    job = make_job(splits={"train": pairs}, settings={"loss": "margin", "epochs": 1, "batch_pairs": 8})
    train_job(job, tmp_path)
    [line] = step_lines(tmp_path)
    assert line["loss"] == pytest.approx(2 * 3e38 / 8, rel=1e-6)  # two losses of 3e38, six below 10
    scores = np.zeros((2, 2), np.float32)
    loss, _ = mean_loss_and_accuracy(scores, with_margins(make_job, tmp_path, 3e38, 3e38), np.arange(2), job.settings)
    assert loss == pytest.approx(3e38, rel=1e-6)


def test_the_error_of_a_loss_that_is_not_finite_names_the_pairs_that_made_it(make_job, tmp_path):
    pairs = [(*pair, 3e38 if number in (20, 33) else 1.0) for number, pair in enumerate(learnable_pairs(40))]
    splits = {"train": pairs, "validation": []}
    job = make_job(splits=splits, settings={"loss": "scaled", "epochs": 1, "batch_pairs": 40})
    with pytest.raises(TrainingError, match=r"at step 1, stopped before its update: .* of 40 pairs") as caught:
        train_job(job, tmp_path)
    named = re.findall(r"(pair\d+) \(loss ([^,]+), margin ([^)]+)\)", str(caught.value))
    assert {name for name, _, _ in named[:2]} == {"pair20", "pair33"}
    assert [margin for _, _, margin in named] == ["3e+38", "3e+38", "1"]
