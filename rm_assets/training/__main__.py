"""Trains a reward model, or scores pairs with one: `python -m rm_assets.training JOB.json`, also under torchrun.

The file may be at a URI, as a job sent to another machine is. Exit codes: `jobs.entry`. The work: `run.py` trains,
`saved_model/pair_scoring.py` scores.
"""

import os
import sys

from rm_assets.training.jobs.entry import Log, run_job_file
from rm_assets.training.jobs.scoring_job import ScoringJob
from rm_assets.training.jobs.transport import Job
from rm_assets.training.processes.signals import Stop


def main(arguments: list[str]) -> int:
    """Run the job described by the one argument; returns the exit code."""
    return run_job_file(arguments, run_job)


def run_job(job: Job, log: Log, stop: Stop) -> None:
    """Train as the process, or the rank, that this is; or score."""
    log("loading torch")
    # only here, because torch takes seconds to import and the outer process of several needs none of it
    if isinstance(job, ScoringJob):
        from rm_assets.training.saved_model.pair_scoring import score_pairs

        log("loading the model")
        score_pairs(job, log)
    else:
        from rm_assets.training.run import run

        run(job, log, stop)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    if code:
        # at once: a failed process must not wait in its clean-up for others that no longer answer
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
