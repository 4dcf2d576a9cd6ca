"""Runs a job that was sent to this machine at a URI, on copies of its files on this machine's disk.

Each finished checkpoint is uploaded at once, and the result at the end, its manifest last. No torch here.
"""

import contextlib
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

from rm_assets.addresses import mask_credentials, require_no_credentials
from rm_assets.data.storage.files import StorageError, remove_tree, resolve_path, subdirectories
from rm_assets.data.storage.writing import download, upload
from rm_assets.display_text import one_line
from rm_assets.training.jobs.result import CHECKPOINTS, SCRATCH
from rm_assets.training.jobs.transport import CHECKPOINT, copier, copy_from_storage, read_job
from rm_assets.training.processes.children import start_child
from rm_assets.training.processes.signals import STOP_SIGNALS, exit_stopped

MODULE = "rm_assets.training"
SECONDS_BETWEEN_UPLOADS = 2.0


def run_sent_job(uri: str) -> int:
    """Run `python -m rm_assets.training` on copies of the files that a job at a URI reads; returns its exit code.

    SIGTERM and SIGINT are passed on once; what the job has saved by then is uploaded.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: exit_stopped(number))
    try:
        require_no_credentials("the address of a job", uri)
        job = read_job(uri)
        output = resolve_path(job.output_directory)
    except (StorageError, OSError, ValueError) as error:
        print(f"error: cannot read the job {mask_credentials(uri)!r}: {one_line(error)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="rm_assets_job_") as name:
        directory = Path(name)
        working = directory / "output"
        working.mkdir()
        copy_from_storage(output / CHECKPOINTS, working / CHECKPOINTS)
        receive = copier(directory / "inputs", lambda name: "://" in name, copy_from_storage, download)
        local = job.with_paths(receive, str(working))
        (directory / "job.json").write_text(local.model_dump_json())
        return _run_and_upload([sys.executable, "-m", MODULE, str(directory / "job.json")], working, output)


def _run_and_upload(command: list[str], working: Path, output: Path) -> int:
    uploaded: dict[str, bool] = {}
    with start_child(command) as process:

        def pass_on(number: int, _: FrameType | None) -> None:
            process.send_signal(number)
            signal.signal(number, signal.SIG_IGN)

        for number in STOP_SIGNALS:
            signal.signal(number, pass_on)
        while process.poll() is None:
            try:
                _upload_checkpoints(working, output, uploaded)
            except FileNotFoundError:
                pass  # removed by the job, which has written a newer one
            except (StorageError, OSError) as error:  # not a reason to lose the training
                print(f"a checkpoint is not uploaded yet: {one_line(error)}", flush=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_BETWEEN_UPLOADS)
    _upload_result(working, output, uploaded)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _upload_checkpoints(working: Path, output: Path, uploaded: dict[str, bool]) -> None:
    """Upload new checkpoints, remove those that the job removed; `uploaded`: name -> whether its upload is complete."""
    names = {name for name in subdirectories(working / CHECKPOINTS) if name.startswith(CHECKPOINT)}
    for name in sorted(names):
        if not uploaded.get(name):
            uploaded[name] = False
            upload(working / CHECKPOINTS / name, output / CHECKPOINTS / name)
            uploaded[name] = True
    for name in sorted(uploaded.keys() - names):
        remove_tree(output / CHECKPOINTS / name)
        del uploaded[name]


def _upload_result(working: Path, output: Path, uploaded: dict[str, bool]) -> None:
    remove_tree(working / SCRATCH)
    _upload_checkpoints(working, output, uploaded)
    remove_tree(working / CHECKPOINTS)
    upload(working, output)
