"""Real runs that are cancelled or killed: no process, no lock and no wrong state is left, and the next run goes on.

`pytest -m soak` stops runs in every way at every kind of moment, three times each, and then at 30 random moments. The
seed is drawn and printed; SOAK_SEED repeats one.
"""

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

import pytest
from postgresql import instance_on_postgresql
from real_runs import (
    DATA,
    ROOT,
    SECONDS_TO_LEAVE,
    SECONDS_TO_START,
    TRAINING,
    Services,
    Site,
    services,
    wait_until,
)

from rm_assets.defs.runs.dead_runs import records_directory

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes by /proc")
SECONDS_TO_BE_ENDED = 90  # of a killed run, by the daemon
GOES_ON = "resumes after step"
SIGNALS = {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM, "kill": signal.SIGKILL}
WAYS = ["cancel", *SIGNALS, "kill the job", "kill torchrun"]
ENDED = ("SUCCESS", "FAILURE", "CANCELED")
OWN = (ROOT / "dagster.yaml").read_text()


class Run:
    """A run of reward_model, of the command line or, where there is a UI, of its code server."""

    def __init__(
        self, site: Site, ui: Services | None = None, num_processes: int = 1, selection: str = "reward_model"
    ) -> None:
        self.site, self.ui, self._before = site, ui, site.living()
        self._runs, self._checkpoints = site.run_ids(), site.checkpoints()
        self.command: subprocess.Popen[bytes] | None = None
        self._run_id: str | None = None
        if ui is None:
            self.command = site.materialize(selection, num_processes=num_processes)
        else:
            self._run_id = ui.launch("reward_model", num_processes=num_processes)

    @property
    def run_id(self) -> str | None:
        """None until the command line has made a run."""
        if self._run_id is None:
            [self._run_id] = self.site.run_ids() - self._runs or [None]
        return self._run_id

    def state(self) -> str:
        return self.site.status(self.run_id) if self.run_id else ""

    def process(self) -> int | None:
        """The process that runs the run; None before it began."""
        if self.command is not None:
            return self.command.pid
        with self.site.instance() as instance:
            record = records_directory(instance) / str(self.run_id)
        return int(json.loads(record.read_text())["process"]) if record.is_file() else None

    def left(self) -> set[int]:
        """Its processes that live, whoever their parents are."""
        if self.command is not None:
            self.command.poll()
        return self.site.living() - self._before

    def has_saved(self) -> bool:
        return bool(set(self.site.checkpoints()) - set(self._checkpoints))

    def wait_for(self, phase: str) -> None:
        """Wait for the first moment of a phase of the training job."""
        begun: dict[str, Callable[[], object]] = {
            "importing": self.site.job_processes,
            "training": self.has_saved,
            "saving": lambda: list(self.site.training.glob("*/checkpoints/.unfinished")),
        }
        assert wait_until(begun[phase], SECONDS_TO_START, 0.001 if phase == "saving" else 0.05), (
            self.site.log.read_text()
        )

    def stop(self, way: str) -> None:
        """Stop it, if it is not over."""
        with contextlib.suppress(ProcessLookupError, IndexError):
            if way == "cancel":
                assert self.run_id is not None
                self._cancel(self.run_id)
            elif way in SIGNALS:
                process = self.process()
                assert process is not None, f"the run is {self.state()!r}, and has no process"
                os.kill(process, SIGNALS[way])
            else:
                os.kill(self.site.job_processes()[0 if way == "kill the job" else 1], signal.SIGKILL)

    def _cancel(self, run_id: str) -> None:
        ui = self.ui
        if ui is not None:  # Dagster refuses to cancel a run that is starting: ask again, as a user would
            accepted = wait_until(
                lambda: ui.terminate(run_id)["__typename"] == "TerminateRunSuccess" or self.state() in ENDED,
                SECONDS_TO_START,
            )
            assert accepted, self.state()
        else:
            with self.site.instance() as instance:  # as the UI does, which reaches no code server
                assert not instance.run_launcher.terminate(run_id)

    def leaves_nothing(self) -> None:
        assert wait_until(lambda: not self.left(), SECONDS_TO_LEAVE), self.left()
        assert self.site.held_locks() == []

    def end(self) -> None:
        for number in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        if self.command is not None:
            self.command.wait()


@contextlib.contextmanager
def started(
    site: Site, ui: Services | None = None, num_processes: int = 1, selection: str = "reward_model"
) -> Iterator[Run]:
    run = Run(site, ui, num_processes, selection)
    try:
        yield run
    finally:
        run.end()


def finish(site: Site, num_processes: int = 1, selection: str = "reward_model") -> tuple[str, bool]:
    """Run reward_model to its end by the command line: the model, and whether it went on from a checkpoint."""
    with started(site, num_processes=num_processes, selection=selection) as run:
        assert run.command is not None
        assert run.command.wait() == 0, site.log.read_text()
        assert run.run_id is not None and run.state() == "SUCCESS"
        return site.model(), GOES_ON in site.messages(run.run_id)


