"""The executor of all jobs: it runs the steps in the process of the run, and watches the run.

Dagster has no public hook around a run, so the executor has to do this. The argument of `execute` is private to Dagster
(`PlanOrchestrationContext`): only this module depends on it, last tested with Dagster 1.13.27.
"""

import contextlib
import gc
import logging
from collections.abc import Iterator
from typing import Any

import dagster as dg

from rm_assets.data.compute.workers import keep_pandas_unloaded
from rm_assets.defs.runs.cancellation import interrupt_if_cancelled
from rm_assets.defs.runs.dead_runs import end_dead_runs, is_watched, records_directory, register_run
from rm_assets.defs.runs.failure_reason import print_reasons_at_exit
from rm_assets.defs.runs.summary import print_summary_at_exit


class WatchedExecutor(dg.Executor):
    """Wraps an executor: records the run, stops it when it is cancelled, and prints its result or why it failed."""

    def __init__(self, executor: dg.Executor) -> None:
        self._executor = executor

    @property
    def retries(self) -> Any:
        return self._executor.retries

    @property
    def step_dependency_config(self) -> Any:
        return self._executor.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        instance, run_id = plan_context.instance, plan_context.dagster_run.run_id
        with contextlib.ExitStack() as stack:
            stack.enter_context(_exempt_present_objects_from_gc())
            keep_pandas_unloaded()
            stack.callback(print_reasons_at_exit, instance, run_id)
            if is_watched(instance):
                _record_run(instance, run_id, plan_context.log)
                stack.enter_context(interrupt_if_cancelled(instance, run_id))
            if instance.python_log_level is None and "loggers" not in plan_context.run_config:
                stack.enter_context(_without_debug_lines())
            yield from self._executor.execute(plan_context, execution_plan)
            print_summary_at_exit(instance, run_id)


@contextlib.contextmanager
def _exempt_present_objects_from_gc() -> Iterator[None]:
    """Within the block, the garbage collector skips all objects that exist when it begins, most of them from imports.

    Each full collection would otherwise spend more than a tenth of a second on them, and find nothing to free.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _without_debug_lines() -> Iterator[None]:
    """Within the block, no logger takes DEBUG lines: the console prints each of Dagster's events as one.

    The events are stored anyway. `python_logs` in dagster.yaml and `loggers` in run config set another level.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.DEBUG))
    try:
        yield
    finally:
        logging.disable(before)


def _record_run(instance: dg.DagsterInstance, run_id: str, log: Any) -> None:
    """Record this run and end killed ones; this run continues if either fails."""
    try:
        register_run(records_directory(instance), run_id)
    except OSError as error:
        log.warning(f"if this run is killed, it will not be noticed: {error}")
    try:
        for ended in end_dead_runs(instance):
            log.info(f"run {ended} was killed, and is now ended as failed")
    except Exception as error:  # the sensor tries again
        log.warning(f"cannot check whether other runs were killed: {error}")


def _create_executor(context: dg.InitExecutorContext) -> dg.Executor:
    create = dg.in_process_executor.executor_creation_fn
    assert create is not None
    return WatchedExecutor(create(context))


watched_in_process_executor = dg.ExecutorDefinition(
    name=dg.in_process_executor.name,
    config_schema=dg.in_process_executor.config_schema.as_field(),
    executor_creation_fn=_create_executor,
    description="Executes all steps in the process of the run; a killed run is noticed and ended as failed.",
)
