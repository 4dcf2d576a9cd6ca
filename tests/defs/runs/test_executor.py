"""What the executor of all jobs does around a run."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
from real_runs import ROOT

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


ARRAYS = """
import sys
import dagster as dg
import pyarrow as pa
from rm_assets.defs.runs.executor import watched_in_process_executor

@dg.op
def arrays() -> None:
    assert pa.array([1, 2]).to_pylist() == [1, 2]
    assert "pandas" not in sys.modules

@dg.job(executor_def=watched_in_process_executor)
def making_arrays() -> None:
    arrays()
"""


def test_a_run_that_only_makes_arrays_does_not_load_pandas(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(ARRAYS)
    command = [sys.executable, "-m", "dagster", "job", "execute", "-f", str(tmp_path / "job.py"), "-j", "making_arrays"]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "DAGSTER_HOME": str(tmp_path)})
