"""Which results of a training count, and which unfinished trainings are kept."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from s3 import s3_server
from support import age, plain_row, polite_rows, run_stages, write_lines

from rm_assets.data.chat.model_files import find_tokenizer, toy_model
from rm_assets.data.storage import publication
from rm_assets.data.storage.files import file_sizes
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.retention import remove_old_snapshots, unfinished_trainings
from rm_assets.data.storage.snapshots import Snapshot, SnapshotError, latest_snapshot
from rm_assets.data.storage.writing import upload, write_json
from rm_assets.data.tables.schemas import Stage
from rm_assets.definitions import definitions
from rm_assets.defs.launchers.resource import AssetRun, TrainingFailedError, TrainingLauncher
from rm_assets.defs.project import Project, ProjectResource
from rm_assets.defs.snapshots.models import (
    ASSET,
    ModelSnapshot,
    _interrupted_training,
    model_key,
    model_snapshot,
    newest_model,
    required_model,
    train_or_load_model,
    training_job,
    training_steps,
)
from rm_assets.defs.snapshots.promotions import _champion
from rm_assets.defs.snapshots.reports import _read_history
from rm_assets.defs.snapshots.unfinished import descriptions, remove_old_trainings
from rm_assets.settings import SAMPLE, Settings
from rm_assets.training.jobs.result import TrainingResultError, read_result, result_files


class LyingLauncher(TrainingLauncher):
    """A job that says it is done: it exits with 0, having left what `lie` says."""

    lie: str
    model: str

    def run(self, context: dg.AssetExecutionContext, job_path: Path, settings: Settings, module: str = "") -> None:
        job = json.loads(job_path.read_text())
        output = Path(job["output_directory"])
        if self.lie == "nothing":
            return
        shutil.copytree(self.model, output, dirs_exist_ok=True)
        manifest = json.loads((output / "manifest.json").read_text())
        manifest["key"] = job["key"] if self.lie != "the model of another job" else manifest["key"]
        (output / "manifest.json").write_text(json.dumps(manifest))
        if self.lie == "a changed weight":
            weights = output / "model" / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
        if self.lie == "a manifest cut short":
            (output / "manifest.json").write_text(json.dumps(manifest)[:-9])


@pytest.mark.parametrize(
    ("lie", "complaint"),
    [
        ("nothing", "no manifest.json in"),
        ("the model of another job", "it belongs to another job"),
        ("a changed weight", "model.safetensors' has the sha256"),
        ("a manifest cut short", "is damaged"),
    ],
)
def test_exit_code_0_without_a_result_that_proves_true_is_a_failure(
    first_run: tuple[dict[str, Any], Any], tmp_path: Path, lie: str, complaint: str
) -> None:
    settings, _ = first_run
    storage = tmp_path / "storage"
    shutil.copytree(settings["storage"], storage)
    home = storage / "reward_model"
    model = shutil.move(home / json.loads((home / "latest.json").read_text())["snapshot"], tmp_path / "model")
    (home / "latest.json").unlink()
    loaded = definitions()
    resources = {**loaded.resources, "launcher": LyingLauncher(lie=lie, model=str(model))}
    result = dg.materialize(
        list(loaded.assets or []),
        selection="reward_model",
        resources=resources,
        run_config={"resources": {"project": {"config": {**settings, "storage": str(storage), "epochs": 2}}}},
        raise_on_error=False,
    )
    assert not result.success
    [failure] = result.get_step_failure_events()
    assert complaint in failure.step_failure_data.error_display_string
    assert not (home / "latest.json").exists()


def test_a_training_of_several_machines_is_started_by_hand_and_published_by_the_next_run(
    first_run: tuple[dict[str, Any], Any], tmp_path: Path
) -> None:
    settings = {**first_run[0], "storage": str(tmp_path / "storage"), "num_nodes": 2, "seed": 7}
    shutil.copytree(first_run[0]["storage"], tmp_path / "storage")
    loaded = definitions()

    def materialize() -> dg.ExecuteInProcessResult:
        return dg.materialize(
            list(loaded.assets or []),
            selection="reward_model",
            resources=loaded.resources,
            run_config={"resources": {"project": {"config": settings}}},
            raise_on_error=False,
        )

    [failure] = materialize().get_step_failure_events()
    told = failure.step_failure_data.error_display_string
    named = re.search(r"torchrun --nnodes=2 --nproc-per-node=1 .* (-m rm_assets.training (.*)\.json)", told)
    assert named, told
    subprocess.run([sys.executable, *named[1].split()], check=True, capture_output=True)  # one process stands for two
    assert materialize().success
    assert required_model(tmp_path / "storage").directory.name == Path(named[2]).name


def test_unfinished_trainings_are_kept_while_they_have_a_checkpoint_and_are_among_the_newest(tmp_path: Path) -> None:
    new, older, oldest, empty = (digit * 16 for digit in "abcd")
    for days, name in enumerate([new, older, oldest, empty]):
        (tmp_path / ".training" / name / "checkpoints").mkdir(parents=True)
        if name != empty:
            checkpoint = tmp_path / ".training" / name / "checkpoints" / f"step-00000001-{name}"
            checkpoint.mkdir()
            (checkpoint / "process-0.safetensors").write_bytes(b"weights")
        description = tmp_path / ".training" / f"{name}.json"
        description.write_text(json.dumps({"key": name * 4, "data_snapshot": "0" * 16}))
        os.utime(description, (2_000_000_000 - days, 2_000_000_000 - days))
    foreign = ["e" * 16, "notes", f"{oldest}/notes", f"{oldest}/checkpoints/notes", f"{new}.txt"]
    for name in foreign[:-1]:
        (tmp_path / ".training" / name).mkdir()
        (tmp_path / ".training" / name / "mine.txt").write_text("mine")
    (tmp_path / ".training" / foreign[-1]).write_text("mine")
    said: list[str] = []
    remove_old_trainings(tmp_path, 2, said.append)
    left = {path.relative_to(tmp_path / ".training").as_posix() for path in (tmp_path / ".training").rglob("*")}
    assert {name for name in left if name.endswith(".json")} == {f"{new}.json", f"{older}.json"}
    assert {name for name in left if name.startswith((oldest, empty))} == {
        oldest,
        f"{oldest}/notes",
        f"{oldest}/notes/mine.txt",
        f"{oldest}/checkpoints",
        f"{oldest}/checkpoints/notes",
        f"{oldest}/checkpoints/notes/mine.txt",
    }
    assert {*foreign, *(f"{name}/mine.txt" for name in foreign[:-1])} <= left
    assert said == [f"removing the unfinished training {oldest}: 2 newer ones are kept"]


def test_a_saved_model_carries_its_template_with_the_date_that_its_pairs_were_rendered_with(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(SAMPLE / "tokenizer", tokenizer)
    template = (tokenizer / "chat_template.jinja").read_text()
    (tokenizer / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}" + template)
    write_lines(tmp_path / "annotations" / "a.jsonl", [plain_row(number) for number in range(20)])
    paths = {"annotations": str(tmp_path / "annotations"), "storage": str(tmp_path / "storage")}
    project = ProjectResource(tokenizer=str(tokenizer), template_date="2019-05-04", **paths).ready()
    pairs = run_stages(project.settings)[Stage.PADDED]
    carried = training_job(project, pairs, "key", tmp_path).chat_template
    assert "2019" in carried
    assert carried.endswith(template)
    undated = dataclasses.replace(project, tokenizer=find_tokenizer(Settings()))
    assert training_job(undated, pairs, "key", tmp_path).chat_template is None


# --- damaged files -------------------------------------------------------------------------------------------

DAMAGED = [b"", b"{", b"{}", b"[]", b"null", b"\xff\x00", b'{"snapshot": 5}', b'{"snapshot": "../x"}']


def model_at(storage: Path, name: str, **changes: Any) -> Path:
    """A model directory of one file that proves true."""
    directory = storage / "reward_model" / name
    (directory / "model").mkdir(parents=True)
    (directory / "model" / "config.json").write_text("{}")
    files = {"model/config.json": hashlib.sha256(b"{}").hexdigest()}
    manifest = {"key": name * 4, "data_snapshot": "d" * 16, "files": files, "metrics": {}, "versions": {}}
    (directory / "manifest.json").write_text(json.dumps(manifest | changes))
    return directory


@pytest.mark.parametrize("content", [*DAMAGED, json.dumps({"snapshot": "b" * 16}).encode()])
def test_a_damaged_latest_file_of_the_models_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    model_at(tmp_path, "a" * 16)
    latest = tmp_path / "reward_model" / "latest.json"
    latest.write_text(json.dumps({"snapshot": "a" * 16}))
    assert required_model(tmp_path).key == "a" * 64
    latest.write_bytes(content)
    assert newest_model(tmp_path) is None
    with pytest.raises(SnapshotError, match="materialize reward_model first"):
        required_model(tmp_path)


@pytest.mark.parametrize("content", [*DAMAGED, {"files": ["a"]}, {"files": {"a": 5}}, {"metrics": []}, {"key": None}])
def test_a_damaged_manifest_of_a_model_is_named_with_the_way_on(
    tmp_path: Path, content: bytes | dict[str, Any]
) -> None:
    directory = model_at(tmp_path, "a" * 16, **(content if isinstance(content, dict) else {}))
    if isinstance(content, bytes):
        (directory / "manifest.json").write_bytes(content)
    (tmp_path / "reward_model" / "latest.json").write_text(json.dumps({"snapshot": "a" * 16}))
    told = re.escape(f"{str(directory / 'manifest.json')!r} is damaged (") + ".*: remove the directory and train again"
    for read in (required_model, lambda storage: model_snapshot(storage, "a" * 16)):
        with pytest.raises(SnapshotError, match=told):
            read(tmp_path)
    with pytest.raises(TrainingResultError, match=told):
        read_result(directory, "a" * 64)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a\0b", ""])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    directory = model_at(tmp_path, "a" * 16, files={name: "0" * 64})
    with pytest.raises(TrainingResultError, match="which is outside"):
        read_result(directory, "a" * 64)


@pytest.mark.parametrize("content", [b"{", b"[]\n", b"5\n", b"\xff\n", None])
def test_damaged_curves_of_a_model_are_named_with_the_way_on(tmp_path: Path, content: bytes | None) -> None:
    directory = model_at(tmp_path, "a" * 16)
    (directory / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "loss": 0.5}\n')
    model = model_snapshot(tmp_path, "a" * 16)
    assert training_steps(model) == [{"step": 1}, {"step": 2, "loss": 0.5}]
    (directory / "metrics.jsonl").unlink()
    if content is not None:
        (directory / "metrics.jsonl").write_bytes(content)
    with pytest.raises(
        SnapshotError, match=r"metrics\.jsonl' cannot be read .*: materialize reward_model, which retrains"
    ):
        training_steps(model)


def test_curves_of_a_model_that_lost_a_line_are_damaged(tmp_path: Path) -> None:
    content = b'{"step": 1}\n{"step": 2}\n'
    directory = model_at(tmp_path, "a" * 16, files={"metrics.jsonl": hashlib.sha256(content).hexdigest()})
    (directory / "metrics.jsonl").write_bytes(content)
    model = model_snapshot(tmp_path, "a" * 16)
    assert training_steps(model) == [{"step": 1}, {"step": 2}]
    (directory / "metrics.jsonl").write_bytes(content[12:])
    with pytest.raises(
        SnapshotError, match=r"metrics\.jsonl' cannot be read \(its sha256 is \w+, not \w+\): materialize"
    ):
        training_steps(model)


@pytest.mark.parametrize("content", [b"", b"{}", b"[5]", b"[{}]", b'[{"model": 5}]', b"\xff"])
def test_a_damaged_history_of_reports_is_named_and_not_lost(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "history.json"
    assert _read_history(path) == []
    path.write_bytes(content)
    with pytest.raises(
        SnapshotError, match=r"history\.json' cannot be read .*: restore it, or remove it to begin a new"
    ):
        _read_history(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content", [*DAMAGED, b'{"key": 5, "data_snapshot": "x"}', b'{"key": "x", "data_snapshot": []}']
)
def test_damaged_descriptions_of_trainings_are_passed_over_and_left(tmp_path: Path, content: bytes) -> None:
    training = tmp_path / ".training"
    training.mkdir()
    (training / f"{'a' * 16}.json").write_bytes(content)
    (training / f"{'b' * 16}.json").write_text(json.dumps({"key": "b" * 64, "data_snapshot": "d" * 16}))
    assert [description.key for description in descriptions(tmp_path)] == ["b" * 64]
    remove_old_trainings(tmp_path, 1, print)
    assert [path.read_bytes() for path in training.iterdir()] == [content]


# --- models that others read, and what is not ours -----------------------------------------------------------


def test_older_models_are_removed_but_for_what_is_read_needed_or_not_ours(tmp_path: Path) -> None:
    home = tmp_path / "reward_model"
    old, read, needed, current = (model_at(tmp_path, digit * 16) for digit in "1234")
    foreign = model_at(tmp_path, "5" * 16, key="of another program")
    (old / "model" / "notes.txt").write_text("mine")
    (old / "tensorboard").mkdir()
    (old / "tensorboard" / "events.out.tfevents.1").write_text("ours")
    held = model_snapshot(tmp_path, read.name)
    write_json(home.parent / "promoted_reward_model" / ("6" * 16) / "manifest.json", {"inputs": {ASSET: needed.name}})
    remove_old_snapshots(home, current, 1, result_files)
    assert [path.relative_to(old).as_posix() for path in old.rglob("*")] == ["model", "model/notes.txt"]
    assert all((path / "manifest.json").exists() for path in (read, needed, current, foreign))
    del held
    remove_old_snapshots(home, current, 1, result_files)
    assert not read.exists()
    assert all((path / "manifest.json").exists() for path in (needed, current, foreign))


class FailingLauncher(TrainingLauncher):
    """A job that ends without a result."""

    def run(self, *arguments: Any, **options: Any) -> None:
        raise TrainingFailedError("out of memory")


@pytest.mark.parametrize("damaged", ["model/README.md", "model/model.safetensors", "manifest.json"])
def test_a_damaged_model_stays_until_another_has_taken_its_place(
    first_run: tuple[dict[str, Any], Any], tmp_path: Path, damaged: str
) -> None:
    settings, _ = first_run
    storage = tmp_path / "storage"
    shutil.copytree(settings["storage"], storage)
    project = ProjectResource(**{**settings, "storage": str(storage)}).ready()
    pairs, directory = latest_snapshot(storage, Stage.PADDED), required_model(storage).directory
    assert pairs is not None
    whole = Path(shutil.copytree(directory, tmp_path / "whole"))
    (directory / damaged).write_bytes((directory / damaged).read_bytes()[:-1] + b"!")
    (directory / "model" / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(TrainingFailedError):
        train_or_load_model(AssetRun(project, dg.build_asset_context(), FailingLauncher()), pairs)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    train_or_load_model(AssetRun(project, dg.build_asset_context(), LyingLauncher(lie="", model=str(whole))), pairs)
    shutil.copy(directory / "model" / "notes.txt", whole / "model")
    (whole / "manifest.json").write_text(json.dumps(json.loads((whole / "manifest.json").read_text())))
    after = {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert after == {path.relative_to(whole): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert not (storage / "reward_model" / ".training").exists() or not list(
        (storage / "reward_model" / ".training").iterdir()
    )


# --- an upload that was killed -------------------------------------------------------------------------------


class NoLauncher(TrainingLauncher):
    """Nothing is to be trained."""

    def run(self, *arguments: Any, **options: Any) -> None:
        raise AssertionError("a training was launched")


class KilledError(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("num_sent", [0, 3])
def test_an_upload_that_was_killed_goes_on_from_the_finished_training(
    first_run: tuple[dict[str, Any], Any], monkeypatch: pytest.MonkeyPatch, num_sent: int
) -> None:
    settings, _ = first_run
    trained = required_model(Path(settings["storage"])).directory
    pairs = latest_snapshot(Path(settings["storage"]), Stage.PADDED)
    assert pairs is not None
    with s3_server() as bucket:
        project = ProjectResource(**{**settings, "storage": f"{bucket}/team", "epochs": 3}).ready()
        home, key = project.storage / "reward_model", model_key(project, pairs)
        working = unfinished_trainings(home) / key[:16]
        shutil.copytree(trained, working)
        manifest = json.loads((working / "manifest.json").read_text())
        (working / "manifest.json").write_text(json.dumps(manifest | {"key": key}))
        (working / "notes.txt").write_text("mine")
        write_json(working.with_suffix(".json"), {"key": key, "data_snapshot": pairs.name})

        def killed(origin: Path, target: Path, names: Any) -> None:
            upload(origin, target, sorted({*names} - {"manifest.json"})[:num_sent])
            raise KilledError

        def train() -> ModelSnapshot:
            return train_or_load_model(AssetRun(project, dg.build_asset_context(), NoLauncher()), pairs)

        with monkeypatch.context() as patch, pytest.raises(KilledError):
            patch.setattr(publication, "upload", killed)
            train()
        assert newest_model(project.storage) is None
        if num_sent:
            with monkeypatch.context() as patch:
                patch.setenv("XDG_CACHE_HOME", f"{os.environ['XDG_CACHE_HOME']}/of another machine")
                with pytest.raises(
                    SnapshotError, match=r"is unfinished in the storage: .* run again later, or remove it"
                ):
                    train()
        model = train()
        assert read_result(home / key[:16], key) == model.manifest == manifest | {"key": key}
        assert required_model(project.storage).key == key
        assert {name.split("/")[0] for name in file_sizes(home)} == {key[:16], "latest.json"}
        assert [path.relative_to(working).as_posix() for path in working.rglob("*")] == ["notes.txt"]
        assert not train().trained_now


def test_a_job_is_told_the_hash_of_each_file_that_it_reads(tmp_path: Path) -> None:
    write_lines(tmp_path / "annotations" / "a.jsonl", [plain_row(number) for number in range(20)])
    paths = {"annotations": str(tmp_path / "annotations"), "storage": str(tmp_path / "storage")}
    project = ProjectResource(**paths).ready()
    described = training_job(project, run_stages(project.settings)[Stage.PADDED], "key", tmp_path)
    files = [Path(name) for names in described.splits.values() for name in names]
    assert len(files) > 1
    assert described.sha256 == {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("inputs", [{}, {"reward_model": ""}, {"reward_model": "../x"}])
def test_a_promoted_snapshot_that_names_no_champion_is_an_error_and_no_new_promotion(
    tmp_path: Path, inputs: dict[str, str]
) -> None:
    with open_publication(tmp_path, "promoted_reward_model", 3, print) as publication:
        before = publication.publish([], inputs, {})
    with pytest.raises(
        SnapshotError, match=r"manifest\.json' names .*, which is not a snapshot of reward_model: restore it"
    ):
        _champion(before)


# --- interrupted trainings -----------------------------------------------------------------------------------


SPLITS: dict[str, Any] = {"test_fraction": 0.2, "validation_fraction": 0.1}


def padded_of(storage: Path, rows: list[Any]) -> Snapshot:
    annotations = write_lines(storage.parent / "in" / "a.jsonl", rows)
    age(annotations.parent)
    return run_stages(Settings(annotations=str(annotations), storage=str(storage), **SPLITS))[Stage.PADDED]


@pytest.mark.parametrize(
    ("change", "is_finished"),
    [
        (lambda rows: [*rows, *polite_rows(50)[40:]], True),
        (lambda rows: list(reversed(rows)), True),
        (lambda rows: [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows], False),
        (lambda rows: [*(row | {"chosen": "Another."} for row in rows[:10]), *rows[10:]], False),
        (lambda rows: [*rows[10:], *polite_rows(60)[40:]], False),
        (lambda rows: [row | {"margin": 2.0} for row in rows], False),
    ],
    ids=["rows added", "rows moved", "labels turned", "rows edited", "rows replaced", "margins changed"],
)
def test_an_interrupted_training_is_finished_only_if_all_its_pairs_are_among_todays(
    tmp_path: Path, change: Any, is_finished: bool
) -> None:
    settings = Settings(storage=str(tmp_path / "storage"), **SPLITS)
    tokenizer = find_tokenizer(settings)
    project = Project(settings=settings, tokenizer=tokenizer, model=toy_model(tokenizer))
    rows: list[Any] = polite_rows(40)
    before = padded_of(tmp_path / "storage", rows)
    key = model_key(project, before)
    training = tmp_path / "storage" / "reward_model" / ".training"
    (training / key[:16] / "checkpoints" / "step-00000001-0123456789abcdef").mkdir(parents=True)
    (training / f"{key[:16]}.json").write_text(json.dumps({"key": key, "data_snapshot": before.name}))
    today = padded_of(tmp_path / "storage", change(rows))
    told: list[str] = []
    run: Any = SimpleNamespace(project=project, log=SimpleNamespace(warning=told.append))
    found = _interrupted_training(run, today)
    if is_finished:
        assert found is not None and found.name == before.name
        assert told == []
    else:
        assert found is None
        [line] = told
        assert line.startswith(f"setting aside the interrupted training on padded_pairs {before.name}: ")
        assert line.endswith(f"python -m rm_assets.training {training / key[:16]}.json")
