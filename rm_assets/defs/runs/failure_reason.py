"""Prints why a run of the command line failed as the last lines on stderr, below Dagster's traceback."""

import atexit
import sys
from collections.abc import Iterator

from dagster import AssetCheckSeverity, DagsterEventType, DagsterInstance

from rm_assets.defs.runs.summary import failed_checks, failed_warnings, is_command_of_a_user, results_of_failed_run
from rm_assets.display_text import one_line

_OWN_ERRORS = "rm_assets."
"""How Dagster begins the message of an error class of this package; its cause, a library's error, says less."""


def print_reasons_at_exit(instance: DagsterInstance, run_id: str) -> None:
    """On the command line, have what a failed run made, its warnings and its reasons printed when the process ends."""
    if not is_command_of_a_user():
        return
    if lines := [f"error: {line}" for line in failure_reasons(instance, run_id)]:
        warnings = [f"warning: {line}" for line in failed_warnings(instance, run_id)]
        results = results_of_failed_run(instance, run_id)
        atexit.register(print, *results, *warnings, *lines, sep="\n", file=sys.stderr, flush=True)


def print_error_at_exit(error: BaseException) -> None:
    """On the command line, have an error that no run reports printed when the process ends."""
    if is_command_of_a_user():
        atexit.register(print, f"error: {one_line(error)}", file=sys.stderr, flush=True)


def failure_reasons(instance: DagsterInstance, run_id: str) -> Iterator[str]:
    """A line for each failed step of a run: the blocking checks that failed, if any, else the error.

    Of an error and its causes, that is the first of this package's own classes, or else the root cause.
    """
    for entry in instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE):
        event = entry.get_dagster_event()
        error = event.step_failure_data.error
        while error is not None and error.cause is not None and not error.message.startswith(_OWN_ERRORS):
            error = error.cause
        checks = [
            f"the check {check.check_name} failed: {check.description}"
            for step, check in failed_checks(instance, run_id)
            if step == event.step_key and check.blocking and check.severity == AssetCheckSeverity.ERROR
        ]
        message = error.message.strip() if error is not None else ""
        reason = message.partition(": ")[2] or message  # without the error's class, unless that is all there is
        yield f"{event.step_key}: {one_line('; '.join(checks) or reason)}"
