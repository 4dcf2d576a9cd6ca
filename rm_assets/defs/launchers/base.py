"""What every launcher does: one job, from its command to how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import dagster as dg


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a job ended: its exit code, negative where a signal ended it, and what the platform says about it, or ""."""

    code: int
    told: str = ""


class Launcher(Protocol):
    """Runs jobs somewhere."""

    def remove_left(self, name: str) -> None:
        """End what a run that was killed left of the job of this name, and wait until it is gone."""

    def run(self, context: dg.AssetExecutionContext, arguments: Sequence[str], name: str) -> Ending:
        """Run `python <arguments>` to its end, its log lines passed on; where the run is cancelled, the job ends too.

        The job may then save and leave, and is gone, or bound to go, when this returns or raises.
        """
