"""Interrupts that are lost where Python ignores what is raised, and what hears them nevertheless."""

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
from rm_assets.defs.runs import dead_runs
from rm_assets.defs.runs.dead_runs import watched_in_process_executor
from rm_assets.defs.runs.stop_requests import is_asked

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
def step_that_waits() -> None:
    lose_an_interrupt()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(0.05)


@dg.op
def step_with_a_job(context: dg.OpExecutionContext) -> None:
    lose_an_interrupt()
    LocalLauncher(grace_seconds=0).run(context, ["-c", f"import time; time.sleep({SECONDS})"], "")  # type: ignore[arg-type]


@dg.op
def step_with_a_job_that_saves(context: dg.OpExecutionContext) -> None:
    home = os.environ["RM_TEST_HOME"]

    def interrupt_when_ready() -> None:
        wait_until((Path(home) / "ready").exists, 60, 0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_when_ready, daemon=True).start()
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
def with_a_job() -> None:
    step_with_a_job()


@dg.job(executor_def=watched_in_process_executor)
def with_a_job_that_saves() -> None:
    step_with_a_job_that_saves()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with Site(tmp_path).instance() as instance:
        yield instance


@pytest.fixture
def quick_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_runs, "SECONDS_TO_HEAR_OF_A_CANCEL", 0.1)
    monkeypatch.setattr(dead_runs, "SECONDS_TO_LEAVE", 0.2)


def interruption(result: dg.JobExecutionResult) -> str:
    """The error of a run's one step."""
    [failure] = result.get_step_failure_events()
    return str(failure.step_failure_data.error.cls_name)


def test_a_launcher_hears_of_an_interrupt_that_was_lost_before_its_job(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_runs, "SECONDS_TO_LEAVE", 10 * SECONDS)  # nobody sends it again
    with dg.execute_job(dg.reconstructable(with_a_job), instance, raise_on_error=False) as result:
        assert interruption(result) == "DagsterExecutionInterruptedError"


def test_a_request_is_forgotten_with_the_run_that_it_was_for(instance: dg.DagsterInstance) -> None:
    with dg.execute_job(dg.reconstructable(with_a_job), instance, raise_on_error=False):
        assert not is_asked()


def test_a_lost_interrupt_is_sent_again_until_the_run_ends(instance: dg.DagsterInstance, quick_repetition) -> None:
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
