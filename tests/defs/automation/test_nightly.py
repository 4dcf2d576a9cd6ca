"""The nightly schedule: it trains where enough pairs changed, and says why where it does not."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster import DagsterRunStatus as Status
from support import QUICK, polite_rows, run_stages, write_lines

from rm_assets.data.storage.writing import write_json
from rm_assets.data.tables.schemas import Stage
from rm_assets.definitions import definitions
from rm_assets.defs.automation.nightly import nightly_training
from rm_assets.defs.project import ProjectResource
from rm_assets.settings_loading import load_settings

NIGHT = datetime(2031, 5, 17, 2, tzinfo=UTC)


SETTINGS = {"annotations": "annotations", "storage": "storage", **QUICK}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings with 40 pairs to prepare."""
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "annotations" / "a.jsonl", polite_rows(40))
    return SETTINGS


@pytest.fixture(scope="module")
def once_prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("nightly")
    write_lines(directory / "annotations" / "a.jsonl", polite_rows(40))
    with contextlib.chdir(directory):
        prepare(SETTINGS)
    return directory / "storage"


@pytest.fixture
def prepared(settings: dict[str, Any], once_prepared: Path) -> dict[str, Any]:
    """Settings whose 40 pairs are prepared already, in a storage of the test's own."""
    shutil.copytree(once_prepared, settings["storage"])
    return settings


def prepare(settings: dict[str, Any]) -> str:
    """The name of the newest padded_pairs."""
    return run_stages(load_settings(settings, {}))[Stage.PADDED].name


def leave_model(settings: dict[str, Any]) -> str:
    """What the schedule reads of a model that was trained on the newest pairs; their name."""
    storage = Path(settings["storage"])
    trained_on = str(json.loads((storage / Stage.PADDED / "latest.json").read_text())["snapshot"])
    manifest = {"key": "0123456789abcdef" * 4, "data_snapshot": trained_on, "files": {}, "metrics": {}, "versions": {}}
    write_json(storage / "reward_model" / "0123456789abcdef" / "manifest.json", manifest)
    write_json(storage / "reward_model" / "latest.json", {"snapshot": "0123456789abcdef"})
    return trained_on


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def tick(instance: dg.DagsterInstance) -> Callable[..., Any]:
    """The schedule, looked at with these settings, on a night."""

    def look(settings: dict[str, Any], night: datetime = NIGHT) -> Any:
        project = ProjectResource(**settings)
        with dg.build_schedule_context(
            instance=instance, scheduled_execution_time=night, resources={"project": project}
        ) as context:
            return nightly_training(context)

    return look


def test_it_is_off_until_someone_switches_it_on() -> None:
    assert nightly_training.default_status is dg.DefaultScheduleStatus.STOPPED
    assert nightly_training.job_name == "train_model"


def test_without_pairs_it_waits_and_without_a_model_it_trains(settings, tick) -> None:
    assert "there is nothing to train on: padded_pairs has no snapshot" in tick(settings).skip_message
    prepare(settings)
    assert isinstance(tick(settings), dg.RunRequest)
    assert "was made with other settings" in tick({**settings, "max_length": 512}).skip_message


def test_it_counts_the_pairs_that_changed_since_the_newest_model(prepared, tick) -> None:
    trained_on = leave_model(prepared)
    told = tick({**prepared, "train_after_pairs": 1}).skip_message
    assert f"0 pairs changed since the newest model was trained on padded_pairs {trained_on}" in told
    write_lines(Path(prepared["annotations"]) / "b.jsonl", [*polite_rows(47)[40:], *polite_rows(3)])
    prepare(prepared)
    assert "7 pairs changed" in tick({**prepared, "train_after_pairs": 8}).skip_message
    assert isinstance(tick({**prepared, "train_after_pairs": 7}), dg.RunRequest)


def test_a_model_whose_pairs_are_gone_is_no_reason_to_wait(prepared, tick) -> None:
    leave_model(prepared)
    write_lines(Path(prepared["annotations"]) / "b.jsonl", polite_rows(41)[40:])
    newer = prepare(prepared)
    for directory in (Path(prepared["storage"]) / "padded_pairs").glob("[0-9a-f]*"):
        if directory.name != newer:
            shutil.rmtree(directory)
    assert isinstance(tick(prepared), dg.RunRequest)


def test_a_night_has_one_training_and_the_next_night_another(prepared, tick) -> None:
    keys = [tick(prepared, night=NIGHT.replace(day=day)).run_key for day in (17, 17, 18)]
    assert keys[0] == keys[1] != keys[2]


def test_a_training_in_progress_is_not_joined_by_another(prepared, tick, instance) -> None:
    jobs = definitions()
    instance.create_run_for_job(jobs.resolve_job_def("refresh_data"), status=Status.STARTED)
    assert isinstance(tick(prepared), dg.RunRequest)
    job = jobs.resolve_job_def("everything")
    run = instance.create_run_for_job(job, status=Status.STARTED, tags=job.run_tags)
    assert tick(prepared).skip_message == f"run {run.run_id} is training"


def test_a_training_that_nobody_started_keeps_the_next_ones_back_for_minutes_only(
    prepared, tick, instance, monkeypatch
) -> None:
    """As a daemon leaves it that was killed between making a run and launching it."""
    job = definitions().resolve_job_def("train_model")
    run = instance.create_run_for_job(job, status=Status.NOT_STARTED, tags=job.run_tags)
    assert tick(prepared).skip_message == f"run {run.run_id} is training"
    present = time.time()
    monkeypatch.setattr(time, "time", lambda: present + 601)
    assert isinstance(tick(prepared), dg.RunRequest)
    run = instance.create_run_for_job(job, status=Status.STARTING, tags=job.run_tags)
    assert tick(prepared).skip_message == f"run {run.run_id} is training"
