"""Computes shards: a few in this process, many in worker processes of this machine, or all on Ray."""

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
"""Up to this much estimated input, the work is done in this process: workers take seconds to start."""
_BYTES_PER_SHARD = 2**17
"""The fixed cost of a shard (writing its files, measuring its invariants), as the bytes of input that take as long."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A shard to compute: its name and key, and the arguments of the stage's functions.

    `num_bytes` is the size of its input files, to plan the work and to report progress.
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
    measure: InvariantFunction,
    settings: Settings,
    log: Callable[[str], object],
) -> list[Shard]:
    """The shards of all tasks, in order; computes only those whose key was not published or staged before."""
    found = {task.key: shard for task in tasks if (shard := publication.find(task.key))}
    missing = [task for task in tasks if task.key not in found]
    jobs = [(publication.directory, task, function, measure) for task in missing]
    num_bytes = sum(task.num_bytes for task in missing)
    progress = Progress(publication.directory.name, num_bytes, log)
    if settings.engine == "ray":
        computed = map_on_ray(_compute, jobs, publication.directory / STAGING, settings.num_workers)
    else:
        is_small = num_bytes + len(jobs) * _BYTES_PER_SHARD <= _SMALL_BYTES
        computed = _compute_locally(jobs, 1 if is_small else settings.num_workers or os.cpu_count() or 1)
    for task, shard in zip(missing, computed, strict=True):
        found[task.key] = shard
        progress.add(shard.num_rows(), task.num_bytes)
    return [found[task.key] for task in tasks]


def _compute_locally(jobs: list[Any], num_processes: int) -> Iterator[Shard]:
    if len(jobs) <= 1 or num_processes == 1:
        yield from map(_compute, jobs)
        return
    try:
        yield from map_in_processes(_compute, jobs, num_processes)
    except BrokenProcessPool:
        raise MemoryError(
            "a worker process was killed, most likely because memory ran out: lower num_workers or shard_bytes; or it "
            "failed to start, for the reason printed above"
        ) from None


def _compute(job: tuple[Path, Task, StageFunction, InvariantFunction]) -> Shard:
    directory, task, function, measure = job
    fill, read_back = (functools.partial(step, task.arguments) for step in (function, measure))
    with pause_gc():
        return write_shard(directory, task.name, task.source, task.key, fill, read_back)
