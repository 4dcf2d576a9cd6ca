"""The last line of a failed command: why it failed. Dagster tells it too, but dozens of lines of traceback follow."""

import atexit
import sys
from collections.abc import Iterator

import click
from dagster import AssetCheckSeverity, DagsterEventType, DagsterInstance

from rm_assets.display_text import one_line


def tell_at_exit(instance: DagsterInstance, run_id: str) -> None:
    """Where the run failed and a command line is what runs it: its reasons, on stderr when the process ends."""
    if click.get_current_context(silent=True) is None:
        return
    if lines := [f"error: {line}" for line in reasons(instance, run_id)]:
        atexit.register(print, *lines, sep="\n", file=sys.stderr, flush=True)


def print_note_at_exit(told: str) -> None:
    """Where a command line is what runs: a line on stderr when the process ends, if there is something to tell."""
    if told and click.get_current_context(silent=True) is not None:
        atexit.register(print, f"note: {one_line(told)}", file=sys.stderr, flush=True)


def reasons(instance: DagsterInstance, run_id: str) -> Iterator[str]:
    """A line for each step of a run that failed, with the blocking checks that failed, if those were the reason."""
    for entry in instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE):
        event = entry.get_dagster_event()
        error = event.step_failure_data.error
        while error is not None and error.cause is not None:
            error = error.cause
        checks = list(_failed_checks(instance, run_id, str(event.step_key)))
        message = error.message.strip() if error is not None else ""
        told = message.partition(": ")[2] or message  # without the error's class, where it says more
        yield f"{event.step_key}: {one_line('; '.join(checks) or told)}"


def _failed_checks(instance: DagsterInstance, run_id: str, step: str) -> Iterator[str]:
    for entry in instance.all_logs(run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION):
        event = entry.get_dagster_event()
        found = event.asset_check_evaluation_data
        if (
            event.step_key == step
            and found.blocking
            and not found.passed
            and found.severity == AssetCheckSeverity.ERROR
        ):
            yield f"the check {found.check_name} failed: {found.description}"
