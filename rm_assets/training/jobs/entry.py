"""What every job does around its work: read its file, listen for signals, log to Dagster, and end with an exit code.

Exit codes: 0 done; 1 failed (the reason is on stderr and in `error.txt` of the output directory); 2 the job file is not
readable; 143 and 130 stopped by SIGTERM and SIGINT, after a checkpoint if it was training. No torch here.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rm_assets.addresses import mask_credentials
from rm_assets.data.storage.files import StorageError
from rm_assets.data.storage.snapshots import SnapshotError
from rm_assets.display_text import one_line, printable
from rm_assets.settings import SettingsError
from rm_assets.training.jobs.heartbeat import Heartbeat
from rm_assets.training.jobs.receiving import run_sent_job
from rm_assets.training.jobs.result import ERROR, ForeignOutputError
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.jobs.transport import Job, read_job
from rm_assets.training.processes import children
from rm_assets.training.processes.signals import Stop, StoppedError, listen_for_signals

Log = Callable[[str], object]
"""Shows a line to the user: in Dagster, and on stdout where no Dagster listens."""
Work = Callable[[Job, Log, Stop], None]


def run_job_file(arguments: list[str], work: Work) -> int:
    """Run the job whose file, or URI, is the one argument of `python -m rm_assets.training`; returns the exit code."""
    children.die_with_launcher()
    children.use_expandable_segments(os.environ)
    if children.is_worker():
        children.die_with_parent()
    if len(arguments) != 1:
        print("usage: python -m rm_assets.training JOB.json", file=sys.stderr)
        return 2
    if "://" in arguments[0]:
        return run_sent_job(arguments[0])
    try:
        job = read_job(arguments[0])
    except (StorageError, OSError, ValueError) as error:  # ValueError: also for bytes that are not UTF-8
        print(f"error: cannot read the job {arguments[0]!r}: {one_line(error)}", file=sys.stderr)
        return 2
    if job.num_processes > 1 and not children.is_worker():
        return children.run_workers(Path(arguments[0]), job.num_processes)
    stop = Stop()
    listen_for_signals(stop)
    return execute_job(job, work, stop)


def execute_job(job: Job, work: Work, stop: Stop | None = None) -> int:
    """Do a job's work in this process, which may be one worker of several; returns the exit code."""
    is_first = children.is_first_worker()
    pipes = _open_pipes() if is_first else None

    def show(text: str) -> None:
        if pipes is not None:
            pipes.log.info(printable(text))  # which Dagster prints, too
        elif is_first:
            print(printable(text), flush=True)

    try:
        with Heartbeat(show) as log:
            work(job, log, stop or Stop())
    except StoppedError as stopped:
        return 128 + stopped.number
    except ForeignOutputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except (TrainingError, SettingsError, SnapshotError) as error:
        return _fail(job, str(error))
    except Exception as error:
        traceback.print_exc()
        return _fail(job, mask_credentials(f"{type(error).__name__}: {error}"))
    finally:
        if pipes is not None:
            pipes.close()  # without the error, whose text may be longer than a Pipes message should be
    return 0


def _open_pipes() -> Any:
    if "DAGSTER_PIPES_CONTEXT" in os.environ:
        with contextlib.suppress(ImportError):  # the job runs where no Dagster is installed
            import dagster_pipes

            return dagster_pipes.open_dagster_pipes()
    return None


def _fail(job: Job, reason: str) -> int:
    rank = f"process {os.environ['RANK']}: " if children.is_worker() else ""
    reason = one_line(reason)
    print(f"error: {rank}{reason}", file=sys.stderr)
    directory = Path(job.output_directory)
    if directory.is_dir():
        (directory / ERROR).write_text(reason + "\n", encoding="utf-8")
    return 1
