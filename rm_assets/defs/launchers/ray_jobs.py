"""Jobs on a Ray cluster, through dagster-ray's `PipesRayJobClient`.

A Ray job has the training job's name in its metadata, so a later run finds and stops what a killed run left. Ray stops
a job with SIGTERM: it saves a checkpoint and exits. The cluster schedules the GPUs, so no lock is held here.
"""

import contextlib
import os
import shlex
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from rm_assets.addresses import mask_credentials, require_no_credentials
from rm_assets.defs.launchers.base import JobExit
from rm_assets.defs.runs.cancellation import ending_job
from rm_assets.settings import LaunchSettings, SettingsError

METADATA = "rm_assets/job"
SECONDS_TO_SAVE = 60
"""How long a stopped job has until Ray kills it."""


@dataclass(frozen=True)
class RayLauncher:
    """Ray jobs at the job server of RAY_API_SERVER_ADDRESS, such as http://head:8265."""

    settings: LaunchSettings
    num_processes: int
    poll_seconds: float

    def remove_leftovers(self, name: str) -> None:
        """Stop the job's Ray jobs, and wait until they have ended."""
        client = self._client().client
        for job in client.list_jobs():
            if (job.metadata or {}).get(METADATA) == name:
                self._stop(client, job.submission_id)

    def run(self, context: dg.AssetExecutionContext, arguments: Sequence[str], name: str) -> JobExit:
        """Run `python <arguments>` as a Ray job; raises SettingsError if no job server can be reached."""
        client = self._client()
        submission = f"rm-assets-{name}-{uuid.uuid4().hex[:8]}"
        try:
            client.run(context=context, submit_job_params=self.parameters(arguments, name, submission))
        except Exception as error:  # the job failed or was stopped, or the server cannot be reached
            return job_exit(client.client, submission, error)
        finally:
            with contextlib.suppress(Exception):  # it was never submitted, or the server cannot be reached
                self._stop(client.client, submission)
        return JobExit(code=0)

    def parameters(self, arguments: Sequence[str], name: str, submission: str) -> dict[str, Any]:
        """The arguments of Ray's `submit_job`."""
        num_gpus = self.num_processes if self.settings.num_gpus is None else self.settings.num_gpus
        return {
            "entrypoint": shlex.join(["python", *arguments]),
            "entrypoint_num_gpus": num_gpus,
            "runtime_env": {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(SECONDS_TO_SAVE)}},
            "metadata": {METADATA: name},
            "submission_id": submission,
        }

    def _client(self) -> Any:
        address = os.environ.get("RAY_API_SERVER_ADDRESS", "")
        if not address:
            raise SettingsError(
                "launcher (or RM_LAUNCHER) is 'ray': RAY_API_SERVER_ADDRESS must name its job server, such as "
                "http://head:8265"
            )
        require_no_credentials("RAY_API_SERVER_ADDRESS", address)
        if not address.startswith(("http://", "https://")):
            raise SettingsError(
                f"launcher (or RM_LAUNCHER) is 'ray', RAY_API_SERVER_ADDRESS is {address!r}: it must begin with "
                "http:// or https://, such as http://head:8265"
            )
        try:
            from dagster_ray import PipesRayJobClient

            client = PipesRayJobClient(poll_interval=self.poll_seconds)
            _ = client.client  # connects to the server
        except ImportError:
            raise SettingsError(
                "launcher (or RM_LAUNCHER) is 'ray', which is not installed: pip install 'rm_assets[ray]'"
            ) from None
        except (ConnectionError, RuntimeError) as error:
            reason = mask_credentials(" ".join(str(error).split()))[:300]
            raise SettingsError(
                f"launcher (or RM_LAUNCHER) is 'ray', RAY_API_SERVER_ADDRESS is {address!r}: {reason}"
            ) from None
        return client

    @ending_job()
    def _stop(self, client: Any, submission: str) -> None:
        """Stop a Ray job, and wait until it has ended or Ray must have killed it."""
        if client.get_job_status(submission).is_terminal():
            return
        client.stop_job(submission)
        deadline = time.monotonic() + SECONDS_TO_SAVE
        while not client.get_job_status(submission).is_terminal() and time.monotonic() < deadline:
            time.sleep(self.poll_seconds)


def job_exit(client: Any, submission: str, error: Exception) -> JobExit:
    """How a Ray job ended that could not be followed to a successful end, by its own account or else by the error."""
    detail = mask_credentials(" ".join(str(error).split()))[:300]
    with contextlib.suppress(Exception):  # the first error is the better reason
        found = client.get_job_info(submission)
        if found.driver_exit_code:
            return JobExit(code=found.driver_exit_code)
        if found.status == "SUCCEEDED":
            return JobExit(code=0)
        if found.status.is_terminal():  # else its message only says that it runs
            return JobExit(code=1, detail=mask_credentials(found.message or detail))
    return JobExit(code=1, detail=detail)
