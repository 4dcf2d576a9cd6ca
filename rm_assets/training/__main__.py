"""Trains a reward model: `python -m rm_assets.training JOB.json`, also as what torchrun starts.

The file may be at a URI, as a job sent to another machine is. Exit codes: `jobs.entry`. The work: `run.py`.
"""

import os
import sys

from rm_assets.training.jobs.entry import Log, run_job_file
from rm_assets.training.jobs.training_job import TrainingJob
from rm_assets.training.processes.signals import Stop


def main(arguments: list[str]) -> int:
    """Run the job described by the one argument; returns the exit code."""
    return run_job_file(arguments, "rm_assets.training", TrainingJob, train)


def train(job: TrainingJob, log: Log, stop: Stop) -> None:
    """Train as the process, or the rank, that this is."""
    log("loading torch")
    # only here, because torch takes seconds to import and the outer process of several needs none of it
    from rm_assets.training.run import run

    run(job, log, stop)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    if code:
        # at once: a failed process must not wait in its clean-up for others that no longer answer
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
