"""Why a failed command failed, in one line for each step."""

from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from rm_assets.data.storage.snapshots import SnapshotError
from rm_assets.defs.runs.failure_reason import failure_reasons
from rm_assets.settings import SettingsError
from rm_assets.training.saved_model.stock_scoring import load_saved_model


def reasons_of(body: Callable[[], object]) -> list[str]:
    """The reasons of a run whose only step calls this."""

    @dg.op
    def step() -> None:
        body()

    @dg.job
    def failing() -> None:
        step()

    with dg.DagsterInstance.ephemeral() as instance:
        result = failing.execute_in_process(instance=instance, raise_on_error=False)
        return list(failure_reasons(instance, result.run_id))


def raise_from(*errors: Exception) -> None:
    """Raise the first error from the second, that from the third, and so on."""
    error, *causes = errors
    try:
        if causes:
            raise_from(*causes)
    except Exception as cause:
        raise error from cause
    raise error


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
    assert reasons_of(lambda: raise_from(error)) == [f"step: {told}"]


@pytest.mark.parametrize("own", [SettingsError, SnapshotError])
def test_an_error_of_this_package_is_the_reason_whatever_caused_it(own: type[Exception]) -> None:
    causes = ConnectionError("refused"), OSError(-2, "Name or service not known")
    assert reasons_of(lambda: raise_from(own("model is wrong: mend it"), *causes)) == ["step: model is wrong: mend it"]
    assert reasons_of(lambda: raise_from(KeyError("x"), own("the file: restore it"), *causes)) == [
        "step: the file: restore it"
    ]


def test_of_errors_of_libraries_the_root_cause_is_the_reason() -> None:
    assert reasons_of(lambda: raise_from(RuntimeError("no"), OSError(28, "No space left"))) == [
        "step: [Errno 28] No space left"
    ]


def test_a_model_that_cannot_be_loaded_is_the_reason_not_what_its_loader_raised(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    [reason] = reasons_of(lambda: load_saved_model(tmp_path))
    assert reason.startswith(f"step: no reward model can be loaded from {str(tmp_path)!r}: ")
