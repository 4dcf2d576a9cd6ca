"""Launches the training job through Dagster Pipes, and leaves no process behind however the run ends.

The job has a process group of its own. A cancelled run interrupts the group, then terminates it, then kills it; should
this process itself be killed, the job notices that its end of a pipe closed and kills its own group.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import dagster as dg
from dagster import PipesTempFileContextInjector, PipesTempFileMessageReader, open_pipes_session
from pydantic import Field

from rm_assets.data.locks import held_lock

LOCK = "training.lock"
SECONDS_TO_LEAVE = 2.0  # for a job that need not save any more


class TrainingFailedError(RuntimeError):
    """The training job ended without a result."""


class TrainingLauncher(dg.ConfigurableResource):
    """Runs one training job at a time on this machine, as a process group that ends with the run."""

    grace_seconds: float = Field(
        default=5.0,
        description="Seconds a cancelled job has after SIGINT to save and leave, before it is made to.",
    )

    def run(
        self, context: dg.AssetExecutionContext, job_path: Path, storage: Path, module: str = "rm_assets.training"
    ) -> None:
        """Run `python -m <module> <job>` to its end; raises TrainingFailedError unless it exits with 0.

        Its log lines arrive while it runs. Its results do not travel by Pipes: the caller reads them from the
        manifest that the job writes last.
        """
        # flock, not a Dagster pool: the kernel frees it when its holder is killed.
        with held_lock(storage / LOCK, f"training of run {context.run.run_id}", context.log.info):
            code = self._run(context, job_path, module)
        if code != 0:
            raise TrainingFailedError(_reason(job_path, code))

    def _run(self, context: dg.AssetExecutionContext, job_path: Path, module: str) -> int:
        read_end, write_end = os.pipe()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, write_end)
            stack.callback(os.close, read_end)
            session = stack.enter_context(
                open_pipes_session(
                    context=context,
                    context_injector=PipesTempFileContextInjector(),
                    message_reader=PipesTempFileMessageReader(),
                )
            )
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(job_path)],
                start_new_session=True,
                pass_fds=(read_end,),
                env=os.environ | session.get_bootstrap_env_vars() | {"RM_PARENT_FD": str(read_end)},
            )
            try:
                return process.wait()
            finally:
                self._end_group(process)

    def _end_group(self, process: subprocess.Popen[bytes]) -> None:
        """Ask the job to save and leave, then to leave at once, then make it; a no-op for a group that is gone."""
        for number, seconds in ((signal.SIGINT, self.grace_seconds), (signal.SIGTERM, SECONDS_TO_LEAVE)):
            if process.poll() is None:
                _signal_group(process, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _reason(job_path: Path, code: int) -> str:
    """Why the job failed: what it wrote about it, else what its exit code tells."""
    from rm_assets.training.result import ERROR

    error = Path(json.loads(job_path.read_text())["output_directory"]) / ERROR
    if code < 0:
        told = f"it was ended by {signal.Signals(-code).name}"
        return f"the training job did not finish: {told}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    if code - 128 in (signal.SIGINT, signal.SIGTERM):
        name = signal.Signals(code - 128).name
        return f"the training job was stopped by {name}: materialize again, and it goes on from its checkpoint"
    if error.is_file():
        return f"the training job failed: {error.read_text().strip()}"
    return f"the training job failed with exit code {code}; its output stands in the step's compute log"
