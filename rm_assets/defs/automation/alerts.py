"""Sensors that report failed runs, and runs with failed checks, to a webhook; off by default.

The webhook takes JSON of the form `{"text": ...}`, as those of Slack, Mattermost and Teams do. Its address is a secret:
it is read from the environment when a message is sent, and no log, error or metadata repeats it.
"""

import json
import os
import urllib.parse
import urllib.request

import dagster as dg

from rm_assets.defs.runs.failure_reason import failure_reasons
from rm_assets.defs.runs.summary import failed_warnings
from rm_assets.display_text import printable

ADDRESS = "ALERT_WEBHOOK_URL"
_SECONDS = 10.0
_MAX_CHARACTERS = 3000
_OFF = dg.DefaultSensorStatus.STOPPED


class AlertError(RuntimeError):
    """An alert that was not delivered."""


@dg.run_failure_sensor(
    name="failed_runs",
    default_status=_OFF,
    description=f"Posts the reason of each failed run to the webhook in the environment variable {ADDRESS}.",
)
def failed_runs(context: dg.RunFailureSensorContext) -> None:
    """A message with the failed steps and their reasons, else the run's own."""
    reasons = list(failure_reasons(context.instance, context.dagster_run.run_id))
    _post(context.dagster_run, "failed", reasons or [context.failure_event.message or "without a reason"])


@dg.run_status_sensor(
    name="failed_checks",
    run_status=dg.DagsterRunStatus.SUCCESS,
    default_status=_OFF,
    description=f"Posts the failed checks of each successful run to the webhook in the variable {ADDRESS}: files that "
    "are held back, not read or gone, a weak model, one that is not promoted.",
)
def failed_checks(context: dg.RunStatusSensorContext) -> dg.SkipReason | None:
    """A message with the checks that failed as warnings; none if all passed."""
    warnings = list(failed_warnings(context.instance, context.dagster_run.run_id))
    if not warnings:
        return dg.SkipReason(f"all checks of run {context.dagster_run.run_id} passed")
    _post(context.dagster_run, "succeeded with warnings", warnings)
    return None


def _post(run: dg.DagsterRun, how: str, lines: list[str]) -> None:
    """Send a message; raises AlertError, without the address, if the webhook does not take it."""
    address = os.environ.get(ADDRESS, "").strip()
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        raise AlertError(f"the environment variable {ADDRESS} must be the http(s) address of a webhook")
    job = "a selection of assets" if run.job_name.startswith("__") else run.job_name
    text = "\n".join([f"rm_assets: run {run.run_id[:8]} of {job} {how}", *(f"- {printable(line)}" for line in lines)])
    body = json.dumps({"text": text[:_MAX_CHARACTERS]}).encode()
    try:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=_SECONDS):
            pass
    except Exception as error:  # whose text may repeat the address
        code = getattr(error, "code", "")
        problem = f"HTTP {code}" if code else type(getattr(error, "reason", None) or error).__name__
        raise AlertError(f"the webhook in {ADDRESS} did not accept the message: {problem}") from None
