"""Jobs as processes of this machine: a group of their own, which ends with the run however the run ends.

A cancelled run interrupts the group, then terminates it, then kills it; should this process itself be killed, the job
notices that its end of a pipe closed and kills its own group.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg
from dagster import PipesTempFileContextInjector, PipesTempFileMessageReader, open_pipes_session

from rm_assets.defs.launchers.base import Ending
from rm_assets.defs.runs.cancellation import ending_job

SECONDS_TO_LEAVE = 2.0  # for a job that need not save any more
SECONDS_BETWEEN_POLLS = 0.1


@dataclass(frozen=True)
class LocalLauncher:
    """A cancelled job has `grace_seconds` after SIGINT to save and leave."""

    grace_seconds: float

    def remove_left(self, name: str) -> None:
        """Nothing is ever left."""

    def run(self, context: dg.AssetExecutionContext, arguments: Sequence[str], name: str) -> Ending:
        """Run `python <arguments>` to its end."""
        from rm_assets.training.processes.children import start_child

        command = [sys.executable, *arguments]
        with (
            open_pipes_session(
                context=context,
                context_injector=PipesTempFileContextInjector(),
                message_reader=PipesTempFileMessageReader(),
            ) as session,
            start_child(command, session.get_bootstrap_env_vars()) as process,
        ):
            try:
                while process.poll() is None:
                    time.sleep(SECONDS_BETWEEN_POLLS)
                return Ending(code=process.returncode)
            finally:
                self._end_group(process)

    @ending_job()
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
