"""What the executor of all jobs does around a run."""

import gc

import dagster as dg

from rm_assets.defs.runs.executor import watched_in_process_executor


@dg.op
def frozen_objects() -> int:
    return gc.get_freeze_count()


@dg.job(executor_def=watched_in_process_executor)
def freezing() -> None:
    frozen_objects()


def test_the_garbage_collector_leaves_out_what_was_imported_and_only_during_the_run() -> None:
    before = gc.get_freeze_count()
    num_objects = len(gc.get_objects())
    with dg.DagsterInstance.ephemeral() as instance, dg.execute_job(dg.reconstructable(freezing), instance) as result:
        assert result.output_for_node("frozen_objects") > num_objects / 2
    assert gc.get_freeze_count() == before