def undisturbed(site: Site, num_processes: int = 1, selection: str = "reward_model") -> str:
    """The model of a training that nothing stops, which is then forgotten."""
    model, _ = finish(site, num_processes, selection)
    shutil.rmtree(site.storage / "reward_model")
    return model


@dataclass
class Stage:
    """A running `dagster dev` with its pairs, on which one run after the other is stopped and gone on with."""

    site: Site
    ui: Services
    generator: random.Random
    seed: int
    expected: dict[int, str]
    seconds: dict[int, float]  # of an undisturbed run
    say: Callable[[str], object]

    def stop_one(self, way: str, num_processes: int, in_ui: bool, wait: Callable[[Run], object]) -> None:
        """Stop a run, look at what it left, and finish it."""
        shutil.rmtree(self.site.storage / "reward_model", ignore_errors=True)
        told = f"SOAK_SEED={self.seed}: {way}, {num_processes} processes, {'UI' if in_ui else 'command line'}"
        with started(self.site, self.ui if in_ui else None, num_processes) as run:
            wait(run)
            if way in ("kill the job", "kill torchrun"):
                wanted = 1 if way == "kill the job" else 2
                has_come = wait_until(
                    lambda: len(self.site.job_processes()) >= wanted or self.is_over(run), SECONDS_TO_START
                )
            else:
                has_come = way == "cancel" or wait_until(
                    lambda: run.process() is not None or self.is_over(run), SECONDS_TO_START
                )
            assert has_come, (told, run.state())
            was_over, sent = self.is_over(run), time.monotonic()
            if not was_over:
                run.stop(way)
            run.leaves_nothing()
            left_after = time.monotonic() - sent
            assert wait_until(lambda: self.is_over(run), SECONDS_TO_BE_ENDED), (told, run.state())
            state, has_saved = run.state(), run.has_saved()
            ended_after = time.monotonic() - sent
        has_model = (self.site.storage / "reward_model" / "latest.json").exists()
        self.say(f"{told}: {state or 'no run'}, nothing left after {left_after:.1f} s, ended after {ended_after:.1f} s")
        if state == "SUCCESS":
            assert has_model, told
        elif not was_over:
            assert state in (["CANCELED"] if way == "cancel" else ["FAILURE", "NOT_STARTED", ""]), told
        assert finish(self.site, num_processes) == (self.expected[num_processes], has_saved and not has_model), told

    @staticmethod
    def is_over(run: Run) -> bool:
        """A command that was stopped before it began its run leaves none, or one that is not started."""
        if run.command is not None and run.command.poll() is not None and run.state() in ("", "NOT_STARTED"):
            return True
        return run.state() in ENDED


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    seed = int(os.environ.get("SOAK_SEED", secrets.randbelow(2**32)))
    site = Site(tmp_path_factory.mktemp("stage"))
    with services(site) as ui, (site.directory / "said").open("w") as said:
        assert wait_for_end(site, ui.launch(*DATA)) == "SUCCESS"
        expected, seconds = {}, {}
        for num_processes in (1, 2):
            begun = time.monotonic()
            expected[num_processes] = undisturbed(site, num_processes)
            seconds[num_processes] = time.monotonic() - begun

        def say(text: str) -> None:
            print(text, file=said, flush=True)
            print(text, flush=True)

        yield Stage(site, ui, random.Random(seed), seed, expected, seconds, say)


def wait_for_end(site: Site, run_id: str) -> str:
    assert wait_until(lambda: site.status(run_id) in ENDED, 10 * SECONDS_TO_START, 0.5), site.status(run_id)
    return site.status(run_id)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, settings=TRAINING | {"epochs": 40})  # each run goes on where the last one was stopped
    yield site
    site.kill_everything()


@pytest.mark.soak
def test_after_each_signal_the_next_run_goes_on_to_the_model_of_an_undisturbed_one(site: Site) -> None:
    """A cancelled and a killed run. Shorter forms stand elsewhere, and are always run.

    SIGINT is sent in test_command_line, SIGTERM in test_launcher_kubernetes, and SIGKILL to the job in
    test_stopped_training. The soak runs have every way at every kind of moment.
    """
    expected = undisturbed(site, selection="*reward_model")  # the pairs, too, so that the others are all training
    killed = None
    for way in ("kill", "cancel"):
        with started(site) as run:
            assert run.command is not None
            run.wait_for("training")
            run.stop(way)
            run.leaves_nothing()
            assert run.command.wait() != 0
            assert run.run_id is not None
            if killed is not None:
                assert site.status(killed) == "FAILURE"
                assert "ended without a report" in site.messages(killed)
            killed = run.run_id if way == "kill" else None
            assert run.state() == {"cancel": "CANCELED", "kill": "STARTED"}[way]
        assert not (site.storage / "reward_model" / "latest.json").exists()
    assert finish(site) == (expected, True)


