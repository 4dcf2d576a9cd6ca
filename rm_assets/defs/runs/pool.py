"""The pool of the steps that train or score; its limit holds on all machines that share Dagster's storage."""

import dagster as dg

POOL = "gpu"
"""The steps that use the training job's devices. On one machine, the launcher's lock serializes them too."""


def set_default_limit(instance: dg.DagsterInstance) -> None:
    """Give the pool the instance's default limit, unless it has a limit.

    Dagster does so only after its queue has seen runs of the pool for the first time, and then it launches all of them.
    """
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits or instance.global_op_concurrency_default_limit is None:
        return
    if POOL not in storage.get_concurrency_keys():
        storage.initialize_concurrency_limit_to_default(POOL)
