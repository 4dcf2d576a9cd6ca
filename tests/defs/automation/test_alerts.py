"""Alerts: what reaches a webhook of failed runs and of failed checks, and that nothing repeats its address."""

import http.server
import json
import threading
from collections.abc import Iterator

import dagster as dg
import pytest

from rm_assets.definitions import definitions
from rm_assets.defs.automation.alerts import ADDRESS, AlertError, failed_checks, failed_runs

SECRET = "T0PSECRET"


class Webhook:
    """A server on the loopback that keeps the messages and answers with a code."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.code = 200
        webhook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["Content-Type"] == "application/json" and list(body) == ["text"]
                webhook.texts.append(body["text"])
                self.send_response(webhook.code)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Keeps the test's output clean."""

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/services/{SECRET}"


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    webhook = Webhook()
    monkeypatch.setenv(ADDRESS, webhook.address)
    yield webhook
    webhook.server.shutdown()
    webhook.server.server_close()


def run_of(instance: dg.DagsterInstance, error: str = "", *, passed: bool = True) -> dg.DagsterRun:
    """A run of one asset that fails with this error, or whose check warns."""

    @dg.asset(name="step", check_specs=[dg.AssetCheckSpec("no_file_is_held_back", asset="step")])
    def made() -> dg.MaterializeResult:
        if error:
            raise ValueError(error)
        warning = dg.AssetCheckResult(
            passed=passed, severity=dg.AssetCheckSeverity.WARN, description="Held back: `a.jsonl`"
        )
        return dg.MaterializeResult(check_results=[warning])

    result = dg.materialize([made], instance=instance, raise_on_error=False)
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    return run


def report(instance: dg.DagsterInstance, run: dg.DagsterRun) -> object:
    """Let the sensor for the run's status see the run."""
    kind = dg.DagsterEventType.RUN_SUCCESS if run.is_success else dg.DagsterEventType.RUN_FAILURE
    [entry] = instance.all_logs(run.run_id, of_type=kind)
    sensor = failed_checks if run.is_success else failed_runs
    context = dg.build_run_status_sensor_context(
        sensor.name, entry.get_dagster_event(), dagster_instance=instance, dagster_run=run
    )
    return sensor(context if run.is_success else context.for_run_failure())


def test_a_failed_run_is_reported_with_its_reason(webhook: Webhook) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = run_of(instance, "model is 'x': name another\x1b")
        report(instance, run)
    assert webhook.texts == [
        f"rm_assets: run {run.run_id[:8]} of a selection of assets failed\n- step: model is 'x': name another\\x1b"
    ]


def test_a_run_with_a_failed_check_is_reported_and_one_without_is_not(webhook: Webhook) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert isinstance(report(instance, run_of(instance)), dg.SkipReason)
        assert webhook.texts == []
        run = run_of(instance, passed=False)
        report(instance, run)
    [text] = webhook.texts
    assert text.splitlines()[1:] == ["- no_file_is_held_back: Held back: `a.jsonl`"]
    assert "succeeded with warnings" in text


def test_a_long_message_is_cut(webhook: Webhook) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        report(instance, run_of(instance, "x" * 10_000))
    assert len(webhook.texts[0]) == 3000


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("", f"{ADDRESS} must be the http"),
        (f"file:///etc/{SECRET}", f"{ADDRESS} must be the http"),
        (f"http://127.0.0.1:9/{SECRET}", "did not accept the message: ConnectionRefusedError"),
        (f"http://127.0.0.1:x/{SECRET}", "did not accept the message: "),
        (f"http://a b/{SECRET}", "did not accept the message: "),
        (404, "did not accept the message: HTTP 404"),
    ],
)
def test_an_alert_that_cannot_be_delivered_fails_the_tick_without_the_address(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch, address: str | int, complaint: str
) -> None:
    if isinstance(address, int):
        webhook.code = address
    else:
        monkeypatch.setenv(ADDRESS, address)
    with dg.DagsterInstance.ephemeral() as instance:
        run = run_of(instance, passed=False)
        with pytest.raises(Exception) as caught:
            report(instance, run)
    error: BaseException | None = caught.value
    told = ""
    while error is not None:
        told += f"{type(error).__name__}: {error}\n"
        error = error.__cause__
    assert complaint in told and AlertError.__name__ in told
    assert SECRET not in told


def test_they_are_off_until_somebody_switches_them_on() -> None:
    sensors = {sensor.name: sensor.default_status for sensor in definitions().sensors or []}
    assert sensors["failed_runs"] == sensors["failed_checks"] == dg.DefaultSensorStatus.STOPPED
