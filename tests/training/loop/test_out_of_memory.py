"""A training whose memory is not enough: what it keeps, and which settings it names."""

from pathlib import Path

import pytest
import torch
from toy_pairs import learnable_pairs
from training_jobs import trained

from rm_assets.settings import TrainingSettings
from rm_assets.training.devices import is_out_of_memory
from rm_assets.training.jobs.training_job import TrainingError, memory_advice
from rm_assets.training.loop import step
from rm_assets.training.loop.checkpoint import Checkpoints
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.processes.signals import Stop
from rm_assets.training.run import run

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]
TWO_STEPS = {"batch_pairs": 8, "micro_batch_tokens": 1}  # of 8 micro-batches each


def fails_at(monkeypatch, error, number):
    """The gradients of this micro-batch fail."""
    add_gradients, calls = step.add_gradients, []

    def fail(*arguments):
        calls.append(1)
        if len(calls) == number:
            raise error
        return add_gradients(*arguments)

    monkeypatch.setattr(step, "add_gradients", fail)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:20])
def test_the_last_finished_step_is_saved_and_the_error_names_what_to_change(make_job, monkeypatch, error):
    job = make_job(splits={"train": learnable_pairs(16)}, settings=TWO_STEPS)
    whole = make_job("whole", splits={"train": learnable_pairs(16)}, settings=TWO_STEPS)
    run(whole, print, Stop())
    fails_at(monkeypatch, error, 8 + 3)
    told = []
    with pytest.raises(TrainingError, match=r"^out of memory on cpu .*lower micro_batch_tokens .*, or set gradient_c"):
        run(job, told.append, Stop())
    assert "out of memory after step 1/2, which is saved" in told
    assert Checkpoints(Path(job.output_directory), job.key, SINGLE_PROCESS, print).latest()[0].step == 1
    monkeypatch.undo()
    run(job, told.append, Stop())
    assert "resumes after step 1/2, from its checkpoint" in told
    assert trained(job) == trained(whole)


def test_an_update_that_was_not_finished_is_not_saved(make_job, monkeypatch):
    job = make_job(splits={"train": learnable_pairs(16)}, settings=TWO_STEPS)
    update = torch.optim.AdamW.step

    def fail_after_the_update(self, *arguments):
        update(self, *arguments)
        if {int(state["step"]) for state in self.state.values()} == {2}:
            raise MemoryError

    monkeypatch.setattr(torch.optim.AdamW, "step", fail_after_the_update)
    with pytest.raises(TrainingError, match="out of memory"):
        run(job, print, Stop())
    assert Checkpoints(Path(job.output_directory), job.key, SINGLE_PROCESS, print).latest() is None


def test_other_errors_are_not_taken_for_it():
    for error in (RuntimeError("CUDA error: misaligned address"), ValueError("shape"), KeyError("score")):
        assert not is_out_of_memory(error)


def test_the_advice_leaves_out_what_is_set_already():
    advice = memory_advice(TrainingSettings(micro_batch_tokens=512, num_processes=2))
    assert "micro_batch_tokens (512)" in advice
    assert "num_processes is 2" in advice
    assert "gradient_checkpointing" in advice
    assert "lora_rank, which starts another training" in advice
    advice = memory_advice(TrainingSettings(gradient_checkpointing=True, lora_rank=8))
    assert "gradient_checkpointing" not in advice
    assert "lora_rank" not in advice
    assert "load_in_4bit, which starts another training" in advice
    assert "another training" not in memory_advice(TrainingSettings(lora_rank=8, load_in_4bit=True))
