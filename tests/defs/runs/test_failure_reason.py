"""Why a failed command failed, in one line for each step."""

import dagster as dg
import pytest

from rm_assets.defs.runs.failure_reason import failure_reasons


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no\n  pairs: none"), "no pairs: none"),
        (ValueError(), "ValueError"),
        (KeyError(), "KeyError"),
        (ValueError("\x1b]0;title\x07\x9b31m\u202e"), r"\x1b]0;title\x07\x9b31m\u202e"),
    ],
)
def test_a_reason_is_what_the_error_says_or_its_class(error: Exception, told: str) -> None:
    @dg.op
    def step() -> None:
        raise error

    @dg.job
    def failing() -> None:
        step()

    with dg.DagsterInstance.ephemeral() as instance:
        result = failing.execute_in_process(instance=instance, raise_on_error=False)
        assert list(failure_reasons(instance, result.run_id)) == [f"step: {told}"]
