"""`engine: ray`: the shards of a stage computed on the nodes of a Ray cluster, by the functions that compute them here.

The cluster is the one that `RAY_ADDRESS` names, else one that is started on this machine and ends with this process.
Each node needs this package installed, and sees the storage (and the tokenizer) under the same path or URI as this
machine does: every task looks for a file that the driver wrote there. Tasks only stage shards; the driver publishes.
"""

import os
import socket
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rm_assets.addresses import mask_credentials
from rm_assets.data.storage.files import StorageError, remove_files, write_json

MAX_RETRIES = 3
"""How often a task is started anew when its worker or node is lost; an error of its own ends it at once."""
_TASKS_PER_CORE = 2
"""Tasks that are under way or wait at the cluster; the others wait here."""


class EngineError(RuntimeError):
    """A cluster that cannot be reached, or that lost a task again and again."""


def map_on_ray(function: Callable[[Any], Any], jobs: list[Any], staging: Path, num_workers: int) -> Iterator[Any]:
    """`map(function, jobs)` on a Ray cluster, in order, with `num_workers` tasks at a time (0: by its cores).

    Raises the error of the first job that has one, and EngineError where the cluster fails. Tasks that are under way
    then are left to end, and what they stage is kept: Ray aborts this process if one ends while it is being cancelled.
    """
    if not jobs:
        return
    ray = _connected()
    token = staging / f"{uuid.uuid4().hex}.token"
    write_json(token, "what a node that sees this storage sees")
    task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES, retry_exceptions=False)(_on_a_node)
    limit = num_workers or _TASKS_PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = deque(jobs)
    running: deque[Any] = deque()
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                running.append(task.remote(function, waiting.popleft(), token))
            yield _result(ray, running.popleft())
    finally:
        remove_files([token])


def _connected() -> Any:
    """The module `ray`, connected to its cluster."""
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # so named, it has Ray listen on loopback alone
    try:
        import ray
    except ImportError:
        raise EngineError(
            "engine (or RM_ENGINE) is 'ray', which is not installed: pip install 'rm_assets[ray]'"
        ) from None
    if ray.is_initialized():
        return ray
    try:
        if address:
            ray.init(address=address)
        else:
            ray.init(address="local", include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        told = mask_credentials(str(error).splitlines()[0])
        raise EngineError(
            f"engine (or RM_ENGINE) is 'ray', RAY_ADDRESS is {mask_credentials(repr(address))}: {told}"
        ) from None
    return ray


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        told = str(error).splitlines()[0]
        raise EngineError(
            f"Ray lost a task {MAX_RETRIES + 1} times ({told}): if a node is short of memory, lower shard_bytes or "
            "num_workers"
        ) from None


def _on_a_node(function: Callable[[Any], Any], job: Any, token: Path) -> Any:
    if not token.exists():
        storage = token.parent.parent.parent
        raise StorageError(
            f"the Ray node {socket.gethostname()} does not see the storage {str(storage)!r}: give all nodes one they "
            "share, such as s3://bucket/prefix"
        )
    return function(job)
