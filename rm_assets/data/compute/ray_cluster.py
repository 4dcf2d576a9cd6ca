"""`engine: ray`: computes the shards of a stage on a Ray cluster, with the same functions as on this machine.

`RAY_ADDRESS` names the cluster; without it a local one is started, which ends with this process. Every node needs this
package installed and must see the storage (and the tokenizer) under the same path or URI as the driver, so each task
first checks for a file that the driver wrote there. Tasks only stage shards; the driver publishes them.
"""

import os
import socket
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rm_assets.addresses import mask_credentials
from rm_assets.data.storage.files import StorageError, remove_files
from rm_assets.data.storage.writing import write_json

MAX_RETRIES = 3
"""How often a task is retried when its worker or node is lost; an exception that it raises is not retried."""
_TASKS_PER_CORE = 2
"""Tasks submitted at a time, running or queued; the rest waits in this process."""


class EngineError(RuntimeError):
    """The cluster cannot be reached, or lost a task more than `MAX_RETRIES` times."""


def map_on_ray(function: Callable[[Any], Any], jobs: list[Any], staging: Path, num_workers: int) -> Iterator[Any]:
    """`map(function, jobs)` on a Ray cluster, in order, with `num_workers` tasks at a time (0: twice its cores).

    Raises the exception of the first job that fails, and EngineError where the cluster fails. Tasks that still run then
    are not cancelled, and the shards they stage are kept: Ray aborts this process if a task ends during cancellation.
    """
    if not jobs:
        return
    ray = _connect()
    token = staging / f"{uuid.uuid4().hex}.token"
    write_json(token, "a node that can read this file sees the storage")
    task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES, retry_exceptions=False)(_run_on_node)
    limit = num_workers or _TASKS_PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = deque(jobs)
    running: deque[Any] = deque()
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                running.append(task.remote(function, waiting.popleft(), token))
            yield _get_result(ray, running.popleft())
    finally:
        remove_files([token])


def _connect() -> Any:
    """Import Ray and connect to the cluster; returns the module."""
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # "0" makes Ray listen on loopback only
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
        detail = mask_credentials(str(error).splitlines()[0])
        raise EngineError(
            f"engine (or RM_ENGINE) is 'ray', RAY_ADDRESS is {mask_credentials(repr(address))}: {detail}"
        ) from None
    return ray


def _get_result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        detail = str(error).splitlines()[0]
        raise EngineError(
            f"Ray lost a task {MAX_RETRIES + 1} times ({detail}): if a node is short of memory, lower shard_bytes or "
            "num_workers"
        ) from None


def _run_on_node(function: Callable[[Any], Any], job: Any, token: Path) -> Any:
    if not token.exists():
        storage = token.parent.parent.parent
        raise StorageError(
            f"the Ray node {socket.gethostname()} does not see the storage {str(storage)!r}: give all nodes one "
            "that they share, such as s3://bucket/prefix"
        )
    return function(job)
