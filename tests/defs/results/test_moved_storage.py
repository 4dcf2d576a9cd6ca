"""A run on another storage does not replace what the catalog shows unseen."""

import shutil
from pathlib import Path
from typing import Any

import dagster as dg
from support import polite_rows, write_lines


def warnings(instance: dg.DagsterInstance, result: Any) -> list[str]:
    return [entry.message for entry in instance.all_logs(result.run_id) if entry.level >= 30]


def test_data_that_move_to_another_storage_are_a_warning_once(tmp_path: Path, run_graph) -> None:
    write_lines(tmp_path / "a.jsonl", polite_rows(3))
    instance, found = dg.DagsterInstance.ephemeral(), []
    for storage in ("ours", "ours", "experiment", "experiment", "ours"):
        settings = {"annotations": str(tmp_path / "a.jsonl"), "storage": str(tmp_path / storage)}
        result = run_graph("raw_preferences", instance, **settings)
        [made] = result.asset_materializations_for_node("raw_preferences")
        assert next(iter(made.metadata.items())) == ("storage", dg.MetadataValue.path(str(tmp_path / storage)))
        found.append(warnings(instance, result))
    moved = f"raw_preferences was in {tmp_path / 'ours'} and is in {tmp_path / 'experiment'} now"
    assert [len(lines) for lines in found] == [0, 0, 1, 0, 1]
    assert moved in found[2][0]


def test_a_promoted_model_of_another_storage_fails_its_check(first_run, tmp_path: Path, run_graph) -> None:
    ours, _ = first_run
    shutil.copytree(ours["storage"], tmp_path / "experiment")
    instance, found = dg.DagsterInstance.ephemeral(), {}
    for storage in (ours["storage"], str(tmp_path / "experiment")):
        result = run_graph("promoted_reward_model", instance, **ours | {"storage": storage})
        assert result.success
        checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
        found[storage] = checks["storage_is_unchanged"]
    first, moved = found.values()
    assert first.passed and not moved.passed
    assert moved.severity is dg.AssetCheckSeverity.WARN
    assert f"was in {ours['storage']} and is in {tmp_path / 'experiment'} now" in (moved.description or "")
