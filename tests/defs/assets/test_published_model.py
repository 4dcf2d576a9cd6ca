"""The promoted model and its annotations on a Hub: what is there, and what a run shows, sends again and refuses."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_repositories import TOKEN, Repositories, hub_repositories
from s3 import s3_server

from rm_assets.data.storage.files import resolve_path
from rm_assets.data.storage.writing import upload
from rm_assets.training.jobs.lineage import lineage_of

ASSET = "published_reward_model"
MODEL, DATA = "me/rm", "me/preferences"
SETTINGS = {"publish_model_to": MODEL, "publish_data_to": DATA, "publish_license": "apache-2.0"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repositories]:
    with hub_repositories(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def settings(first_run: tuple[dict[str, Any], Any], tmp_path: Path) -> dict[str, Any]:
    """Those of the first run, with a copy of its storage."""
    given, _ = first_run
    shutil.copytree(given["storage"], tmp_path / "storage")
    return given | {"storage": str(tmp_path / "storage")}


def metadata(result: Any) -> dict[str, Any]:
    [event] = result.asset_materializations_for_node(ASSET)
    return {name: value.value for name, value in event.metadata.items()}


def errors(result: Any) -> str:
    return "\n".join(event.step_failure_data.error_display_string for event in result.get_step_failure_events())


def model_manifest(storage: Path) -> tuple[Path, dict[str, Any]]:
    [directory] = (storage / "reward_model").glob("*/model")
    return directory, json.loads((directory.parent / "manifest.json").read_text())


def write(files: dict[str, bytes], directory: Path) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def test_a_run_puts_the_model_and_its_annotations_on_the_hub_once(
    settings: dict[str, Any], hub: Repositories, tmp_path: Path, run_graph, capfd: pytest.CaptureFixture[str]
) -> None:
    import datasets
    from huggingface_hub import ModelCard

    result = run_graph(ASSET, **settings, **SETTINGS)
    assert result.success, errors(result)
    directory, manifest = model_manifest(tmp_path / "storage")
    model, data = hub.found[MODEL], hub.found[f"datasets/{DATA}"]
    assert model.private and data.private
    assert model.commits == [f"reward_model {directory.parent.name}"]

    saved = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert model.files.keys() == saved.keys()
    assert [name for name in saved if model.files[name] != saved[name]] == ["README.md"]
    card = ModelCard(model.files["README.md"].decode())
    assert card.text.strip() == ModelCard(saved["README.md"].decode()).text.strip()
    assert (card.data.license, card.data.datasets) == ("apache-2.0", DATA)
    test, held = card.data.eval_results
    assert (test.dataset_type, test.metric_type) == (DATA, "accuracy")
    assert test.metric_value == pytest.approx(manifest["metrics"]["test_accuracy"], abs=5e-5)
    assert test.dataset_name == f"{manifest['metrics']['test_pairs']} held-out pairs"
    assert held.dataset_name == "evaluation/held"
    assert held.metric_value == pytest.approx(manifest["metrics"]["evaluation/held_accuracy"], abs=5e-5)
    assert lineage_of(str(write(model.files, tmp_path / "pulled"))) == lineage_of(str(directory))

    pulled = write(data.files, tmp_path / "preferences")
    rows = datasets.load_dataset(str(pulled), cache_dir=str(tmp_path / "cache"))
    assert {split: len(found) for split, found in rows.items()} == {"train": 90}
    assert {row["source"] for row in rows["train"]} == {"a.jsonl", "b.jsonl"}
    assert {Path(name).suffix for name in data.files} == {".md", ".parquet"}

    shown = metadata(result)
    assert shown["model_url"] == f"{hub.endpoint}/{MODEL}"
    assert shown["model_commit"] == f"{hub.endpoint}/{MODEL}/commit/{model.commit}"
    assert shown["data_url"] == f"{hub.endpoint}/datasets/{DATA}"
    assert shown["model_pushed_now"] is shown["data_pushed_now"] is True

    hub.requests.clear()
    again = run_graph(ASSET, **settings, **SETTINGS)
    assert hub.writes == []
    assert metadata(again)["model_commit"] == shown["model_commit"]
    assert metadata(again)["model_pushed_now"] is False
    logged = "\n".join(str(event) for run in (result, again) for event in run.all_events) + "".join(capfd.readouterr())
    assert TOKEN not in logged and "Gladly" not in logged


def test_a_changed_card_is_one_more_commit_of_the_card_alone(
    settings: dict[str, Any], hub: Repositories, run_graph
) -> None:
    given = {"publish_model_to": MODEL, "publish_private": False}
    assert run_graph(ASSET, **settings, **given).success
    before = dict(hub.found[MODEL].files)
    assert not hub.found[MODEL].private
    assert run_graph(ASSET, **settings, **given, publish_license="mit").success
    repository = hub.found[MODEL]
    assert len(repository.commits) == 2
    assert [name for name in before if before[name] != repository.files[name]] == ["README.md"]
    assert list(hub.found) == [MODEL]


def test_a_refusal_fails_the_run_with_one_sentence(settings: dict[str, Any], hub: Repositories, run_graph) -> None:
    hub.refused["POST", "/api/repos/create"] = 403
    text = errors(run_graph(ASSET, **settings, **SETTINGS))
    said = f"publish_data_to (or RM_PUBLISH_DATA_TO) is '{DATA}': the Hub answered 403: give the token write access"
    assert said in text
    assert TOKEN not in text


def test_a_model_in_a_remote_storage_is_pushed(
    settings: dict[str, Any], hub: Repositories, tmp_path: Path, run_graph
) -> None:
    directory, _ = model_manifest(storage := tmp_path / "storage")
    with s3_server() as bucket:
        for name in ("reward_model", "promoted_reward_model"):  # each object is a request
            upload(storage / name, resolve_path(f"{bucket}/storage/{name}"))
        result = run_graph(ASSET, **settings | {"storage": f"{bucket}/storage"}, publish_model_to=MODEL)
        assert result.success, errors(result)
    found = hub.found[MODEL].files
    assert found["model.safetensors"] == (directory / "model.safetensors").read_bytes()
    assert found.keys() == {path.name for path in directory.iterdir()}


def test_it_is_off_unless_a_repository_is_named(settings: dict[str, Any], hub: Repositories, run_graph) -> None:
    result = run_graph(ASSET, **settings)
    assert result.success
    assert result.asset_materializations_for_node(ASSET) == []
    assert hub.requests == []


def test_without_a_token_nothing_is_begun(
    tmp_path: Path, hub: Repositories, run_graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = run_graph(publish_model_to=MODEL, storage=str(tmp_path / "new"))
    said = "publish_model_to (or RM_PUBLISH_MODEL_TO) is set, but there is no Hugging Face token: set HF_TOKEN"
    assert said in errors(result)
    assert not (tmp_path / "new").exists()


def test_a_model_must_be_promoted_first(hub: Repositories, tmp_path: Path, run_graph) -> None:
    result = run_graph(ASSET, publish_model_to=MODEL, storage=str(tmp_path / "new"))
    assert "promoted_reward_model has no snapshot in" in errors(result)
    assert hub.requests == []
