"""The sensor for new annotations: what it asks for, what it waits for, and what it does not ask for twice."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster import DagsterRunStatus as Status
from real_runs import Site
from support import QUICK, age, plain_row, polite_rows, run_stages, silent, write_lines

from rm_assets.data.sources import content_version as listing_module
from rm_assets.data.sources.content_version import content_listing
from rm_assets.data.stages.raw import files_to_read, publish_raw
from rm_assets.data.stages.rejects import publish_rejects
from rm_assets.data.tables.schemas import Stage
from rm_assets.definitions import definitions
from rm_assets.defs.automation.arrival import CONTENT_TAG, FILES_TAG, new_annotations, published_version
from rm_assets.defs.automation.jobs import refresh_data
from rm_assets.defs.project import ProjectResource
from rm_assets.settings import Settings, SettingsError


class Desk:
    """A directory of annotations, a Dagster instance without a daemon, and the sensor between them."""

    def __init__(self, directory: Path, instance: dg.DagsterInstance) -> None:
        self.annotations = directory / "annotations"
        self.annotations.mkdir()
        self.settings: dict[str, Any] = {
            "annotations": str(self.annotations), "storage": str(directory / "storage"), "arrival_seconds": 30, **QUICK,
        }  # fmt: skip
        self.instance = instance

    def drop(self, name: str, rows: list[object]) -> None:
        """A file that has stood still for years."""
        write_lines(self.annotations / name, rows)
        age(self.annotations)

    def tick(self) -> dg.RunRequest | dg.SkipReason:
        project = ProjectResource(**self.settings)
        with dg.build_sensor_context(instance=self.instance, resources={"project": project}) as context:
            found = new_annotations(context)
        assert isinstance(found, dg.RunRequest | dg.SkipReason)
        return found

    def request(self) -> dg.RunRequest:
        request = self.tick()
        assert isinstance(request, dg.RunRequest), request
        return request

    def reason(self) -> str:
        result = self.tick()
        assert isinstance(result, dg.SkipReason), result
        return result.skip_message or ""

    def make_run(self, request: dg.RunRequest, status: Status, **tags: str) -> dg.DagsterRun:
        """What the daemon makes of a request, as far as it came."""
        job = definitions().resolve_job_def(refresh_data.name)
        named = {**request.tags, "dagster/run_key": str(request.run_key), **tags}
        return self.instance.create_run_for_job(job, status=status, tags=named)

    def refresh(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        job = definitions().resolve_job_def(refresh_data.name)
        return job.execute_in_process(
            instance=self.instance,
            tags={**request.tags, "dagster/run_key": str(request.run_key)},
            run_config={"resources": {"project": {"config": self.settings}}},
            raise_on_error=False,
        )


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, dg.DagsterInstance.ephemeral())


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets the clock that the sensor reads be so many seconds ahead."""
    import time

    present = time.time

    def shift(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: present() + seconds)

    return shift


def test_it_is_off_until_someone_switches_it_on() -> None:
    assert new_annotations.default_status is dg.DefaultSensorStatus.STOPPED
    assert new_annotations.minimum_interval_seconds == 30
    assert new_annotations.job_name == refresh_data.name


def test_one_content_is_asked_for_once_and_new_content_again(desk: Desk) -> None:
    desk.drop("a.jsonl", polite_rows(40))
    first = desk.request()
    assert desk.refresh(first).success
    assert "nothing new: the data was made from these 1 files" in desk.reason()
    (desk.annotations / "old.xlsx").touch()
    assert desk.reason().endswith("1 files; 'old.xlsx' is not read: save it as CSV in UTF-8")
    os.utime(desk.annotations / "a.jsonl", (1.5e9, 1.5e9))
    assert "nothing new" in desk.reason()
    desk.drop("b.jsonl", polite_rows(50)[40:])
    second = desk.request()
    assert second.run_key != first.run_key
    assert second.tags[CONTENT_TAG] != first.tags[CONTENT_TAG]
    assert desk.refresh(second).success
    assert "these 2 files" in desk.reason()


