"""Real runs that are cancelled or killed at random moments: `pytest -m soak`. test_command_line.py has one of each.

The seed is drawn and printed; SOAK_SEED repeats one.
"""

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import QUICK, polite_rows, write_lines

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes by /proc"),
]
SECONDS_TO_LEAVE = 10
SECONDS_OF_TRAINING = 4.0
ENDLESS = {**QUICK, "epochs": 1_000_000, "batch_pairs": 8, "checkpoint_every_steps": 3}


def start_run(directory: Path, selection: str, **settings: object) -> subprocess.Popen[bytes]:
    given = {"annotations": directory / "a.jsonl", "storage": directory / "storage", **ENDLESS, **settings}
    named = {f"RM_{name.upper()}": str(value) for name, value in given.items()}
    command = [sys.executable, "-c", "from dagster._cli import main; main()", "asset", "materialize"]
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(
            [*command, "-m", "rm_assets.definitions", "--select", selection],
            env={**os.environ, **named, "DAGSTER_HOME": str(directory), "OMP_NUM_THREADS": "1"},
            cwd=directory,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def living(directory: Path) -> list[int]:
    """Every process that was started with this directory in its environment, whoever its parent is by now."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"DAGSTER_HOME={directory}".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(condition())


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Pairs to train on, so that a run is all training."""
    write_lines(tmp_path / "a.jsonl", polite_rows(60))
    assert start_run(tmp_path, "*padded_pairs").wait() == 0
    return tmp_path


@pytest.mark.parametrize("numbers", [[signal.SIGINT, signal.SIGTERM], [signal.SIGKILL]], ids=["cancel", "kill"])
def test_ten_runs_stopped_at_random_moments_leave_no_process(prepared: Path, numbers, capfd) -> None:
    seed = int(os.environ.get("SOAK_SEED", secrets.randbelow(2**32)))
    generator = random.Random(seed)
    seconds_to_train, slowest, saved = 0.0, 0.0, 0
    for attempt in range(10):
        number, num_processes = numbers[attempt % len(numbers)], 1 + attempt % 2
        started = time.monotonic()
        run = start_run(prepared, "reward_model", num_processes=num_processes)
        try:
            log = prepared / "log"
            if attempt < 2:  # these show how long a run takes to come to its training
                assert wait_until(lambda log=log: b"/s " in log.read_bytes(), 300), log.read_text()
                seconds_to_train = max(seconds_to_train, time.monotonic() - started)
            else:
                time.sleep(generator.uniform(0.5, seconds_to_train + SECONDS_OF_TRAINING))
            assert run.poll() is None, log.read_text()
            sent = time.monotonic()
            run.send_signal(number)
            run.wait(60)
            ended = time.monotonic()
            assert wait_until(lambda: living(prepared) == [], SECONDS_TO_LEAVE), f"SOAK_SEED={seed}, attempt {attempt}"
            slowest = max(slowest, time.monotonic() - sent)
            assert time.monotonic() - ended <= SECONDS_TO_LEAVE
        finally:
            for process in living(prepared):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            run.wait()
    saved = len(list((prepared / "storage" / "reward_model" / ".training").glob("*/checkpoints/step-*")))
    assert saved > 0
    assert not (prepared / "storage" / "reward_model" / "latest.json").exists()
    with capfd.disabled():
        print(f"\nSOAK_SEED={seed}: 10 runs stopped, the slowest left nothing after {slowest:.1f} s", flush=True)
