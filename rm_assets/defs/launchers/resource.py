"""The resource that launches training and scoring jobs, on this machine, in a pod or on a Ray cluster.

The job is the same command everywhere, `python -m rm_assets.training JOB.json`. Its result is what it leaves in the
storage, the manifest last; Dagster Pipes carries only its log.
"""

import hashlib
import shlex
import signal
import uuid
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from pydantic import Field

from rm_assets.data.storage.files import resolve_path
from rm_assets.data.storage.locks import hold_lock
from rm_assets.defs.launchers.base import JobExit, Launcher
from rm_assets.defs.launchers.kubernetes import KubernetesLauncher
from rm_assets.defs.launchers.local import LocalLauncher
from rm_assets.defs.launchers.ray_jobs import RayLauncher
from rm_assets.defs.project import Project
from rm_assets.settings import LaunchSettings, Settings, SettingsError, TrainingSettings
from rm_assets.training.jobs.result import ERROR
from rm_assets.training.jobs.training_job import TrainingJob, memory_advice
from rm_assets.training.jobs.transport import read_job, sent_job

LOCK = "training.lock"
GRACE_SECONDS, POLL_SECONDS = 30.0, 5.0
MODULE = "rm_assets.training"


class TrainingFailedError(RuntimeError):
    """The training job ended without a result."""


class TrainingLauncher(dg.ConfigurableResource):
    """Runs training and scoring jobs, on the platform that the setting `launcher` names."""

    # None in place of the default: the launchpad would fill in every field that has one
    grace_seconds: float | None = Field(
        default=None,
        description="Seconds a cancelled job on this machine has after SIGINT to save and exit before it is killed. "
        f"It exits as soon as it has saved; a checkpoint of tens of gigabytes needs more. Default: {GRACE_SECONDS:g}.",
    )
    poll_seconds: float | None = Field(
        default=None,
        description=f"Seconds between two status requests to Kubernetes or Ray. Default: {POLL_SECONDS:g}.",
    )

    def run(self, context: dg.AssetExecutionContext, job_path: Path, settings: Settings) -> None:
        """Run `python -m rm_assets.training <job>` to its end; raises TrainingFailedError unless it exits with 0.

        The caller reads the result from the manifest that the job writes last, at the paths that the job names. A job
        of several machines is started by hand: raises SettingsError with the command.
        """
        storage, job = resolve_path(settings.storage), read_job(str(job_path))
        training = getattr(job, "settings", TrainingSettings())  # a scoring job has one process
        if training.num_nodes > 1:
            raise SettingsError(_manual_instructions(job_path, training))
        launcher = self._launcher(settings.launch, training)
        (Path(job.output_directory) / ERROR).unlink(missing_ok=True)  # the reason of an earlier attempt
        if isinstance(launcher, LocalLauncher):
            # flock, not a Dagster pool: the kernel frees it when its holder is killed.
            with hold_lock(storage / LOCK, f"training of run {context.run.run_id}", context.log.info):
                job_exit = launcher.run(context, ["-m", MODULE, str(job_path)], "")
        else:
            storage = storage.absolute()
            name = _name(storage, getattr(job, "key", uuid.uuid4().hex))
            launcher.remove_leftovers(name)
            with sent_job(job, storage, name) as sent:
                job_exit = launcher.run(context, ["-m", MODULE, str(sent.place)], name)
        if job_exit.code != 0:
            advice = memory_advice(job.settings) if isinstance(job, TrainingJob) else ""
            raise TrainingFailedError(_reason(Path(job.output_directory), job_exit, advice))

    def _launcher(self, launch: LaunchSettings, training: TrainingSettings) -> Launcher:
        poll_seconds = POLL_SECONDS if self.poll_seconds is None else self.poll_seconds
        if launch.launcher == "kubernetes":
            return KubernetesLauncher(launch, training.num_processes, poll_seconds)
        if launch.launcher == "ray":
            return RayLauncher(launch, training.num_processes, poll_seconds)
        return LocalLauncher(GRACE_SECONDS if self.grace_seconds is None else self.grace_seconds)


def _manual_instructions(job_path: Path, training: TrainingSettings) -> str:
    last = training.num_nodes - 1
    return (
        f"num_nodes is {training.num_nodes!r}: start the training on each machine, with its number from 0 to {last} as "
        f"NODE and the first machine's address as HOST, then materialize again, which publishes the model: torchrun "
        f"--nnodes={training.num_nodes} --nproc-per-node={training.num_processes} --node-rank=NODE --master-addr=HOST "
        f"--master-port=29500 -m rm_assets.training {shlex.quote(str(job_path.absolute()))}"
    )


@dataclass(frozen=True)
class AssetRun:
    """The run of one asset that launches jobs: its project, where it logs, and how it launches."""

    project: Project
    context: dg.AssetExecutionContext
    launcher: TrainingLauncher

    @property
    def log(self) -> dg.DagsterLogManager:
        return self.context.log

    def launch(self, job_path: Path) -> None:
        """Run a job to its end, as `TrainingLauncher.run` does."""
        self.launcher.run(self.context, job_path, self.project.settings)


def _name(storage: Path, key: str) -> str:
    """The job's name in a cluster: a storage has at most one training of a key at a time."""
    return hashlib.sha256(f"{storage}\n{key}".encode()).hexdigest()[:32]


def _reason(output_directory: Path, job_exit: JobExit, memory_advice: str = "") -> str:
    """Why the job failed: the error it wrote, else the platform's reason, else its exit code.

    `memory_advice` follows if the kernel may have killed it for its memory.
    """
    code, error = job_exit.code, output_directory / ERROR
    if code < 0 or code - 128 == signal.SIGKILL:
        number = -code if code < 0 else code - 128
        detail = f", {job_exit.detail}" if job_exit.detail else ""
        guess = ""
        if number == signal.SIGKILL:
            guess = " (out of memory?)" + (f": {memory_advice}" if memory_advice else "")
        return f"the training job did not finish: it was ended by {signal.Signals(number).name}{detail}{guess}"
    if code - 128 in (signal.SIGINT, signal.SIGTERM):
        name = signal.Signals(code - 128).name
        return f"the training job was stopped by {name}: materialize again to resume from its checkpoint"
    if error.is_file():
        return f"the training job failed: {error.read_text(encoding='utf-8').strip()}"
    if job_exit.detail:
        return f"the training job failed: {job_exit.detail}"
    return f"the training job failed with exit code {code}; see the step's compute log"
