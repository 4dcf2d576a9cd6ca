"""Stopping a training within a step or a validation, at counted points, not by the clock."""

import json
from pathlib import Path

import pytest
from stopped_jobs import run_two, run_until
from toy_pairs import learnable_pairs
from training_jobs import trained

from rm_assets.training.jobs.result import METRICS
from rm_assets.training.loop.checkpoint import Checkpoints
from rm_assets.training.loop.group import SINGLE_PROCESS

# three steps of 8 pairs, each pair a micro-batch of its own, a validation of 5 pairs after each
LONG_STEPS = {"batch_pairs": 8, "micro_batch_tokens": 1, "learning_rate": 1e-3}


def long_steps(make_job, name="job", **settings):
    splits = {"train": learnable_pairs(24), "validation": learnable_pairs(5, first=50)}
    return make_job(name, splits=splits, settings=LONG_STEPS | settings)


def saved_step(job):
    found = Checkpoints(Path(job.output_directory), job.key, SINGLE_PROCESS, print).latest()
    return found[0].step if found else 0


def exact_curves(job):
    lines = map(json.loads, (Path(job.output_directory) / METRICS).read_text().splitlines())
    clock = ("pairs_per_second", "seconds_left")
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"lora_rank": 2}])
def test_a_stop_at_any_point_saves_the_last_finished_step_and_resumes_to_the_bit(make_job, settings):
    whole = long_steps(make_job, "whole", **settings)
    is_done, num_checks, _ = run_until(whole)
    assert is_done
    expected, curves = trained(whole), exact_curves(whole)
    # per step: 8 micro-batches, and before two layers forward and two backward
    assert num_checks > 3 * 8 * 5
    # a step takes three quarters of its third or more, the validation after it the rest
    for part, step in ((0.2, 0), (0.31, 1), (0.5, 1), (0.8, 2), (0.98, 3)):
        job = long_steps(make_job, f"stopped{part}", **settings)
        is_done, _, told = run_until(job, int(part * num_checks))
        assert (is_done, saved_step(job)) == (False, step)
        assert told[-1] == f"stops after step {step}/3" + ", which is saved" * (step > 0)
        assert run_until(job)[0]
        assert trained(job) == expected
        assert exact_curves(job) == curves


def test_a_stop_takes_effect_at_the_next_check_though_the_step_has_hundreds(make_job):
    for last in (60, 61, 67):
        _, num_checks, _ = run_until(long_steps(make_job, f"stopped{last}"), last)
        assert num_checks == last + 1  # the last one asks for the signal's number


def test_a_step_that_is_saved_already_is_not_saved_again(make_job):
    job = long_steps(make_job, checkpoint_every_steps=1)
    run_until(job, 60)  # within step 2
    [first] = (Path(job.output_directory) / "checkpoints").glob("step-00000001-*")
    written = (first / "process-0.safetensors").stat()
    run_until(job, 20)
    [again] = (Path(job.output_directory) / "checkpoints").glob("step-*")
    assert (again, (again / "process-0.safetensors").stat()) == (first, written)


# --- several processes ----------------------------------------------------------------------------------------


def test_two_processes_of_which_one_is_asked_leave_the_same_step_and_resume_to_the_bit(make_job):
    whole = long_steps(make_job, "whole", num_processes=2)
    assert run_two(whole)[0] == [True, True]
    job = long_steps(make_job, "stopped", num_processes=2)
    # each checks before its 4 micro-batches of a step and its 3 of a validation: number 10 is within step 2
    are_done, told = run_two(job, last=10)
    assert are_done == [False, False]
    assert told[-1] == "stops after step 1/3, which is saved"
    assert run_two(job)[0] == [True, True]
    assert trained(job) == trained(whole)
    assert exact_curves(job) == exact_curves(whole)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"gradient_checkpointing": True, "micro_batch_tokens": 30}),
        ({"num_processes": 2}, {}),
        ({}, {"num_processes": 2}),
    ],
)
def test_settings_that_change_rounding_alone_go_on_from_the_checkpoint(make_job, before, after):
    whole = long_steps(make_job, "whole")
    run_until(whole)
    job = long_steps(make_job, **before)
    run_two(job, last=10) if before else run_until(job, 60)
    assert saved_step(job) == 1
    changed = job.model_copy(update={"settings": long_steps(make_job, "changed", **after).settings})
    told = run_two(changed)[1] if "num_processes" in after else run_until(changed)[2]
    [told] = [text for text in told if text.startswith("this training began under other conditions (")]
    for name in {**before, **after}:
        assert f"{name} " in told
    found, expected = exact_curves(job), exact_curves(whole)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for name in ("loss", "grad_norm", "validation_loss"):
        values = [[line[name] for line in lines if name in line] for lines in (found, expected)]
        assert values[0] == pytest.approx(values[1], abs=1e-5)
