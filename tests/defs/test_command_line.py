"""Real runs of `dagster asset materialize`: exit codes, and no process left when one is stopped."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from audited import CANARY, AuditedRun
from support import QUICK, polite_rows, run_stages, write_lines

from rm_assets.settings_loading import load_settings

SECONDS_TO_START, SECONDS_TO_LEAVE = 120, 10


def command(*arguments: str) -> list[str]:
    materialize = ["from dagster._cli import main; main()", "asset", "materialize", "-m", "rm_assets.definitions"]
    return [sys.executable, "-c", *materialize, "--select", *(arguments or ("*",))]


def environment(directory: Path, **settings: object) -> dict[str, str]:
    given = {"annotations": directory / "a.jsonl", "storage": directory / "snapshots", **QUICK, **settings}
    named = {f"RM_{name.upper()}": str(value) for name, value in given.items()}
    return {**os.environ, **named, "DAGSTER_HOME": str(directory)}


def processes_of(directory: Path) -> list[int]:
    """Every process whose command line names the directory, as the training job's does."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(directory).encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(condition())


def test_a_wrong_setting_ends_with_an_exit_code_and_names_the_setting(tmp_path: Path) -> None:
    run = subprocess.run(
        command("raw_preferences"), env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    named = f"annotations (or RM_ANNOTATIONS) is '{tmp_path / 'a.jsonl'}': there is no such file or directory"
    assert run.stderr.splitlines()[-1] == f"error: raw_preferences: {named}"


@pytest.fixture
def training_run(tmp_path: Path, num_processes: int) -> Iterator[subprocess.Popen[bytes]]:
    """A run in the middle of a training that would take hours, ended by id at the latest when the test ends."""
    write_lines(tmp_path / "a.jsonl", polite_rows(60))
    log = tmp_path / "log"
    with log.open("wb") as stream:
        run = subprocess.Popen(
            command(),
            env=environment(tmp_path, epochs=1_000_000, micro_batch_tokens=200, num_processes=num_processes),
            cwd=tmp_path,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        assert wait_until(lambda: b"step 1/" in log.read_bytes() or run.poll() is not None, SECONDS_TO_START)
        assert run.poll() is None, log.read_text()
        assert processes_of(tmp_path) != []
        yield run
    finally:
        for process in [run.pid, *processes_of(tmp_path)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        run.wait()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes by /proc")
@pytest.mark.parametrize(
    ("number", "num_processes"),
    [
        (signal.SIGINT, 2),
        # a killed run is in test_stopped_runs, a job of two processes whose launcher is gone in test_processes
        pytest.param(signal.SIGKILL, 2, marks=pytest.mark.soak),
    ],
)
def test_a_stopped_run_leaves_no_process_and_a_cancelled_one_saves(
    training_run, tmp_path: Path, number: signal.Signals
) -> None:
    training_run.send_signal(number)
    assert training_run.wait(30) != 0
    assert wait_until(lambda: processes_of(tmp_path) == [], SECONDS_TO_LEAVE), "the training job lives on"
    home = tmp_path / "snapshots" / "reward_model"
    assert not (home / "latest.json").exists()
    if number != signal.SIGKILL:
        assert list((home / ".training").glob("*/checkpoints/step-*/manifest.json"))


def test_no_text_of_the_annotations_is_in_dagsters_home_or_output(audited: AuditedRun) -> None:
    assert audited.run.returncode == 0, audited.run.stderr
    assert CANARY not in audited.run.stdout + audited.run.stderr
    files = [path for path in audited.directory.rglob("*") if path.is_file()]
    home = [path for path in files if not path.is_relative_to(audited.storage)]
    told = [path.name for path in home if CANARY.encode() in path.read_bytes()]
    assert told == ["a.jsonl"]
    assert any(path.suffix == ".db" for path in home)


def test_a_storage_of_any_name_has_the_snapshots_of_another(audited: AuditedRun, tmp_path: Path) -> None:
    assert audited.run.returncode == 0, audited.run.stderr
    assert not list(audited.directory.rglob("run"))
    annotations = str(audited.directory / "annotations")
    elsewhere = run_stages(load_settings({"annotations": annotations, "storage": str(tmp_path), **QUICK}, {}))
    for stage, snapshot in elsewhere.items():
        latest = json.loads((audited.storage / stage / "latest.json").read_text())
        assert latest == {"snapshot": snapshot.name}
