"""Jobs that run on another machine: what they read is sent to the storage, what they write comes back from there.

`<storage>/.jobs/<name>/<attempt>/` holds `job.json`, `inputs/` and `output/`: each attempt removes its own directory,
and those that stood there before it. What lies in a storage that both machines see as a directory is left where it is.
Where the storage is at a URI, so is `job.json`: the other machine works on copies on its own disk, and uploads each
finished checkpoint at once and the result at the end, its manifest last. No torch here.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rm_assets.addresses import masked, require_no_credentials
from rm_assets.data.storage.files import (
    StorageError,
    create_file,
    download,
    file_sizes,
    is_remote,
    read_file,
    remove_directories,
    remove_files,
    remove_tree,
    resolve_path,
    subdirectories,
    upload,
    write_json,
)
from rm_assets.display_text import one_line
from rm_assets.training.jobs.result import CHECKPOINTS, MANIFEST, SCRATCH
from rm_assets.training.jobs.scoring_job import ScoringJob
from rm_assets.training.jobs.training_job import TrainingJob
from rm_assets.training.processes.lifecycle import PARENT_FD, STOP_SIGNALS, leave

JOBS = ".jobs"
CHECKPOINT = "step-"
"""What the names of finished checkpoints begin with."""

_ATTEMPT = re.compile(r"[0-9a-f]{32}")
SECONDS_BETWEEN_UPLOADS = 2.0
Job = TrainingJob | ScoringJob


@dataclass(frozen=True)
class SentJob:
    """A job as the other machine finds it: `name` tells it from others, `place` is its `job.json`."""

    name: str
    place: Path
    output: Path


@contextlib.contextmanager
def sent_job(job: Job, storage: Path, name: str) -> Iterator[SentJob]:
    """The job in the storage meanwhile; afterwards, however it ended, what it wrote is where the job says.

    Checkpoints that earlier attempts left in the storage are brought back first, and sent again.
    """
    home = storage / JOBS / name / uuid.uuid4().hex
    earlier = [home.parent / attempt for attempt in subdirectories(home.parent) if _ATTEMPT.fullmatch(attempt)]
    output = _directory_seen(Path(job.output_directory), storage) or home / "output"
    brought_back = output.parent == home
    if brought_back:
        for attempt in earlier:
            _copy(attempt / "output" / CHECKPOINTS, Path(job.output_directory) / CHECKPOINTS)
    for attempt in earlier:
        _remove_attempt(attempt)
    if brought_back:
        _send_checkpoints(Path(job.output_directory), output)
    sent = job.moved(_Sender(storage, home / "inputs"), str(output))
    write_json(home / "job.json", sent.model_dump(mode="json"))
    try:
        yield SentJob(name=name, place=home / "job.json", output=output)
    finally:
        if brought_back:
            with contextlib.suppress(FileNotFoundError):  # removed by a later attempt, which has taken it over
                _copy(output, Path(job.output_directory))
        _remove_attempt(home)
        if not is_remote(storage):
            with contextlib.suppress(OSError):  # a later attempt is there
                home.parent.rmdir()


def _remove_attempt(home: Path) -> None:
    remove_files([home / "job.json"])
    remove_tree(home / "inputs")
    remove_tree(home / "output")
    remove_directories([home])


class _Sender:
    """Copies each file or directory that the job reads to the storage, unless it is there; gives its path there."""

    def __init__(self, storage: Path, home: Path) -> None:
        self._storage = storage
        self._home = home
        self._sent: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        origin = Path(name)
        if "://" in name or not origin.exists():  # at a URI, or a name on the Hub
            return name
        if _directory_seen(origin, self._storage):
            return name
        if name not in self._sent:
            target = self._home / str(len(self._sent))
            if origin.is_dir():
                upload(origin, target)
                self._sent[name] = str(target)
            else:
                self._sent[name] = str(_sent_file(origin, target / origin.name))
        return self._sent[name]


def _directory_seen(path: Path, storage: Path) -> Path | None:
    """A path that the other machine sees, as it lies in a shared directory."""
    if not is_remote(storage) and path.resolve().is_relative_to(storage.resolve()):
        return path.resolve()
    return None


def _sent_file(origin: Path, target: Path) -> Path:
    with origin.open("rb") as source, create_file(target) as stream:
        while block := source.read(2**20):
            stream.write(block)
    return target


def _send_checkpoints(directory: Path, output: Path) -> None:
    for name in subdirectories(directory / CHECKPOINTS):
        if name.startswith(CHECKPOINT):
            upload(directory / CHECKPOINTS / name, output / CHECKPOINTS / name)


def _copy(origin: Path, target: Path) -> None:
    """Every file of a directory of the storage, in a directory of this machine; the manifest last.

    Of a checkpoint, which its content names, files that are there stay as they are.
    """
    for name in sorted(file_sizes(origin), key=lambda name: name == MANIFEST):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if not any(part.startswith(CHECKPOINT) for part in name.split("/")):
            (target / name).unlink(missing_ok=True)
        download(origin / name, target / name)


# --- on the other machine ------------------------------------------------------------------------------------


def run_sent_job(uri: str, module: str, job_type: type[Job]) -> int:
    """Run `python -m <module>` on copies of what a job at a URI reads; returns its exit code.

    SIGTERM and SIGINT are passed on once; what the job has saved by then is uploaded.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: leave(number))
    try:
        require_no_credentials("the address of a job", uri)
        job = job_type.model_validate_json(read_file(resolve_path(uri)))
        output = resolve_path(job.output_directory)
    except (StorageError, OSError, ValueError) as error:
        print(f"error: cannot read the job {masked(uri)!r}: {one_line(error)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="rm_assets_job_") as name:
        directory = Path(name)
        working = directory / "output"
        working.mkdir()
        _copy(output / CHECKPOINTS, working / CHECKPOINTS)
        local = job.moved(_Receiver(directory / "inputs"), str(working))
        (directory / "job.json").write_text(local.model_dump_json())
        return _run_and_upload([sys.executable, "-m", module, str(directory / "job.json")], working, output)


class _Receiver:
    """Copies each file or directory at a URI to this machine; gives its path here."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._received: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        if "://" not in name:
            return name
        if name not in self._received:
            origin, target = resolve_path(name), self._home / str(len(self._received))
            target.mkdir(parents=True)
            if origin.is_dir():
                _copy(origin, target)
            else:
                target /= origin.name
                download(origin, target)
            self._received[name] = str(target)
        return self._received[name]


def _run_and_upload(command: list[str], working: Path, output: Path) -> int:
    read_end, write_end = os.pipe()  # the job ends with this process, as it does with a launcher
    process = subprocess.Popen(
        command, start_new_session=True, pass_fds=(read_end,), env=os.environ | {PARENT_FD: str(read_end)}
    )

    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(number)
        signal.signal(number, signal.SIG_IGN)

    for number in STOP_SIGNALS:
        signal.signal(number, pass_on)
    uploaded: dict[str, bool] = {}
    try:
        while process.poll() is None:
            try:
                _upload_checkpoints(working, output, uploaded)
            except FileNotFoundError:
                pass  # removed by the job, which has written a newer one
            except (StorageError, OSError) as error:  # no reason to lose a training that goes on
                print(f"a checkpoint is not uploaded yet: {one_line(error)}", flush=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_BETWEEN_UPLOADS)
    finally:
        os.close(write_end)
        os.close(read_end)
    _upload_result(working, output, uploaded)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _upload_checkpoints(working: Path, output: Path, uploaded: dict[str, bool]) -> None:
    """Have the finished checkpoints in the storage, and no others; `uploaded`: whether whole, of each that is there."""
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


def read_job(path: str) -> Job:
    """The job of either kind that a file describes."""
    described = json.loads(read_file(resolve_path(path)))
    return (TrainingJob if "splits" in described else ScoringJob).model_validate(described)
