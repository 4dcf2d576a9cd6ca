"""Which results of a training count, and which unfinished trainings are kept."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from support import plain_row, run_stages, write_lines

from rm_assets.data.model_files import find_tokenizer
from rm_assets.data.records import Stage
from rm_assets.definitions import definitions
from rm_assets.defs.launcher import TrainingLauncher
from rm_assets.defs.model_snapshots import remove_old_trainings, training_job
from rm_assets.defs.project import ProjectResource
from rm_assets.settings import SAMPLE, Settings


class LyingLauncher(TrainingLauncher):
    """A job that says it is done: it exits with 0, having left what `lie` says."""

    lie: str
    model: str

    def run(self, context: dg.AssetExecutionContext, job_path: Path, settings: Settings) -> None:
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


def test_unfinished_trainings_are_kept_while_they_have_a_checkpoint_and_are_among_the_newest(tmp_path: Path) -> None:
    new, older, oldest, empty = (digit * 16 for digit in "abcd")
    for age, name in enumerate([new, older, oldest, empty]):
        (tmp_path / ".training" / name / "checkpoints").mkdir(parents=True)
        if name != empty:
            checkpoint = tmp_path / ".training" / name / "checkpoints" / f"step-00000001-{name}"
            checkpoint.mkdir()
            (checkpoint / "process-0.safetensors").write_bytes(b"weights")
        description = tmp_path / ".training" / f"{name}.json"
        description.write_text(json.dumps({"key": name * 4, "data_snapshot": "0" * 16}))
        os.utime(description, (2_000_000_000 - age, 2_000_000_000 - age))
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
    assert said == [f"the unfinished training {oldest} is removed: 2 newer ones stand"]


def test_a_saved_model_carries_its_template_with_the_date_that_its_pairs_were_rendered_with(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(SAMPLE / "tokenizer", tokenizer)
    template = (tokenizer / "chat_template.jinja").read_text()
    (tokenizer / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}" + template)
    write_lines(tmp_path / "annotations" / "a.jsonl", [plain_row(number) for number in range(20)])
    paths = {"annotations": str(tmp_path / "annotations"), "storage": str(tmp_path / "storage")}
    project = ProjectResource(tokenizer=str(tokenizer), template_date="2019-05-04", **paths).ready()
    pairs = run_stages(project.settings)[Stage.PADDED]
    carried = training_job(project, pairs, "key", tmp_path)["chat_template"]
    assert "2019" in carried
    assert carried.endswith(template)
    undated = dataclasses.replace(project, tokenizer=find_tokenizer(Settings()))
    assert training_job(undated, pairs, "key", tmp_path)["chat_template"] is None