def test_contents_that_come_back_are_asked_for_under_a_key_of_their_own(desk: Desk) -> None:
    """A key that Dagster has seen is never run again, and what the data were made from is not what lies there now."""
    desk.drop("a.jsonl", polite_rows(40))
    first = desk.request()
    assert desk.refresh(first).success
    desk.drop("b.jsonl", polite_rows(50)[40:])
    assert desk.refresh(desk.request()).success
    (desk.annotations / "b.jsonl").unlink()
    again = desk.request()
    assert again.tags[CONTENT_TAG] == first.tags[CONTENT_TAG]
    assert again.run_key != first.run_key
    assert desk.refresh(again).success
    assert "nothing new" in desk.reason()


def test_what_a_run_by_hand_refreshed_is_not_asked_for(desk: Desk) -> None:
    desk.drop("a.jsonl", polite_rows(40))
    assert desk.refresh(dg.RunRequest()).success
    assert "nothing new" in desk.reason()


def test_a_refresh_observes_the_version_that_it_was_asked_for_and_reads_it(desk: Desk) -> None:
    desk.drop("a.jsonl", polite_rows(40))
    request = desk.request()
    result = desk.refresh(request)
    [seen] = desk.instance.fetch_observations(dg.AssetKey("annotation_files"), limit=5).records
    assert seen.asset_observation and seen.asset_observation.metadata["num_files"].value == 1
    [read] = result.asset_materializations_for_node("raw_preferences")
    assert read.metadata["content_version"].value == request.tags[CONTENT_TAG]
    assert seen.asset_observation.tags["dagster/data_version"] == request.tags[CONTENT_TAG]
    assert (read.tags or {})["dagster/input_data_version/annotation_files"] == request.tags[CONTENT_TAG]


def test_the_tag_of_a_run_counts_the_files_that_are_new_changed_and_gone(desk: Desk) -> None:
    for name in ("a", "b", "c"):
        desk.drop(f"{name}.jsonl", [plain_row(ord(name))])
    first = desk.request()
    assert first.tags[FILES_TAG] == "+3"
    assert desk.refresh(first).success
    desk.drop("a.jsonl", [plain_row(1), plain_row(2)])
    (desk.annotations / "b.jsonl").unlink()
    for name in ("d", "e"):
        desk.drop(f"{name}.jsonl", [plain_row(ord(name))])
    second = desk.request()
    assert second.tags[FILES_TAG] == "+2 ~1 -1"
    publish_raw(Settings(**{name: desk.settings[name] for name in ("annotations", "storage")}), silent)
    assert FILES_TAG not in desk.request().tags  # read already, by a run that went no further


# --- waiting -------------------------------------------------------------------------------------------------


def test_a_file_that_is_being_written_is_waited_for_by_name(desk: Desk, later: Callable[[float], None]) -> None:
    desk.drop("a.jsonl", polite_rows(40))
    write_lines(desk.annotations / "b.jsonl", polite_rows(3))
    assert desk.reason() == "waiting until 'b.jsonl' stops changing"
    later(31)
    assert desk.request().tags[CONTENT_TAG]


