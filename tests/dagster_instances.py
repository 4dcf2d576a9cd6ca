"""A real Dagster for tests: `dagster dev` (web server, daemon, code location) on loopback, with an instance of its own.

Which storage the instance has is the text of its dagster.yaml: `sqlite_yaml` is the project's own file, at another
place. Whatever `running_dagster` started is gone when it ends, runs included.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

ROOT = Path(__file__).parent.parent
LOCATION = "rm_assets"
SECONDS_TO_START, SECONDS_TO_LEAVE = 180.0, 20.0
_SENSOR = """mutation ($sensor: SensorSelector!) {
  startSensor(sensorSelector: $sensor) {
    ... on Sensor { sensorState { status } }
    ... on PythonError { message }
  }
}"""
_LOADED = """{ repositoriesOrError { __typename ... on RepositoryConnection { nodes { name location { name } } } } }"""


def sqlite_yaml(home: Path) -> str:
    """The project's dagster.yaml with all its directories below another one."""
    return (ROOT / "dagster.yaml").read_text().replace(" .dagster", f" {home}")


@dataclass(frozen=True, kw_only=True)
class RunningDagster:
    """A Dagster at work: `instance` sees what it does, `graphql` is what the UI would say to it."""

    url: str
    instance: dg.DagsterInstance
    log: Path

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """The data of an answer; raises AssertionError with the errors of one that has any."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return dict(answer["data"])

    def switch_on(self, sensor: str) -> None:
        """The one switch in the UI."""
        selector = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "sensorName": sensor}
        answer = self.graphql(_SENSOR, sensor=selector)["startSensor"]
        assert answer.get("sensorState") == {"status": "RUNNING"}, answer

    def wait_for(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """The first true value of a condition; fails with the end of the log where there is none in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.2)
        raise AssertionError(f"no {what} within {seconds:.0f} s; the log ends:\n{self.log.read_text()[-5000:]}")


@contextlib.contextmanager
def running_dagster(home: Path, dagster_yaml: str, settings: Mapping[str, object]) -> Iterator[RunningDagster]:
    """`dagster dev` in the project's root, with this dagster.yaml and these RM_ settings, until the block ends."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text(dagster_yaml)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with dg.DagsterInstance.from_config(str(home)) as instance:
        # its tables are made here, by one process, before others look for them
        instance.get_runs_count(), instance.all_instigator_state(), instance.get_asset_keys()
        log = home / "dagster.log"
        process = _started(home, port, settings, log)
        try:
            dagster = RunningDagster(url=f"http://127.0.0.1:{port}", instance=instance, log=log)
            dagster.wait_for(lambda: process.poll() is not None or _serves(dagster), SECONDS_TO_START, "web server")
            assert process.poll() is None, log.read_text()[-5000:]
            yield dagster
        finally:
            _end(process, home)


def _started(home: Path, port: int, settings: Mapping[str, object], log: Path) -> "subprocess.Popen[bytes]":
    named = {f"RM_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-c", "from dagster._cli import main; main()", "dev", "-h", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, **named, "DAGSTER_HOME": str(home)}
    with log.open("wb") as stream:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )


def _serves(dagster: RunningDagster) -> bool:
    """Whether the code location is there for the asking."""
    try:
        found = dagster.graphql(_LOADED)["repositoriesOrError"]
    except (OSError, urllib.error.URLError):
        return False
    return LOCATION in [node["location"]["name"] for node in found.get("nodes", [])]


def _end(process: "subprocess.Popen[bytes]", home: Path) -> None:
    """Ask it to leave as Ctrl-C does, then kill what is left, by id: code servers look for their client seldom."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS_TO_LEAVE)
    end = time.monotonic() + SECONDS_TO_LEAVE
    while (left := processes_of(home)) and time.monotonic() < end:
        for number in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.1)
    process.wait()


def processes_of(home: Path) -> list[int]:
    """Every process that was started for an instance, by its environment."""
    wanted = f"DAGSTER_HOME={home}\0".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (process / "environ").read_bytes() + b"\0":
                found.append(int(process.name))
    return [number for number in found if number != os.getpid()]
