"""Jobs as process groups of this machine, which end with the run however the run ends.

A cancelled run interrupts the group, then terminates it, then kills it. If this process itself is killed, its end of a
pipe closes, at which the job kills its own group.
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

from rm_assets.defs.launchers.base import JobExit
from rm_assets.defs.runs.cancellation import ending_job

SECONDS_AFTER_SIGTERM = 2.0
SECONDS_BETWEEN_POLLS = 0.1


@dataclass(frozen=True)
class LocalLauncher:
    """A cancelled job has `grace_seconds` after SIGINT to save and exit."""

    grace_seconds: float

    def remove_leftovers(self, name: str) -> None:
        """Jobs of this machine leave nothing behind."""

    def run(self, context: dg.AssetExecutionContext, arguments: Sequence[str], name: str) -> JobExit:
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
                return JobExit(code=process.returncode)
            finally:
                self._end_group(process)

    @ending_job()
    def _end_group(self, process: subprocess.Popen[bytes]) -> None:
        """SIGINT: save and exit; SIGTERM: exit at once; then SIGKILL. Does nothing to a group that is gone."""
        for number, seconds in ((signal.SIGINT, self.grace_seconds), (signal.SIGTERM, SECONDS_AFTER_SIGTERM)):
            if process.poll() is None:
                _signal_group(process, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
