import numpy as np
import pytest
import torch
from architectures import VOCAB_SIZE, build

from rm_assets.settings import TrainingSettings
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.setup import fit_micro_batches, prepare_run
from rm_assets.training.model.probe import Choice, use_packing
from rm_assets.training.model.probe_pairs import pairs_of
from rm_assets.training.packing.micro_batch_size import micro_batch_tokens
from rm_assets.training.packing.planning import Packing

FIXED, PER_TOKEN = 5_000_000, 1000


class MemoryOfALine:
    """A step takes FIXED bytes and PER_TOKEN for each token of its largest micro-batch."""

    def __init__(self, scorer, free):
        self.left, self.largest, self.num_passes = free, 0, 0
        scorer.register_forward_pre_hook(self.notice)

    def notice(self, _, arguments):
        self.largest = max(self.largest, arguments[0].ids.numel())
        self.num_passes += 1

    def free(self):
        return self.left

    def peak(self, work):
        self.largest = 0
        work()
        return FIXED + PER_TOKEN * self.largest


def run_of(num_pairs, packing, **settings):
    generator = np.random.default_rng(0)
    rankings = [[generator.integers(1, VOCAB_SIZE, 70, dtype=np.int32) for _ in range(2)] for _ in range(num_pairs)]
    model, pairs = build("llama"), pairs_of(rankings)
    use_packing(model, packing)
    return prepare_run(model, pairs, Choice(packing, ""), TrainingSettings(**settings), SINGLE_PROCESS)


@pytest.mark.parametrize("packing", [Packing.SHARED, Packing.PADDED])
@pytest.mark.parametrize(("fitting", "expected"), [(700, 700), (6000, 6000), (9000, 8192), (0, 1)])
def test_a_micro_batch_takes_what_is_left_and_no_more_than_the_setting(packing, fitting, expected):
    run = run_of(30, packing, micro_batch_tokens=8192)
    before = {name: weight.clone() for name, weight in run.scorer.state_dict().items()}
    moments = 8 * sum(weight.numel() for weight in run.scorer.parameters())
    memory = MemoryOfALine(run.scorer, (FIXED + PER_TOKEN * (fitting + 0.5) + moments) / 0.85)
    assert fit_micro_batches(run, memory).row_tokens == expected
    assert memory.num_passes == 6  # a first step, one of few tokens, one of many; each of two micro-batches
    assert all(weight.grad is None for weight in run.scorer.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in run.scorer.state_dict().items())


def test_a_smaller_setting_stays_and_so_does_one_that_cannot_be_tried():
    run = run_of(30, Packing.SHARED, micro_batch_tokens=300)
    assert fit_micro_batches(run, MemoryOfALine(run.scorer, 1e12)).row_tokens == 300
    run = run_of(3, Packing.SHARED, micro_batch_tokens=8192)
    memory = MemoryOfALine(run.scorer, 0)
    assert fit_micro_batches(run, memory).row_tokens == 8192
    assert memory.num_passes == 0


def test_the_default_is_that_of_the_device_and_a_setting_is_never_exceeded():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [micro_batch_tokens(TrainingSettings(), device) for device in (cpu, gpu)] == [2048, 8192]
    assert {micro_batch_tokens(TrainingSettings(micro_batch_tokens=700), device) for device in (cpu, gpu)} == {700}
    assert run_of(3, Packing.SHARED).row_tokens == 2048
    assert run_of(3, Packing.SHARED, micro_batch_tokens=20_000).row_tokens == 20_000
