"""The pool of what trains and scores, whose limit holds over all machines that share Dagster's storage."""

import dagster as dg

POOL = "gpu"
"""What needs the devices of the training job; the launcher's lock holds on one machine."""


def make_known(instance: dg.DagsterInstance) -> None:
    """Give the pool the instance's default limit, unless it has one.

    Dagster does so by itself, but only once a look at its queue has found runs of the pool, and that look lets all of
    them through.
    """
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits or instance.global_op_concurrency_default_limit is None:
        return
    if POOL not in storage.get_concurrency_keys():
        storage.initialize_concurrency_limit_to_default(POOL)
