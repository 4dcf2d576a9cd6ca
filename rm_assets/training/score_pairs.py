"""Scores pairs with a saved model: `python -m rm_assets.training.score_pairs JOB.json`.

Exit codes: `jobs.entry`. The work: `saved_model/pair_scoring.py`.
"""

import sys

from rm_assets.training.jobs.entry import Log, run_job_file
from rm_assets.training.jobs.scoring_job import ScoringJob
from rm_assets.training.processes.signals import Stop


def main(arguments: list[str]) -> int:
    """Run the job described by the one argument; returns the exit code."""
    return run_job_file(arguments, "rm_assets.training.score_pairs", ScoringJob, score)


def score(job: ScoringJob, log: Log, stop: Stop) -> None:
    """Score the pairs of the job."""
    log("loading torch")
    # only here, because torch takes seconds to import and a job that cannot be read needs none of it
    from rm_assets.training.saved_model.pair_scoring import score_pairs

    log("loading the model and scoring")
    score_pairs(job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
