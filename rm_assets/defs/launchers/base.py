"""What every launcher does: run one job from its command to its exit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import dagster as dg


@dataclass(frozen=True, kw_only=True)
class JobExit:
    """How a job ended: its exit code, negative where a signal ended it, and the platform's reason, or ""."""

    code: int
    detail: str = ""


class Launcher(Protocol):
    """Runs jobs somewhere."""

    def remove_leftovers(self, name: str) -> None:
        """End what a killed run left of the job of this name, and wait until it is gone."""

    def run(self, context: dg.AssetExecutionContext, arguments: Sequence[str], name: str) -> JobExit:
        """Run `python <arguments>` to its end, passing on its log; if the run is cancelled, the job is stopped.

        A stopped job has time to save, and has ended, or will within its grace period, when this returns or raises.
        """
