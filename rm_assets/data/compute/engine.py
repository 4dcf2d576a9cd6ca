"""Where shards are computed: in this process for a few, over processes of this machine for many, or on Ray."""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_assets.data.compute.progress import Progress
from rm_assets.data.compute.ray_cluster import map_on_ray
from rm_assets.data.compute.workers import map_in_processes, pause_gc
from rm_assets.data.storage.ownership import STAGING
from rm_assets.data.storage.publication import Publication
from rm_assets.data.storage.shards import InvariantFunction, StageFunction, write_shard
from rm_assets.data.storage.snapshots import Shard
from rm_assets.settings import Settings

_SMALL_BYTES = 16 * 2**20
"""Up to this much input, with what shards cost, is computed in this process: others take seconds to start and load."""
_BYTES_PER_SHARD = 2**17
"""So much input takes as long as what every shard costs, however small: its files and its laws."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard to have: its name, its key, and what the stage's function needs to compute it.

    `num_bytes` is the size of its input files, by which the work is planned.
    """

    name: str
    source: str
    key: str
    num_bytes: int
    arguments: Any


def compute_shards(
    publication: Publication,
    tasks: list[Task],
    function: StageFunction,
    laws: InvariantFunction,
    settings: Settings,
    say: Callable[[str], object],
) -> list[Shard]:
    """The shards of all tasks, in order; only those whose key is not found are computed."""
    found: dict[str, Shard | None] = {task.key: publication.find(task.key) for task in tasks}
    missing = [task for task in tasks if found[task.key] is None]
    jobs = [(publication.directory, task, function, laws) for task in missing]
    num_bytes = sum(task.num_bytes for task in missing)
    progress = Progress(publication.directory.name, num_bytes, say)
    if settings.engine == "ray":
        computed = map_on_ray(_compute, jobs, publication.directory / STAGING, settings.num_workers)
    else:
        is_small = num_bytes + len(jobs) * _BYTES_PER_SHARD <= _SMALL_BYTES
        computed = _computed(jobs, 1 if is_small else settings.num_workers or os.cpu_count() or 1)
    for task, shard in zip(missing, computed, strict=True):
        found[shard.key] = shard
        progress.add(shard.num_rows(), task.num_bytes)
    return [done for task in tasks if (done := found[task.key]) is not None]


def _computed(jobs: list[Any], num_processes: int) -> Iterator[Shard]:
    if len(jobs) <= 1 or num_processes == 1:
        yield from map(_compute, jobs)
        return
    try:
        yield from map_in_processes(_compute, jobs, num_processes)
    except BrokenProcessPool:
        raise MemoryError(
            "a process that computed shards was killed, most likely for want of memory: "
            "lower num_workers or shard_bytes"
        ) from None


def _compute(job: tuple[Path, Task, StageFunction, InvariantFunction]) -> Shard:
    directory, task, function, laws = job
    fill, measure = (functools.partial(step, task.arguments) for step in (function, laws))
    with pause_gc():
        return write_shard(directory, task.name, task.source, task.key, fill, measure)
