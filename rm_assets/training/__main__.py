"""The entry: `python -m rm_assets.training JOB.json`, or torchrun with `-m rm_assets.training JOB.json`.

The file may be at a URI, as a job sent to another machine is.

Exit codes: 0 done, 1 failed (the reason is on stderr and in `error.txt` of the output directory), 2 no usable
job file, 143 and 130 stopped by SIGTERM and SIGINT, after a checkpoint if it was training.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from rm_assets.addresses import masked
from rm_assets.display_text import one_line, printable
from rm_assets.training.jobs.result import ERROR, METRICS, ForeignOutputError, clear_output
from rm_assets.training.jobs.training_job import TrainingError, TrainingJob
from rm_assets.training.jobs.transport import run_sent_job
from rm_assets.training.loop.progress import Progress
from rm_assets.training.processes import lifecycle

try:
    import dagster_pipes
except ImportError:  # the job runs where no Dagster is installed
    dagster_pipes = None  # type: ignore[assignment]


def main(arguments: list[str]) -> int:
    """Run the job described by the one argument; returns the exit code."""
    lifecycle.die_with_launcher()
    lifecycle.let_memory_grow(os.environ)
    if lifecycle.is_worker():
        lifecycle.die_with_parent()
    if len(arguments) != 1:
        print("usage: python -m rm_assets.training JOB.json", file=sys.stderr)
        return 2
    if "://" in arguments[0]:
        return run_sent_job(arguments[0], "rm_assets.training", TrainingJob)
    path = Path(arguments[0])
    try:
        job = TrainingJob.read(path)
    except (OSError, ValueError) as error:  # also of text that is no UTF-8
        print(f"error: cannot read the training job {str(path)!r}: {one_line(error)}", file=sys.stderr)
        return 2
    if job.settings.num_processes > 1 and not lifecycle.is_worker():
        return lifecycle.run_workers(path, job.settings.num_processes)
    stop = lifecycle.Stop()
    lifecycle.listen_for_signals(stop)
    return work(job, stop)


def work(job: TrainingJob, stop: lifecycle.Stop | None = None) -> int:
    """Run the job as the process, or the rank, that this is; returns the exit code."""
    pipes = _open_pipes() if lifecycle.is_first_worker() else None
    try:
        return _run(job, pipes, stop)
    except ForeignOutputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except TrainingError as error:
        return _failed(job, str(error))
    except Exception as error:
        traceback.print_exc()
        return _failed(job, masked(f"{type(error).__name__}: {error}"))
    finally:
        if pipes is not None:
            pipes.close()  # without the error, whose text may be longer than a Pipes message should be


def _run(job: TrainingJob, pipes: Any, stop: lifecycle.Stop | None) -> int:
    # only here, because torch takes seconds to import and the outer process of several needs none of it
    import transformers

    from rm_assets.training.loop.group import join_group, leave_group
    from rm_assets.training.loop.tracking import open_tracker
    from rm_assets.training.loop.trainer import TrainingStoppedError
    from rm_assets.training.run import run_job

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    group = join_group()
    progress = Progress()
    if group.is_first:
        clear_output(Path(job.output_directory))
        output = Path(job.output_directory)
        track = open_tracker(job.settings, output, job.key[:16], job.settings.decisive())
        progress = Progress(output / METRICS, lambda text: _say(text, pipes), track)
    try:
        run_job(job, group, progress, stop)
    except TrainingStoppedError as stopped:
        return 128 + stopped.number
    leave_group()
    return 0


def _open_pipes() -> Any:
    if dagster_pipes is None or "DAGSTER_PIPES_CONTEXT" not in os.environ:
        return None
    return dagster_pipes.open_dagster_pipes()


def _say(text: str, pipes: Any) -> None:
    text = printable(text)
    print(text, flush=True)
    if pipes is not None:
        pipes.log.info(text)


def _failed(job: TrainingJob, reason: str) -> int:
    rank = f"process {os.environ['RANK']}: " if lifecycle.is_worker() else ""
    reason = one_line(reason)
    print(f"error: {rank}{reason}", file=sys.stderr)
    directory = Path(job.output_directory)
    if directory.is_dir():
        (directory / ERROR).write_text(reason + "\n", encoding="utf-8")
    return 1


if __name__ == "__main__":
    code = main(sys.argv[1:])
    if code:
        # at once: a failed process must not wait in its clean-up for others that no longer answer
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