@pytest.fixture(params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A site whose trainings take turns by a pool: the project's own file with one, and that of DEPLOYMENT.md."""
    if request.param == "sqlite":
        yield Site(tmp_path, instance_file=f"{OWN}concurrency: {{pools: {{default_limit: 1, granularity: run}}}}\n")
    else:
        with instance_on_postgresql() as found:
            yield Site(tmp_path, instance_file=found)


@pytest.mark.soak
def test_trainings_take_turns_by_a_pool_and_after_a_power_cut_the_killed_one_is_failed_and_the_next_goes_on(
    shared: Site, capfd
) -> None:
    with services(shared) as ui:
        assert wait_for_end(shared, ui.launch(*DATA)) == "SUCCESS"
        expected = undisturbed(shared)
        cancelled, killed = Run(shared, ui), Run(shared, ui)
        cancelled.wait_for("training")
        assert (cancelled.state(), killed.state()) == ("STARTED", "QUEUED")
        cancelled.stop("cancel")
        assert wait_until(lambda: cancelled.state() == "CANCELED", SECONDS_TO_LEAVE)
        assert wait_until(lambda: GOES_ON in shared.messages(str(killed.run_id)), SECONDS_TO_START)
        waiting = ui.launch("reward_model")
        shared.kill_everything()
    assert (killed.state(), shared.status(waiting), shared.held_locks()) == ("STARTED", "QUEUED", [])
    restarted = time.monotonic()
    with services(shared):
        assert wait_until(lambda: killed.state() == "FAILURE", SECONDS_TO_BE_ENDED)
        seconds = time.monotonic() - restarted
        assert wait_for_end(shared, waiting) == "SUCCESS"
    assert "ended without a report" in shared.messages(str(killed.run_id))
    assert GOES_ON in shared.messages(waiting)
    assert shared.model() == expected
    with capfd.disabled():
        print(f"\nthe killed run was ended {seconds:.1f} s after the start of `dagster dev`", flush=True)


@pytest.mark.soak
def test_a_run_goes_on_without_its_code_server_and_hears_that_it_is_cancelled(tmp_path: Path) -> None:
    site = Site(tmp_path, settings={**TRAINING, "epochs": 10_000})
    with services(site) as ui:
        assert wait_for_end(site, ui.launch(*DATA)) == "SUCCESS"
        run = Run(site, ui)
        run.wait_for("training")
        process = run.process()
        assert process is not None and run.run_id is not None
        server = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(server, signal.SIGKILL)
        saved = len(site.checkpoints())
        assert wait_until(lambda: len(site.checkpoints()) > saved, SECONDS_TO_LEAVE)
        with contextlib.suppress(HTTPError):  # the button says that it reaches no server
            ui.terminate(run.run_id)
        assert wait_until(lambda: run.state() == "CANCELED", SECONDS_TO_LEAVE), run.state()
        assert wait_until(lambda: not Path(f"/proc/{process}").exists() and not site.job_processes(), SECONDS_TO_LEAVE)
        assert site.held_locks() == []


@pytest.mark.soak
def test_after_a_power_cut_a_run_that_was_being_started_is_failed_by_dagsters_monitoring(tmp_path: Path) -> None:
    site = Site(tmp_path, instance_file=OWN.replace("start_timeout_seconds: 300", "start_timeout_seconds: 20"))
    with services(site) as ui:
        run_id = ui.launch("raw_preferences")
        assert wait_until(lambda: site.status(run_id) == "STARTING", SECONDS_TO_START, 0.01)
        site.kill_everything()
    assert site.status(run_id) == "STARTING"
    with services(site):
        assert wait_until(lambda: site.status(run_id) == "FAILURE", SECONDS_TO_BE_ENDED)
    assert "longer than 20 seconds to start" in site.messages(run_id)


@pytest.mark.soak
def test_a_run_longer_than_its_tag_allows_is_stopped_and_failed(tmp_path: Path) -> None:
    site = Site(tmp_path, settings={**TRAINING, "epochs": 10_000})
    with services(site) as ui:
        assert wait_for_end(site, ui.launch(*DATA)) == "SUCCESS"
        before = site.living()
        run_id = ui.launch("reward_model", tags={"dagster/max_runtime": "10"})
        assert wait_for_end(site, run_id) == "FAILURE"
        assert "Exceeded maximum runtime of 10 seconds" in site.messages(run_id)
        assert wait_until(lambda: not site.living() - before, SECONDS_TO_LEAVE)
        assert (site.held_locks(), bool(site.checkpoints())) == ([], True)


@pytest.mark.soak
@pytest.mark.parametrize("phase", ["importing", "training", "saving"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_at_every_kind_of_moment_three_times(stage: Stage, way: str, phase: str) -> None:
    for attempt in range(3):
        in_ui = way == "cancel" or attempt == 2
        stage.stop_one(way, 2 if way == "kill torchrun" else 1 + attempt % 2, in_ui, lambda run: run.wait_for(phase))


@pytest.mark.soak
def test_thirty_random_moments(stage: Stage) -> None:
    for _ in range(30):
        way = stage.generator.choice(WAYS)
        num_processes = 2 if way == "kill torchrun" else stage.generator.choice([1, 2])
        in_ui = way == "cancel" or stage.generator.random() < 0.5
        seconds = stage.generator.uniform(0, stage.seconds[num_processes])
        stage.stop_one(way, num_processes, in_ui, lambda run, seconds=seconds: time.sleep(seconds))
