"""Real runs, of the command line and of `dagster dev`, for tests that stop them: how they start, what they leave."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dagster as dg
from support import polite_rows, write_lines

ROOT = Path(__file__).parent.parent
DAGSTER = [sys.executable, "-c", "from dagster._cli import main; main()"]
SECONDS_TO_START, SECONDS_TO_LEAVE = 120, 10
DATA = ("raw_preferences", "validated_preferences", "flattened_conversations", "tokenized_pairs", "padded_pairs")
# Some seconds of training, so that a signal finds it at work, and a checkpoint after every few steps.
TRAINING = {
    "epochs": 12,
    "batch_pairs": 4,
    "learning_rate": 1e-3,
    "test_fraction": 0.3,
    "validation_fraction": 0.2,
    "checkpoint_every_steps": 2,
    "promotion_requires": [],
}


def for_a_team() -> str:
    """The dagster.yaml for a team, from the page on deployment."""
    page = ROOT / "rm_assets" / "defs" / "DEPLOYMENT.md"
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    [found] = [block for block in blocks if "postgres_url" in block]
    return str(found)


def wait_until(condition: Callable[[], object], seconds: float, interval: float = 0.1) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return bool(condition())
        time.sleep(interval)
    return True


@dataclass
class Site:
    """A directory with annotations, a storage, and Dagster's home: all that some runs share, and nobody else."""

    directory: Path
    settings: dict[str, object] = field(default_factory=lambda: dict(TRAINING))
    instance_file: str = field(default_factory=lambda: (ROOT / "dagster.yaml").read_text())
    has_home: bool = True  # whether DAGSTER_HOME says where dagster.yaml lies

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in ("dagster.yaml", "workspace.yaml"):
            text = self.instance_file if name == "dagster.yaml" else (ROOT / name).read_text()
            (self.directory / name).write_text(text.replace(" .dagster", f" {self.directory}/.dagster"))
        write_lines(self.directory / "a.jsonl", polite_rows(60))

    @property
    def storage(self) -> Path:
        return self.directory / "storage"

    @property
    def training(self) -> Path:
        return self.storage / "reward_model" / ".training"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def environment(self, **settings: object) -> dict[str, str]:
        given = {"annotations": self.directory / "a.jsonl", "storage": self.storage, **self.settings, **settings}
        named = {f"RM_{name.upper()}": str(value) for name, value in given.items()}
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        home = {"DAGSTER_HOME": str(self.directory)} if self.has_home else {}
        inherited = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
        return {**inherited, **named, **own, **home}

    def start(self, *arguments: str, **settings: object) -> subprocess.Popen[bytes]:
        """One of Dagster's commands, in a session of its own."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*DAGSTER, *arguments],
                env=self.environment(**settings),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def materialize(self, selection: str, **settings: object) -> subprocess.Popen[bytes]:
        return self.start("asset", "materialize", "-m", "rm_assets.definitions", "--select", selection, **settings)

    @contextlib.contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        with dg.DagsterInstance.from_config(str(self.directory)) as instance:
            yield instance

    def run_ids(self) -> set[str]:
        with self.instance() as instance:
            return set(instance.get_run_ids())

    def status(self, run_id: str) -> str:
        with self.instance() as instance:
            run = instance.get_run_by_id(run_id)
            return "" if run is None else run.status.value

    def messages(self, run_id: str) -> str:
        with self.instance() as instance:
            return "\n".join(entry.user_message or entry.message for entry in instance.all_logs(run_id))

    def living(self) -> set[int]:
        """Every process that was started with this storage in its environment, whoever its parent is by now."""
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (process / "environ").read_bytes().split(b"\0")
                if f"RM_STORAGE={self.storage}".encode() in environment:
                    found.add(int(process.name))
        return found

    def job_processes(self) -> list[int]:
        """The processes of the training job: its main one, then torchrun, then the workers."""
        named = []
        for number in self.living():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{number}/cmdline").read_bytes()
                if str(self.training).encode() in command:
                    named.append(number)
        return sorted(named)

    def kill_everything(self) -> None:
        """As a power cut would: SIGKILL to every process, until none is left."""
        while left := self.living() - {os.getpid()}:
            for number in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.02)

    def held_locks(self) -> list[str]:
        """Lock files of the storage that somebody still holds."""
        held = []
        for path in self.storage.rglob("*.lock"):
            with path.open("a") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held.append(path.name)
        return held

    def checkpoints(self) -> list[Path]:
        return sorted(self.training.glob("*/checkpoints/step-*/manifest.json"))

    def model(self) -> str:
        """The hash of the newest model's weights."""
        home = self.storage / "reward_model"
        snapshot = json.loads((home / "latest.json").read_text())["snapshot"]
        return hashlib.sha256((home / snapshot / "model" / "model.safetensors").read_bytes()).hexdigest()


class Services:
    """A running `dagster dev`, as its UI sees it: by GraphQL."""

    def __init__(self, site: Site, process: subprocess.Popen[bytes], port: int) -> None:
        self.site, self.process, self._url = site, process, f"http://127.0.0.1:{port}/graphql"

    def ask(self, query: str, **variables: object) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            [told] = json.load(answer)["data"].values()
        return dict(told)

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            told = self.ask("{repositoriesOrError{... on RepositoryConnection{nodes{name}}}}")
            return bool(told.get("nodes"))
        return False

    def launch(self, *assets: str, tags: Mapping[str, str] = MappingProxyType({}), **settings: object) -> str:
        """Materialize these assets with these settings; the run's id."""
        selector = {
            "repositoryLocationName": "rm_assets",
            "repositoryName": "__repository__",
            "jobName": "__ASSET_JOB",
            "assetSelection": [{"path": [name]} for name in assets],
        }
        told = self.ask(
            "mutation($parameters: ExecutionParams!) {launchRun(executionParams: $parameters) "
            "{__typename ... on LaunchRunSuccess {run {runId}} ... on PythonError {message}}}",
            parameters={
                "selector": selector,
                "runConfigData": {"resources": {"project": {"config": settings}}},
                "mode": "default",
                "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
            },
        )
        assert told["__typename"] == "LaunchRunSuccess", told
        return str(told["run"]["runId"])

    def terminate(self, run_id: str) -> dict[str, Any]:
        """What the UI's button does."""
        return self.ask("mutation($id: String!) {terminateRun(runId: $id) {__typename}}", id=run_id)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def services(site: Site, **settings: object) -> Iterator[Services]:
    """`dagster dev` with webserver, daemon and code server, all gone at the end."""
    port = _free_port()
    process = site.start(
        "dev", "-w", "workspace.yaml", "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", **settings
    )
    running = Services(site, process, port)
    try:
        assert wait_until(running.is_ready, SECONDS_TO_START), site.log.read_text()
        yield running
    finally:
        site.kill_everything()
        process.wait()
