"""The whole graph with annotations and storage on S3, and a second run that is free."""

from pathlib import Path

import pytest
from s3 import s3_server
from support import QUICK, polite_rows, write_lines
from upath import UPath

from rm_assets.data.storage.files import file_sizes, resolve_path
from rm_assets.defs.project import ProjectResource
from rm_assets.defs.snapshots.models import required_model
from rm_assets.settings import SettingsError
from rm_assets.training.jobs.result import TrainingResultError, read_result


def test_the_whole_graph_runs_on_s3_and_only_what_changed_is_computed_again(
    tmp_path: Path, run_graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with s3_server() as bucket:
        content = write_lines(tmp_path / "a.jsonl", polite_rows(60)).read_bytes()
        resolve_path(f"{bucket}/annotations/a.jsonl").write_bytes(content)
        settings = {"annotations": f"{bucket}/annotations", "storage": f"{bucket}/team/storage", **QUICK}
        assert run_graph(**settings).success
        assert not (tmp_path / "s3:").exists()
        storage = resolve_path(settings["storage"])
        model = required_model(storage)
        assert read_result(model.directory, model.key) == model.manifest
        assert {"model/model.safetensors", "scores.parquet", "metrics.jsonl"} <= set(model.manifest["files"])
        before = written(storage)
        assert run_graph(**settings).success
        changed = {name for name, stamp in written(storage).items() if before.get(name) != stamp}
        assert {name.rsplit("/", 1)[-1] for name in changed} <= {"stamps.json", "latest.json"}

        own = {"own": str(write_lines(tmp_path / "own.jsonl", polite_rows(209)[200:]))}
        result = run_graph("*reward_model", **settings, evaluation_files=own)
        assert result.success
        [event] = result.asset_materializations_for_node("reward_model")
        shown = {name: value.value for name, value in event.metadata.items()}
        assert shown["trained_now"] is False
        assert "| `evaluation/own_pairs` | 9 |" in shown["figures"]
        scored = required_model(storage)
        assert scored.directory.name != model.directory.name
        assert scored.manifest["weights_key"] == model.manifest["weights_key"]
        hashes = [found.manifest["files"]["model/model.safetensors"] for found in (scored, model)]
        assert hashes[0] == hashes[1]

        weights = model.directory / "model" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
        with pytest.raises(TrainingResultError, match="has the sha256"):
            read_result(model.directory, model.key)
        assert not any(".training" in name for name in file_sizes(storage))


def written(storage: Path) -> dict[str, str]:
    """Every object, with what changes when it is written again."""
    remote = UPath(storage)
    found = remote.fs.find(remote.path, detail=True)
    return {name: f"{entry['ETag']} {entry['LastModified']}" for name, entry in found.items()}


def test_a_remote_storage_that_cannot_be_used_is_named() -> None:
    with s3_server():
        with pytest.raises(
            SettingsError, match=r"storage \(or RM_STORAGE\): 's3://missing/x' cannot be reached: "
        ) as error:
            ProjectResource(storage="s3://missing/x").ready()
        assert "\n" not in str(error.value)
        with pytest.raises(SettingsError, match=r"storage \(or RM_STORAGE\): 'nope://x' cannot be reached: "):
            ProjectResource(storage="nope://x").ready()