def test_hashing_that_takes_longer_than_a_tick_goes_on_in_the_next(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from rm_assets.defs.automation import arrival

    monkeypatch.setattr(arrival, "_HASHING_SECONDS", 0.0)
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        desk.drop(name, polite_rows(3))
    assert desk.reason() == "still hashing 'b.jsonl' (and 1 more files): the next tick continues"
    assert desk.reason() == "still hashing 'c.jsonl': the next tick continues"
    desk.request()


@pytest.mark.parametrize("status", [Status.STARTING, Status.STARTED, Status.CANCELING])
def test_there_are_never_two_refreshes_at_once(desk: Desk, status: Status) -> None:
    desk.drop("a.jsonl", polite_rows(40))
    run = desk.make_run(desk.request(), status)
    desk.drop("b.jsonl", polite_rows(50)[40:])
    assert run.run_id in desk.reason()


def test_a_run_of_other_assets_keeps_nobody_waiting(desk: Desk) -> None:
    desk.drop("a.jsonl", polite_rows(40))
    desk.instance.create_run_for_job(definitions().resolve_job_def("train_model"), status=Status.STARTED)
    desk.request()
    whole = definitions().resolve_job_def("everything")
    run = desk.instance.create_run_for_job(whole, status=Status.STARTED)
    assert f"run {run.run_id} of everything is in progress" in desk.reason()


# --- failures ------------------------------------------------------------------------------------------------


def test_a_failed_refresh_is_asked_for_again_later_and_not_for_ever(desk: Desk, later: Callable[[float], None]) -> None:
    desk.drop("a.jsonl", polite_rows(40))
    keys = []
    for seconds in (0, 61, 61 + 121):
        later(seconds)
        request = desk.request()
        keys.append(request.run_key)
        run = desk.make_run(request, Status.FAILURE)
        assert run.run_id in desk.reason()
    assert len(set(keys)) == 3
    later(1e6)
    assert "3 runs for these files did not refresh the data" in desk.reason()
    desk.drop("b.jsonl", polite_rows(50)[40:])
    assert desk.request().run_key not in keys


def test_a_failed_refresh_is_asked_for_again_also_where_the_clock_was_set_back(
    desk: Desk, later: Callable[[float], None]
) -> None:
    desk.drop("a.jsonl", polite_rows(40))
    desk.make_run(desk.request(), Status.FAILURE)
    later(-86400)
    desk.request()


def test_a_run_that_dagster_starts_once_more_is_not_asked_for_meanwhile(
    tmp_path: Path, later: Callable[[float], None]
) -> None:
    """A killed run is repeated by Dagster's daemon, which looks every few seconds."""
    with Site(tmp_path / "site").instance() as instance:
        desk = Desk(tmp_path, instance)
        desk.settings["arrival_seconds"] = 1
        desk.drop("a.jsonl", polite_rows(40))
        run = desk.make_run(desk.request(), Status.STARTED, **(refresh_data.tags or {}))
        instance.report_run_failed(run)
        repeated = instance.get_run_by_id(run.run_id)
        assert repeated is not None and repeated.tags["dagster/will_retry"] == "true"
        later(20)
        assert run.run_id in desk.reason()
        later(61)  # the daemon has not done it, and nothing may be lost
        desk.request()


@pytest.mark.parametrize("deleted", [[0], [1], [0, 1]])
def test_a_key_is_never_that_of_another_run_also_where_runs_were_deleted(
    desk: Desk, later: Callable[[float], None], deleted: list[int]
) -> None:
    """Dagster would skip such a request without a word, at each tick anew."""
    desk.drop("a.jsonl", polite_rows(40))
    runs = []
    for seconds in (0, 61):
        later(seconds)
        runs.append(desk.make_run(desk.request(), Status.FAILURE))
    for number in deleted:
        desk.instance.delete_run(runs[number].run_id)
    later(61 + 121)
    key = desk.request().run_key
    assert not desk.instance.get_runs(dg.RunsFilter(tags={"dagster/run_key": str(key)}))


def test_a_refresh_that_stopped_half_way_is_not_taken_for_done(desk: Desk, later: Callable[[float], None]) -> None:
    desk.drop("a.jsonl", polite_rows(40))
    desk.settings["chat_template"] = "nowhere.jinja"
    request = desk.request()
    assert not desk.refresh(request).success
    assert "did not refresh the data: it is requested again" in desk.reason()
    del desk.settings["chat_template"]
    later(61)
    assert desk.refresh(desk.request()).success
    later(62)
    assert "nothing new" in desk.reason()


def test_runs_that_succeed_elsewhere_do_not_make_an_endless_row(desk: Desk, later: Callable[[float], None]) -> None:
    """As where runs see other files than the sensor does: then no run ever publishes what the sensor sees."""
    desk.drop("a.jsonl", polite_rows(40))
    for seconds in (0, 61, 61 + 121):
        later(seconds)
        desk.make_run(desk.request(), Status.SUCCESS)
    later(1e6)
    assert "3 runs" in desk.reason()


def test_a_cancelled_refresh_stays_cancelled_until_more_arrives(desk: Desk, later: Callable[[float], None]) -> None:
    desk.drop("a.jsonl", polite_rows(40))
    desk.make_run(desk.request(), Status.CANCELED)
    later(1e6)
    assert "was cancelled: launch refresh_data by hand" in desk.reason()
    desk.drop("b.jsonl", polite_rows(50)[40:])
    desk.request()


def test_a_run_that_a_killed_daemon_made_and_never_started_is_started(desk: Desk) -> None:
    """Dagster starts a NOT_STARTED run whose key is asked for once more; a new key would leave it lying."""
    desk.drop("a.jsonl", polite_rows(40))
    request = desk.request()
    desk.make_run(request, Status.NOT_STARTED)
    assert desk.request().run_key == request.run_key


# --- what cannot be looked at --------------------------------------------------------------------------------


def test_the_sample_and_an_empty_directory_are_no_errors(desk: Desk) -> None:
    assert "nothing has arrived yet: annotations (or RM_ANNOTATIONS) is" in desk.reason()
    del desk.settings["annotations"]
    assert "the built-in sample never changes: set RM_ANNOTATIONS" in desk.reason()


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("annotations", "nowhere/", "there is no such file or directory"),
        ("max_length", 1, r"max_length \(or RM_MAX_LENGTH\) is 1"),
    ],
)
def test_a_setting_that_cannot_be_used_fails_the_tick(desk: Desk, setting: str, value: object, problem: str) -> None:
    """In red, where a skipped tick would look like nothing to do."""
    desk.drop("a.jsonl", polite_rows(3))
    desk.settings[setting] = value
    with pytest.raises(SettingsError, match=problem):
        desk.tick()


