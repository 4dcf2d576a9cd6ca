"""Launches the jobs of training and scoring: on this machine, in a pod, or on a Ray cluster, as `launcher` says.

The job is the same command everywhere, `python -m rm_assets.training JOB.json`, and its result is what it leaves on
the storage, its manifest last. Through Dagster Pipes comes only what it says while it works.
"""

import hashlib
import shlex
import signal
import uuid
from pathlib import Path

import dagster as dg
from pydantic import Field

from rm_assets.data.storage.files import resolve_path
from rm_assets.data.storage.locks import hold_lock
from rm_assets.defs.launchers.base import Ending, Launcher
from rm_assets.defs.launchers.kubernetes import KubernetesLauncher
from rm_assets.defs.launchers.local import LocalLauncher
from rm_assets.defs.launchers.ray_jobs import RayLauncher
from rm_assets.settings import LaunchSettings, Settings, SettingsError, TrainingSettings

LOCK = "training.lock"


class TrainingFailedError(RuntimeError):
    """The training job ended without a result."""


class TrainingLauncher(dg.ConfigurableResource):
    """Runs the jobs of training and scoring where the setting `launcher` says, each to its end."""

    grace_seconds: float = Field(
        default=5.0,
        description="Seconds a cancelled job of this machine has after SIGINT to save and leave, before it is made to.",
    )
    poll_seconds: float = Field(
        default=5.0, description="Seconds between two questions to Kubernetes or Ray about a job."
    )

    def run(
        self, context: dg.AssetExecutionContext, job_path: Path, settings: Settings, module: str = "rm_assets.training"
    ) -> None:
        """Run `python -m <module> <job>` to its end; raises TrainingFailedError unless it exits with 0.

        A job of several machines is started by hand: raises SettingsError with the command.

        Its log lines arrive while it runs. Its results do not travel by Pipes: the caller reads them from the
        manifest that the job writes last, at the paths that the job names.
        """
        from rm_assets.training.jobs.result import ERROR
        from rm_assets.training.jobs.transport import read_job, sent_job

        storage, job = resolve_path(settings.storage), read_job(str(job_path))
        training = getattr(job, "settings", TrainingSettings())  # scoring takes one process
        if training.num_nodes > 1:
            raise SettingsError(_by_hand(job_path, training))
        launcher = self._launcher(settings.launch, training)
        (Path(job.output_directory) / ERROR).unlink(missing_ok=True)  # of an attempt before, which is no reason now
        if isinstance(launcher, LocalLauncher):
            # flock, not a Dagster pool: the kernel frees it when its holder is killed.
            with hold_lock(storage / LOCK, f"training of run {context.run.run_id}", context.log.info):
                ending = launcher.run(context, ["-m", module, str(job_path)], "")
        else:
            storage = storage.absolute()
            name = _name(storage, getattr(job, "key", uuid.uuid4().hex))
            launcher.remove_left(name)
            with sent_job(job, storage, name) as sent:
                ending = launcher.run(context, ["-m", module, str(sent.place)], name)
        if ending.code != 0:
            raise TrainingFailedError(_reason(Path(job.output_directory), ending))

    def _launcher(self, launch: LaunchSettings, training: TrainingSettings) -> Launcher:
        if launch.launcher == "kubernetes":
            return KubernetesLauncher(launch, training.num_processes, self.poll_seconds)
        if launch.launcher == "ray":
            return RayLauncher(launch, training.num_processes, self.poll_seconds)
        return LocalLauncher(self.grace_seconds)


def _by_hand(job_path: Path, training: TrainingSettings) -> str:
    last = training.num_nodes - 1
    return (
        f"num_nodes is {training.num_nodes!r}: start the training on each machine, with its number from 0 to {last} as "
        f"NODE and the first machine's address as HOST, then materialize again, which publishes the model: torchrun "
        f"--nnodes={training.num_nodes} --nproc-per-node={training.num_processes} --node-rank=NODE --master-addr=HOST "
        f"--master-port=29500 -m rm_assets.training {shlex.quote(str(job_path.absolute()))}"
    )


def _name(storage: Path, key: str) -> str:
    """What tells a job from all others of a cluster: one storage trains one key once at a time."""
    return hashlib.sha256(f"{storage}\n{key}".encode()).hexdigest()[:32]


def _reason(output_directory: Path, ending: Ending) -> str:
    """Why the job failed: what it wrote about it, else what its exit code tells."""
    from rm_assets.training.jobs.result import ERROR

    code, error = ending.code, output_directory / ERROR
    if code < 0 or code - 128 == signal.SIGKILL:
        number = -code if code < 0 else code - 128
        told = f"it was ended by {signal.Signals(number).name}" + (f", {ending.told}" if ending.told else "")
        return f"the training job did not finish: {told}" + (" (out of memory?)" if number == signal.SIGKILL else "")
    if code - 128 in (signal.SIGINT, signal.SIGTERM):
        name = signal.Signals(code - 128).name
        return f"the training job was stopped by {name}: materialize again, and it goes on from its checkpoint"
    if error.is_file():
        return f"the training job failed: {error.read_text(encoding='utf-8').strip()}"
    if ending.told:
        return f"the training job failed: {ending.told}"
    return f"the training job failed with exit code {code}; its output stands in the step's compute log"
