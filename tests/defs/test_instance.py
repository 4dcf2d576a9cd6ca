"""The files at the root that tell Dagster where it keeps things: the same with DAGSTER_HOME and without."""

import sqlite3
import subprocess
import threading
from pathlib import Path

import dagster as dg
import pytest
import yaml
from real_runs import ROOT, Site, for_a_team, services, wait_until


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A directory that stands for the project's root, with its files as they are."""
    site = Site(tmp_path)
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    monkeypatch.chdir(tmp_path)  # for the relative paths in it
    return site


def test_runs_of_the_command_line_are_kept_at_the_root_with_a_home_and_without(root: Site) -> None:
    for has_home in (True, False):
        root.has_home = has_home
        assert root.materialize("raw_preferences").wait() == 0, root.log.read_text()
        assert [root.status(run_id) for run_id in root.run_ids()] == ["SUCCESS"] * (1 if has_home else 2)
    names = {path.name for path in root.directory.iterdir()}
    assert names == {".dagster", "storage", "dagster.yaml", "workspace.yaml", "a.jsonl", "log"}


def test_a_home_elsewhere_keeps_its_own_history(root: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    [command] = [
        line for line in (ROOT / "rm_assets" / "defs" / "DEPLOYMENT.md").read_text().splitlines() if "sed '1" in line
    ]
    home = root.directory / "home"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    subprocess.run(["sh", "-c", command], check=True, cwd=root.directory)
    with dg.DagsterInstance.get() as instance:
        assert Path(instance.storage_directory()).is_relative_to(home)
        assert instance.root_directory == str(home)
        assert instance.python_log_level == "INFO" and instance.run_monitoring_enabled
        assert instance.get_runs_count() == 0
    assert not (root.directory / ".dagster").exists()
    written, original = (yaml.safe_load((path / "dagster.yaml").read_text()) for path in (home, root.directory))
    assert set(original) - set(written) == {"storage", "local_artifact_storage", "compute_logs"}


def test_a_run_waits_for_databases_that_somebody_else_holds(root: Site, run_graph) -> None:
    free = threading.Event()
    with root.instance() as instance:
        instance.get_runs_count(), instance.all_instigator_state(), instance.get_asset_keys()  # its tables are made
        holders = [
            sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for path in (root.directory / ".dagster").rglob("*.db")
        ]
        assert len(holders) == 3

        def release() -> None:
            free.set()
            for holder in holders:
                holder.rollback()

        for holder in holders:
            holder.execute("BEGIN EXCLUSIVE")
        timer = threading.Timer(1.0, release)
        timer.start()
        settings = {"annotations": str(root.directory / "a.jsonl"), "storage": str(root.storage)}
        result = run_graph("raw_preferences", instance=instance, **settings)
        assert free.is_set()
        assert result.success
        assert [root.status(run_id) for run_id in root.run_ids()] == ["SUCCESS"]
        timer.join()
        for holder in holders:
            holder.close()


@pytest.mark.soak
@pytest.mark.parametrize("has_home", [True, False])
def test_runs_of_the_ui_are_kept_at_the_root_with_a_home_and_without(root: Site, has_home: bool) -> None:
    root.has_home = has_home
    with services(root) as ui:
        run_id = ui.launch("raw_preferences")
        assert wait_until(lambda: root.status(run_id) == "SUCCESS", 120), root.log.read_text()
    assert (root.directory / ".dagster" / "storage" / "history" / "runs.db").is_file()


def test_nobody_is_told_and_what_cannot_be_judged_ends_by_itself(root: Site) -> None:
    with root.instance() as instance:
        assert instance.get_settings("telemetry") == {"enabled": False}
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_max_runtime_seconds == 7 * 24 * 3600
        assert instance.run_monitoring_start_timeout_seconds == 300
        assert isinstance(instance.run_launcher, dg.DefaultRunLauncher)


def test_the_file_for_a_team_differs_in_storage_and_turns_alone() -> None:
    own, team = (yaml.safe_load(text) for text in ((ROOT / "dagster.yaml").read_text(), for_a_team()))
    assert set(team) - set(own) == {"concurrency"}
    assert set(own) - set(team) == {"local_artifact_storage", "compute_logs"}  # of a home that all share
    assert team["storage"] == {"postgres": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}}}
    for name in ("run_monitoring", "run_retries", "code_servers", "python_logs", "telemetry"):
        assert team[name] == own[name]