def test_the_interval_is_arrival_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from rm_assets.defs.automation.arrival import _interval

    monkeypatch.setenv("RM_ARRIVAL_SECONDS", "7")
    assert _interval() == 7
    monkeypatch.setenv("RM_ARRIVAL_SECONDS", "soon")
    assert _interval() == 30


def test_a_tick_opens_no_file_that_it_knows(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        write_lines(desk.annotations / f"{number}.jsonl", polite_rows(number + 1)[-1:])
    age(desk.annotations)
    assert desk.refresh(desk.request()).success
    monkeypatch.setattr(listing_module, "open_annotation_file", lambda path: pytest.fail(f"{path} was opened"))
    assert "these 30 files" in desk.reason()


def test_the_data_know_which_listing_they_were_made_from(tmp_path: Path) -> None:
    settings = Settings(annotations=str(tmp_path / "annotations"), storage=str(tmp_path / "storage"))
    storage = tmp_path / "storage"

    def version() -> str | None:
        return content_listing(files_to_read(settings)[1], storage).version

    for name in ("a", "b"):
        write_lines(tmp_path / "annotations" / f"{name}.jsonl", [plain_row(ord(name))])
    assert published_version(storage) is None
    stages = run_stages(settings)
    assert published_version(storage) is None  # the last asset is missing
    publish_rejects(settings, stages, silent)
    assert published_version(storage) == version()
    write_lines(tmp_path / "annotations" / "c.jsonl", [plain_row(3)])
    publish_raw(settings, silent)
    assert published_version(storage) is None  # the stages after it were not run
    stages = run_stages(settings)
    publish_rejects(settings, stages, silent)
    assert published_version(storage) == version()
    assert stages[Stage.RAW].manifest.num_rows() == 3
