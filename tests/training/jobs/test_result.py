import hashlib
import json

import pytest

from rm_assets.training.jobs.result import TrainingResultError, read_result, write_manifest


@pytest.fixture
def result(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("model/model.safetensors", "model/config.json", "scores.parquet", "metrics.jsonl"):
        (tmp_path / name).write_text(f"content of {name}")
    (tmp_path / "job.json").write_text("the launcher's own file")
    write_manifest(tmp_path, "key-1", "snapshot-1", {"test_accuracy": None}, {"torch": "2"}, "weights-1")
    return tmp_path


def test_a_result_is_read_with_the_hash_of_every_file(result):
    manifest = read_result(result, "key-1")
    assert manifest == {
        "key": "key-1",
        "data_snapshot": "snapshot-1",
        "files": {
            name: hashlib.sha256(f"content of {name}".encode()).hexdigest()
            for name in ("model/config.json", "model/model.safetensors", "scores.parquet", "metrics.jsonl")
        },
        "metrics": {"test_accuracy": None},
        "versions": {"torch": "2"},
        "weights_key": "weights-1",
    }
    assert not (result / "manifest.json.tmp").exists()


@pytest.mark.parametrize("name", ["model/model.safetensors", "scores.parquet", "metrics.jsonl"])
def test_a_changed_or_missing_file_is_named(result, name):
    (result / name).write_text(f"Content of {name}")
    with pytest.raises(TrainingResultError, match=f"{name}' has the sha256"):
        read_result(result, "key-1")
    (result / name).unlink()
    with pytest.raises(TrainingResultError, match=f"{name}' is missing"):
        read_result(result, "key-1")


def test_a_result_of_another_job_or_without_a_manifest_is_refused(result):
    with pytest.raises(TrainingResultError, match="has the key 'key-1', not 'key-2'"):
        read_result(result, "key-2")
    (result / "manifest.json").unlink()
    with pytest.raises(TrainingResultError, match=r"no manifest.json in .* the training did not finish"):
        read_result(result, "key-1")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": "key-1", "files": 3}', '{"key": "key-1", "files": {}}'])
def test_a_damaged_manifest_is_refused(result, text):
    (result / "manifest.json").write_text(text)
    with pytest.raises(TrainingResultError, match="is damaged"):
        read_result(result, "key-1")


def test_a_manifest_that_points_outside_is_refused(result):
    manifest = json.loads((result / "manifest.json").read_text())
    manifest["files"]["../elsewhere"] = "0" * 64
    (result / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TrainingResultError, match="is outside"):
        read_result(result, "key-1")
