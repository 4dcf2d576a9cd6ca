"""Cancelled runs that go on, such as those whose interrupt Python dropped, are interrupted again."""

import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from real_runs import Site, wait_until

from rm_assets.defs.launchers.local import LocalLauncher
from rm_assets.defs.runs import cancellation
from rm_assets.defs.runs.executor import watched_in_process_executor

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SECONDS = 15  # of what nobody interrupts
SAVES = """import pathlib, signal, sys, time
home = pathlib.Path(sys.argv[1])
def save(*_):
    time.sleep(1.5)
    (home / "saved").touch()
    sys.exit(1)
signal.signal(signal.SIGINT, save)
(home / "ready").touch()
time.sleep(60)
"""


class Reference:
    """Something to refer to weakly."""


def interrupt(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # somewhere here Python comes to it
        time.sleep(0)


def lose_an_interrupt() -> None:
    """As SQLAlchemy may: the interrupt is raised in the callback of a weak reference, and ignored."""
    referred = Reference()
    reference = weakref.ref(referred, interrupt)
    del referred
    assert reference() is None


@dg.op
def step_that_waits(context: dg.OpExecutionContext) -> None:
    run = context.instance.get_run_by_id(context.run_id)
    assert run is not None
    context.instance.report_run_canceling(run)  # as the UI does
    lose_an_interrupt()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(0.05)


@dg.op
def step_with_a_job_that_saves(context: dg.OpExecutionContext) -> None:
    home = os.environ["RM_TEST_HOME"]

    def cancel_when_ready() -> None:
        wait_until((Path(home) / "ready").exists, 60, 0.02)
        run = context.instance.get_run_by_id(context.run_id)
        assert run is not None
        context.instance.report_run_canceling(run)

    threading.Thread(target=cancel_when_ready, daemon=True).start()
    LocalLauncher(grace_seconds=60).run(context, ["-c", SAVES, home], "")  # type: ignore[arg-type]


@dg.op
def step_that_is_given_up(context: dg.OpExecutionContext) -> None:
    """Others end the run meanwhile: the UI's forced cancel, or the daemon of a run that takes too long."""
    end_run(context.instance, context.run_id, os.environ["RM_TEST_ENDING"])
    time.sleep(SECONDS)


def end_run(instance: dg.DagsterInstance, run_id: str, ending: str) -> None:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    {"CANCELED": instance.report_run_canceled, "FAILURE": instance.report_run_failed}[ending](run)


@dg.job(executor_def=watched_in_process_executor)
def given_up() -> None:
    step_that_is_given_up()


@dg.job(executor_def=watched_in_process_executor)
def waiting() -> None:
    step_that_waits()


@dg.job(executor_def=watched_in_process_executor)
def with_a_job_that_saves() -> None:
    step_with_a_job_that_saves()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with Site(tmp_path).instance() as instance:
        yield instance


@pytest.fixture
def quick_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "SECONDS_BETWEEN_POLLS", 0.05)


def interruption(result: dg.JobExecutionResult) -> str:
    """The error of a run's one step."""
    [failure] = result.get_step_failure_events()
    return str(failure.step_failure_data.error.cls_name)


def test_a_cancelled_run_whose_interrupt_was_lost_is_interrupted_again(
    instance: dg.DagsterInstance, quick_repetition
) -> None:
    with dg.execute_job(dg.reconstructable(waiting), instance, raise_on_error=False) as result:
        assert interruption(result) == "DagsterExecutionInterruptedError"


def test_a_request_is_not_sent_again_while_a_job_saves(
    instance: dg.DagsterInstance, quick_repetition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RM_TEST_HOME", str(tmp_path))
    with dg.execute_job(dg.reconstructable(with_a_job_that_saves), instance, raise_on_error=False) as result:
        assert interruption(result) == "DagsterExecutionInterruptedError"
        assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("ending", ["CANCELED", "FAILURE"])
def test_a_run_that_others_have_ended_does_not_go_on(
    instance: dg.DagsterInstance, quick_repetition, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its training would keep the GPU, and its end would write a success over the state."""
    monkeypatch.setenv("RM_TEST_ENDING", ending)
    with dg.execute_job(dg.reconstructable(given_up), instance, raise_on_error=False) as result:
        assert interruption(result) == "DagsterExecutionInterruptedError"
        run = instance.get_run_by_id(result.run_id)
        assert run is not None and run.status.value == ending
