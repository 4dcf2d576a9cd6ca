"""The nightly schedule: it trains where enough pairs changed, and says why where it does not."""

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

from rm_assets.data.records import Stage
from rm_assets.data.storage import write_json
from rm_assets.definitions import definitions
from rm_assets.defs.nightly import nightly_training
from rm_assets.defs.project import ProjectResource
from rm_assets.settings_loading import load_settings

NIGHT = datetime(2031, 5, 17, 2, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Settings with 40 pairs to prepare."""
    write_lines(tmp_path / "annotations" / "a.jsonl", polite_rows(40))
    return {"annotations": str(tmp_path / "annotations"), "storage": str(tmp_path / "storage"), **QUICK}


def prepare(settings: dict[str, Any]) -> str:
    """The name of the newest padded_pairs."""
    return run_stages(load_settings(settings, {}))[Stage.PADDED].name


def leave_model(settings: dict[str, Any], data_snapshot: str) -> None:
    """What the schedule reads of a model that was trained on these pairs."""
    home = Path(settings["storage"]) / "reward_model"
    write_json(home / "0123456789abcdef" / "manifest.json", {"data_snapshot": data_snapshot})
    write_json(home / "latest.json", {"snapshot": "0123456789abcdef"})


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


def test_it_counts_the_pairs_that_changed_since_the_newest_model(settings, tick) -> None:
    leave_model(settings, trained_on := prepare(settings))
    told = tick({**settings, "train_after_pairs": 1}).skip_message
    assert f"0 pairs changed since the newest model was trained on padded_pairs {trained_on}" in told
    write_lines(Path(settings["annotations"]) / "b.jsonl", [*polite_rows(47)[40:], *polite_rows(3)])
    prepare(settings)
    assert "7 pairs changed" in tick({**settings, "train_after_pairs": 8}).skip_message
    assert isinstance(tick({**settings, "train_after_pairs": 7}), dg.RunRequest)


def test_a_model_whose_pairs_are_gone_is_no_reason_to_wait(settings, tick) -> None:
    leave_model(settings, prepare(settings))
    write_lines(Path(settings["annotations"]) / "b.jsonl", polite_rows(41)[40:])
    newer = prepare(settings)
    for directory in (Path(settings["storage"]) / "padded_pairs").glob("[0-9a-f]*"):
        if directory.name != newer:
            shutil.rmtree(directory)
    assert isinstance(tick(settings), dg.RunRequest)


def test_a_night_has_one_training_and_the_next_night_another(settings, tick) -> None:
    prepare(settings)
    keys = [tick(settings, night=NIGHT.replace(day=day)).run_key for day in (17, 17, 18)]
    assert keys[0] == keys[1] != keys[2]


def test_a_training_in_progress_is_not_joined_by_another(settings, tick, instance) -> None:
    prepare(settings)
    jobs = definitions()
    instance.create_run_for_job(jobs.resolve_job_def("refresh_data"), status=Status.STARTED)
    assert isinstance(tick(settings), dg.RunRequest)
    job = jobs.resolve_job_def("everything")
    run = instance.create_run_for_job(job, status=Status.STARTED, tags=job.run_tags)
    assert tick(settings).skip_message == f"run {run.run_id} is training"


def test_a_training_that_nobody_started_keeps_the_next_ones_back_for_minutes_only(
    settings, tick, instance, monkeypatch
) -> None:
    """As a daemon leaves it that was killed between making a run and launching it."""
    prepare(settings)
    job = definitions().resolve_job_def("train_model")
    run = instance.create_run_for_job(job, status=Status.NOT_STARTED, tags=job.run_tags)
    assert tick(settings).skip_message == f"run {run.run_id} is training"
    present = time.time()
    monkeypatch.setattr(time, "time", lambda: present + 601)
    assert isinstance(tick(settings), dg.RunRequest)
    run = instance.create_run_for_job(job, status=Status.STARTING, tags=job.run_tags)
    assert tick(settings).skip_message == f"run {run.run_id} is training"
