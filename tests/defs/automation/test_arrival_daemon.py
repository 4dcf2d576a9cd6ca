"""Files that arrive at a real Dagster with its daemon: each new content is refreshed once, and nothing is lost."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
from dagster import DagsterRunStatus as Status
from dagster_instances import RunningDagster, processes_of, running_dagster, sqlite_yaml
from postgresql import instance_on_postgresql
from support import QUICK, age, polite_rows, write_lines

SECONDS_TO_REFRESH = 180.0


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
def instance_yaml(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The dagster.yaml of the instance under test: the project's own, and that of DEPLOYMENT.md."""
    if request.param == "sqlite":
        yield sqlite_yaml(tmp_path / "home")
    else:
        with instance_on_postgresql() as found:
            yield found


def finished_refreshes(dagster: RunningDagster, number: int) -> list[dg.DagsterRun] | None:
    runs = dagster.instance.get_runs(dg.RunsFilter(job_name="refresh_data"))
    return runs if len(runs) >= number and all(run.is_finished for run in runs) else None


def refreshed(dagster: RunningDagster, number: int) -> dg.DagsterRun:
    """The newest of so many runs, all of them successful."""
    runs = dagster.wait_for(lambda: finished_refreshes(dagster, number), SECONDS_TO_REFRESH, f"refresh number {number}")
    assert [run.status for run in runs] == [Status.SUCCESS] * number
    return runs[0]


def nothing_more(dagster: RunningDagster, number: int) -> None:
    """A tick that finds nothing new, and no run beside those that are known."""
    before = num_quiet_ticks(dagster)
    dagster.wait_for(lambda: num_quiet_ticks(dagster) > before, SECONDS_TO_REFRESH, "tick with nothing new")
    assert len(dagster.instance.get_runs()) == number


def num_quiet_ticks(dagster: RunningDagster) -> int:
    [state] = [s for s in dagster.instance.all_instigator_state() if s.instigator_name == "new_annotations"]
    ticks = dagster.instance.get_ticks(state.instigator_origin_id, state.selector_id)
    return sum("nothing new" in (tick.skip_reason or "") for tick in ticks)


def metadata(dagster: RunningDagster, asset: str) -> dict[str, Any]:
    event = dagster.instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event and event.asset_materialization
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def rejects(storage: Path) -> set[tuple[str, str]]:
    home = storage / "rejected_annotations"
    snapshot = json.loads((home / "latest.json").read_text())["snapshot"]
    rows = pq.read_table(home / snapshot / "data").to_pylist()
    return {(row["source"], row["reason"]) for row in rows}


def failed_checks(dagster: RunningDagster, run: dg.DagsterRun) -> set[str]:
    logs = dagster.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [entry.dagster_event.asset_check_evaluation_data for entry in logs if entry.dagster_event]
    return {check.check_name for check in found if not check.passed}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes by /proc")
@pytest.mark.parametrize("one_by_one", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_files_that_arrive_are_refreshed_once_whatever_they_hold(
    tmp_path: Path, instance_yaml: str, one_by_one: bool
) -> None:
    """The same bytes under another name, a broken and a good file arrive together, or in the long run one by one."""
    annotations, storage = tmp_path / "annotations", tmp_path / "storage"
    annotations.mkdir()
    settings = {"annotations": annotations, "storage": storage, "arrival_seconds": 1, **QUICK}
    with running_dagster(tmp_path / "home", instance_yaml, settings) as dagster:
        dagster.switch_on("new_annotations")
        write_lines(annotations / "first.jsonl", polite_rows(40))
        first = refreshed(dagster, 1)
        assert metadata(dagster, "padded_pairs")["dagster/row_count"] == 40
        assert failed_checks(dagster, first) == set()

        shutil.copy(annotations / "first.jsonl", annotations / "second.jsonl")
        if one_by_one:
            assert failed_checks(dagster, refreshed(dagster, 2)) == set()
            assert rejects(storage) == {("second.jsonl", "duplicate")}
        write_lines(annotations / "third.jsonl", [b"no annotations"] * 5)
        if one_by_one:
            age(annotations)
            assert failed_checks(dagster, refreshed(dagster, 3)) == {"no_file_is_held_back"}
            assert metadata(dagster, "padded_pairs")["dagster/row_count"] == 40

        write_lines(annotations / "good.jsonl", polite_rows(50)[40:])
        age(annotations)
        last = 4 if one_by_one else 2
        assert failed_checks(dagster, refreshed(dagster, last)) == {"no_file_is_held_back"}
        assert rejects(storage) == {("second.jsonl", "duplicate"), ("third.jsonl", "not_json")}
        assert metadata(dagster, "padded_pairs")["dagster/row_count"] == 50
        nothing_more(dagster, last)
    assert processes_of(tmp_path / "home") == []
