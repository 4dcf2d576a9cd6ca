"""Training jobs in processes that tests may kill, forked from one that has imported everything: each starts at once."""

import hashlib
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from rm_assets.training.jobs.result import METRICS, clear_output, read_result
from rm_assets.training.jobs.training_job import TrainingJob
from rm_assets.training.loop.checkpoint import CHECKPOINTS
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.training_log import StepFigures, TrainingLog
from rm_assets.training.processes.signals import Stop, StoppedError, listen_for_signals
from rm_assets.training.run import train_and_publish

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["rm_assets.training.run", "transformers.models.llama.modeling_llama", "transformers.models.auto.tokenization_auto"]
)


@dataclass
class _KilledLog(TrainingLog):
    """Kills its own process once a step is noted, before its checkpoint: 0 never.

    It waits until the checkpoint of step `saved` is written, where one is named.
    """

    kill_after: int = 0
    saved: int = 0

    def step(self, figures: StepFigures, num_steps: int, num_pairs_done: int) -> None:
        super().step(figures, num_steps, num_pairs_done)
        if figures.step == self.kill_after:
            assert self.metrics_file is not None
            while self.saved and not [*self.metrics_file.parent.glob(f"{CHECKPOINTS}/step-{self.saved:08}-*")]:
                time.sleep(0.0002)
            os.kill(os.getpid(), signal.SIGKILL)


def start_job(job: TrainingJob, kill_after: int = 0, saved: int = 0) -> BaseProcess:
    """A process that runs the job, its messages in `said.txt` of the output directory."""
    process = _CONTEXT.Process(target=_work, args=(job.model_dump_json(), kill_after, saved))
    process.start()
    return process


def _work(description: str, kill_after: int, saved: int) -> None:
    torch.set_num_threads(1)
    stop = Stop()
    listen_for_signals(stop)
    job = TrainingJob.model_validate_json(description)
    output = Path(job.output_directory)
    clear_output(output)
    with (output / "said.txt").open("a") as said:
        progress = _KilledLog(
            output / METRICS, lambda text: print(text, file=said, flush=True), kill_after=kill_after, saved=saved
        )
        try:
            train_and_publish(job, SINGLE_PROCESS, progress, stop)
        except StoppedError as stopped:
            os._exit(128 + stopped.number)


def finish(job: TrainingJob) -> str:
    """Run the job to its end; the hash of its weights and of the curves' exact figures."""
    process = start_job(job)
    process.join()
    assert process.exitcode == 0, process.exitcode
    return trained(job)


def run(job: TrainingJob) -> Path:
    """Train here, without a second process; returns the job's output directory."""
    output = Path(job.output_directory)
    clear_output(output)
    train_and_publish(job, SINGLE_PROCESS, TrainingLog(output / METRICS, log=lambda text: None))
    return output


def trained(job: TrainingJob) -> str:
    """The hash of a finished job's weights."""
    output = Path(job.output_directory)
    read_result(output, job.key)
    assert not (output / CHECKPOINTS).exists()
    return hashlib.sha256((output / "model" / "model.safetensors").read_bytes()).hexdigest()


def kill_inside_a_save(job: TrainingJob, seconds: float, first: int = 1) -> bool:
    """Start the job and SIGKILL it some seconds after its save number `first` began; whether the save was cut short."""
    checkpoints = Path(job.output_directory) / CHECKPOINTS
    unfinished = checkpoints / ".unfinished"
    before = _newest_step(checkpoints)
    process = start_job(job)
    while _newest_step(checkpoints) < before + first - 1 and process.is_alive():
        time.sleep(0.0002)
    while not unfinished.exists() and process.is_alive():
        time.sleep(0.0002)
    time.sleep(seconds)
    process.kill()
    process.join()
    return unfinished.exists() and process.exitcode == -signal.SIGKILL


def _newest_step(checkpoints: Path) -> int:
    return max((int(path.name[5:13]) for path in checkpoints.glob("step-*")), default=0)


def said(job: TrainingJob) -> str:
    """What the job told people, in all its attempts."""
    return (Path(job.output_directory) / "said.txt").read_text()
