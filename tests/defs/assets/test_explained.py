"""A failed step says why in its first line, as Dagster's Failure; a stopped one says how to resume."""

from collections.abc import Callable, Iterator

import dagster as dg
import pytest

from rm_assets.defs.assets.explained import STOPPED, explained
from rm_assets.defs.runs.failure_reason import failure_reasons
from rm_assets.settings import SettingsError

Failing = Callable[[BaseException], tuple[dg.DagsterInstance, str]]


@pytest.fixture(params=["function", "generator"])
def failing(request: pytest.FixtureRequest) -> Iterator[Failing]:
    """Runs an asset whose function, or generator, raises this error."""
    with dg.DagsterInstance.ephemeral() as instance:

        def run(error: BaseException) -> tuple[dg.DagsterInstance, str]:
            @explained
            def function() -> dg.MaterializeResult:
                raise error

            @explained
            def generator() -> Iterator[dg.MaterializeResult]:
                raise error
                yield

            body = function if request.param == "function" else generator
            result = dg.materialize([dg.asset(name="step")(body)], instance=instance, raise_on_error=False)
            return instance, result.run_id

        yield run


def test_an_error_for_users_is_the_first_line_and_the_last(failing: Failing) -> None:
    instance, run_id = failing(SettingsError("model is 'x':\n name another"))
    [entry] = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    failed = entry.get_dagster_event().step_failure_data
    assert failed.user_failure_data.description == "model is 'x': name another"
    assert failed.error.message.strip().endswith("Failure: model is 'x': name another")
    assert list(failure_reasons(instance, run_id)) == ["step: model is 'x': name another"]


def test_another_error_keeps_its_class_and_its_traceback(failing: Failing) -> None:
    instance, run_id = failing(ZeroDivisionError("no"))
    [entry] = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    failed = entry.get_dagster_event().step_failure_data
    assert failed.user_failure_data is None
    assert "ZeroDivisionError" in failed.error.cause.message
    assert list(failure_reasons(instance, run_id)) == ["step: no"]


def test_a_stopped_step_says_how_to_resume() -> None:
    @explained
    def stopped() -> None:
        raise dg.DagsterExecutionInterruptedError

    with pytest.raises(dg.DagsterExecutionInterruptedError, match=r"materialize again to resume") as caught:
        stopped()
    assert str(caught.value) == STOPPED
