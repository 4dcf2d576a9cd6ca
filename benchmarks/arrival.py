"""How long arrival takes with many small files: a tick of the sensor, a first refresh, and one with a single new file.

    python benchmarks/arrival.py                       # 10,000 files of two pairs each; a few minutes
    python benchmarks/arrival.py --files 1000

Ticks are the sensor's function, called as the daemon calls it, in one process. Refreshes are `dagster job execute` of
refresh_data, a process each, start included; the job of one empty op is what Dagster itself takes of that, in one
process as well: by default it would start another one for the op.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from rm_assets.defs.automation.arrival import new_annotations
from rm_assets.defs.project import ProjectResource

WORDS = ["river", "stone", "cloud", "garden", "window", "paper", "music", "number", "winter"]
PAIRS_PER_FILE, FILES_PER_DIRECTORY = 2, 100
LONG_AGO = 1_600_000_000
EMPTY_JOB = """
import dagster as dg

@dg.op
def nothing(): ...

@dg.job(executor_def=dg.in_process_executor)
def refresh_data(): nothing()

definitions = dg.Definitions(jobs=[refresh_data])
"""


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="annotation files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(f"| {arguments.files:,} files, {PAIRS_PER_FILE * arguments.files:,} pairs | seconds | CPU seconds |")
        print("|---|---|---|")
        for what, (seconds, of_cpus) in measured(Path(name), arguments.files):
            print(f"| {what} | {seconds:.1f} | {of_cpus:.1f} |", flush=True)


Seconds = tuple[float, float]
"""Those of a clock, and those of processors, which other work on the machine hardly changes."""


def seconds_now() -> Seconds:
    """The present time, and what this process and those that it waited for have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used)


def seconds_since(start: Seconds) -> Seconds:
    """What passed since then."""
    now = seconds_now()
    return now[0] - start[0], now[1] - start[1]


def measured(directory: Path, num_files: int) -> Iterator[tuple[str, Seconds]]:
    """What was done, and the seconds it took."""
    annotations, storage = directory / "annotations", directory / "storage"
    for number in range(num_files):
        write_file(annotations / f"{number // FILES_PER_DIRECTORY:04d}" / f"{number:06d}.jsonl", number)
    project = ProjectResource(annotations=str(annotations), storage=str(storage), arrival_seconds=1)
    with dg.DagsterInstance.ephemeral() as instance:
        tick = ticking(instance, project)
        yield "first tick: every file is hashed", tick("RunRequest")
        yield "first refresh", refresh(annotations, storage)
        yield "tick: nothing new", tick("nothing new")
        yield "refresh: nothing new", refresh(annotations, storage)
        write_file(annotations / "new.jsonl", num_files)
        yield "tick: one new file", tick("RunRequest")
        yield "refresh: one new file", refresh(annotations, storage)
        yield "tick: nothing new", tick("nothing new")
        empty = directory / "empty.py"
        empty.write_text(EMPTY_JOB)
        yield "a job of one empty op", refresh(annotations, storage, "-f", str(empty))


def write_file(path: Path, number: int) -> None:
    """Pairs that stand in no other file; the file looks old."""
    draw = random.Random(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(pair(draw, number)) + "\n" for _ in range(PAIRS_PER_FILE)))
    os.utime(path, (LONG_AGO, LONG_AGO))


def pair(draw: random.Random, number: int) -> dict[str, str]:
    """About 70 words."""

    def words(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    return {
        "prompt": f"Question {number}: {words(20)}?",
        "chosen": f"Gladly: {words(25)}.",
        "rejected": f"No: {words(20)}.",
    }


def ticking(instance: dg.DagsterInstance, project: Any) -> Callable[[str], Seconds]:
    """A tick that must come out as told, and its seconds."""

    def tick(expected: str) -> Seconds:
        context = dg.build_sensor_context(instance=instance, resources={"project": project})
        start = seconds_now()
        result = new_annotations(context)
        seconds = seconds_since(start)
        assert expected in repr(result), result
        return seconds

    return tick


def refresh(annotations: Path, storage: Path, *code: str) -> Seconds:
    """One run of the job, or that of other `code`, in its own process; raises CalledProcessError where it fails."""
    command = [sys.executable, "-c", "from dagster._cli import main; main()", "job", "execute"]
    given = {"RM_ANNOTATIONS": str(annotations), "RM_STORAGE": str(storage), "DAGSTER_HOME": str(storage.parent)}
    start = seconds_now()
    subprocess.run(
        [*command, *(code or ("-m", "rm_assets.definitions")), "-j", "refresh_data"],
        env={**os.environ, **given},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return seconds_since(start)


if __name__ == "__main__":
    main()
