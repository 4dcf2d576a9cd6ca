import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from toy_pairs import learnable_pairs
from training_jobs import run
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rm_assets.data.tables import schemas
from rm_assets.training.__main__ import run_job
from rm_assets.training.jobs.entry import execute_job
from rm_assets.training.jobs.result import TrainingResultError, read_result
from rm_assets.training.jobs.training_job import TrainingError


def texts_and_scores(output, splits):
    """The text of every held-out sequence with its score in scores.parquet."""
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    rows = pq.read_table(output / "scores.parquet").to_pylist()
    pairs = [*splits["validation"], *splits["test"]]
    found = []
    for row, (chosen, rejected) in zip(rows, pairs, strict=True):
        found += [(chosen, row["chosen_score"]), (rejected, row["rejected_score"])]
    return [(" ".join(tokenizer.convert_ids_to_tokens(ids)), score) for ids, score in found]


def test_stock_transformers_gives_the_reported_scores_alone_and_in_a_batch(make_job):
    # the pad token in the middle of a text must neither be masked nor end it
    splits = {
        "train": [([7, 5, 1], [7, 6, 1])] * 4,
        "validation": [([7, 0, 5, 1], [7, 6, 1]), ([0, 8, 9, 10, 11, 1], [8, 1])],
        "test": [([12, 5, 13, 14, 1], [12, 6, 1])],
    }
    output = run(make_job(splits=splits))
    expected = texts_and_scores(output, splits)
    model = AutoModelForSequenceClassification.from_pretrained(output / "model")
    tokenizer = AutoTokenizer.from_pretrained(output / "model")

    def stock(texts):
        encoded = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            return model(**encoded).logits.squeeze(-1).tolist()

    scores = [score for _, score in expected]
    assert len(set(scores)) == 6
    assert stock([text for text, _ in expected]) == pytest.approx(scores, abs=1e-5)
    assert [stock([text])[0] for text, _ in expected] == pytest.approx(scores, abs=1e-5)


def test_the_scores_file_has_a_row_for_each_held_out_pair(make_job):
    output = run(make_job())
    table = pq.read_table(output / "scores.parquet")
    assert table.schema.equals(schemas.SCORES)
    assert table.column("split").to_pylist() == ["validation"] * 5 + ["test"] * 3
    assert table.column("pair_id").to_pylist() == [f"pair{number}" for number in (0, 1, 2, 3, 4, 0, 1, 2)]
    # prompts of 1 to 5 words, then for `chosen` tails of 50 % 3 = 2, 0, 1, 2, 0 words, and two more words
    assert table.column("chosen_length").to_pylist()[:5] == [5, 4, 6, 8, 7]
    assert table.column("rejected_length").to_pylist()[:5] == [3, 4, 5, 6, 7]


def test_the_manifest_tells_what_the_result_is(make_job, metrics_of):
    job = make_job(settings={"epochs": 2})
    output = run(job)
    manifest = read_result(output, job.key)
    assert set(manifest) == {"key", "data_snapshot", "files", "metrics", "versions", "weights_key"}
    assert manifest["data_snapshot"] == "snapshot-1"
    assert manifest["versions"]["torch"] == torch.__version__
    assert {"metrics.jsonl", "scores.parquet", "model/model.safetensors", "model/README.md"} <= set(manifest["files"])
    metrics = manifest["metrics"]
    assert metrics["num_steps"] == 6  # 2 epochs of 12 pairs, 4 to a step
    assert (metrics["train_pairs"], metrics["validation_pairs"], metrics["test_pairs"]) == (12, 5, 3)
    assert metrics["scores_dtype"] == "float32"
    assert metrics["scores_precision"] == "scores of 8 held-out pairs computed in float32"
    steps, validations = metrics_of(job)
    assert [(line["step"], line["epoch"]) for line in steps] == [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 2),
        (5, 2),
        (6, 2),
    ]
    assert metrics["train_loss"] == pytest.approx(sum(line["loss"] for line in steps[3:]) / 3)
    assert [line["step"] for line in validations] == [3, 6]
    # nothing is updated after the last validation, and five pairs are few enough to be scored whole
    assert validations[-1]["validation_loss"] == pytest.approx(metrics["validation_loss"], abs=1e-5)
    assert validations[-1]["validation_accuracy"] == metrics["validation_accuracy"]


def test_the_accuracy_is_the_share_of_rows_that_score_chosen_higher(make_job):
    job = make_job(settings={"epochs": 12})
    output = run(job)
    rows = [row for row in pq.read_table(output / "scores.parquet").to_pylist() if row["split"] == "test"]
    right = sum(row["chosen_score"] > row["rejected_score"] for row in rows)
    assert read_result(output, job.key)["metrics"]["test_accuracy"] == right / 3
    assert right == 3  # word 5 against word 6 generalises


def test_the_same_job_gives_the_same_weights_and_another_seed_others(make_job):
    first, second = run(make_job("first")), run(make_job("second"))
    other = run(make_job("other", settings={"seed": 1}))
    weights = [(output / "model" / "model.safetensors").read_bytes() for output in (first, second, other)]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_the_saved_configuration_and_tokenizer_fit_each_other(make_job):
    template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    output = run(make_job(chat_template=template))
    config = json.loads((output / "model" / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    assert len(config["id2label"]) == 1
    assert config["vocab_size"] == 40
    assert config["pad_token_id"] == tokenizer.pad_token_id == 0
    assert tokenizer.padding_side == "right"
    assert tokenizer.chat_template == template
    assert config["dtype"] == "float32"


def test_the_card_names_base_model_data_and_settings_but_no_directory(make_job):
    job = make_job(settings={"learning_rate": 0.0123})
    card = (run(job) / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "snapshot-1" in card
    assert "| learning_rate | 0.0123 |" in card
    assert f"`{Path(job.model).name}` (a toy" in card
    assert str(Path(job.model).parent) not in card


def test_without_test_pairs_there_is_still_a_file_and_no_test_accuracy(make_job):
    job = make_job(splits={"train": [([7, 5, 1], [7, 6, 1])], "validation": [([8, 5, 1], [8, 6, 1])], "test": []})
    output = run(job)
    assert pq.read_table(output / "scores.parquet").column("split").to_pylist() == ["validation"]
    assert read_result(output, job.key)["metrics"]["test_accuracy"] is None


def test_without_any_held_out_pairs_the_scores_file_is_empty(make_job):
    output = run(make_job(splits={"train": [([7, 5, 1], [7, 6, 1])]}))
    table = pq.read_table(output / "scores.parquet")
    assert table.num_rows == 0
    assert table.schema.equals(schemas.SCORES)


def test_nothing_to_train_on_is_a_clear_error(make_job):
    with pytest.raises(TrainingError, match="no pairs to train on"):
        run(make_job(splits={"train": [], "validation": [([8, 5, 1], [8, 6, 1])], "test": []}))


@pytest.mark.parametrize(
    ("learning_rate", "held_out", "said"),
    [
        (1e18, 3, "loss of held-out pairs is nan: the weights have diverged"),
        (1e30, 3, "scores of the trained model are not finite: its weights have diverged"),
        (1e30, 0, "scores of the trained model are not finite: its weights have diverged"),
        (1e39, 3, "weights are not finite after the last step: they have diverged"),
    ],
)
def test_weights_that_diverge_in_the_last_step_are_named_and_not_published(make_job, learning_rate, held_out, said):
    splits = {"train": learnable_pairs(4), "validation": [], "test": learnable_pairs(held_out, first=50)}
    job = make_job(splits=splits, settings={"learning_rate": learning_rate, "epochs": 1, "batch_pairs": 4})
    with pytest.raises(TrainingError, match=rf"{said} \(lower learning_rate\)"):
        run(job)
    assert not (Path(job.output_directory) / "manifest.json").exists()
    assert not (Path(job.output_directory) / "model" / "golden_scores.json").exists()


def test_an_id_outside_the_vocabulary_is_found_before_any_step(make_job):
    job = make_job(splits={"train": [([7, 5, 1], [7, 40, 1])]})
    with pytest.raises(TrainingError, match="token id 40 in the rejected side of pair 'pair0'"):
        run(job)
    assert [path.name for path in Path(job.output_directory).iterdir()] == ["scratch"]


def test_an_earlier_attempt_leaves_nothing_behind(make_job):
    job = make_job()
    output = Path(job.output_directory)
    (output / "model").mkdir(parents=True)
    for name in ("manifest.json", "metrics.jsonl", "model/leftover.safetensors"):
        (output / name).write_text("old")
    output.with_name("output.json").write_text(job.model_dump_json())  # as the launcher does
    run(job)
    assert not (output / "model" / "leftover.safetensors").exists()
    assert "old" not in (output / "metrics.jsonl").read_text()
    read_result(output, job.key)


@pytest.mark.parametrize(
    "name", ["model/config.json", "adapter/mine.txt", "metrics.jsonl", "manifest.json", "error.txt"]
)
def test_a_directory_with_files_of_others_is_left_as_it_is(make_job, capsys, name):
    job = make_job()
    mine = Path(job.output_directory) / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert execute_job(job, run_job) == 1
    told = f"output_directory is {job.output_directory!r}, where {name.split('/')[0]!r} was not written by a training"
    assert f"error: {told} and would be replaced: name an empty directory\n" in capsys.readouterr().err
    assert [path for path in Path(job.output_directory).rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"


def test_of_a_finished_training_only_its_own_files_are_replaced(make_job):
    job = make_job()
    assert execute_job(job, run_job) == 0
    output = Path(job.output_directory)
    names = sorted(path.relative_to(output).as_posix() for path in output.rglob("*"))
    (output / "model" / "mine.txt").write_text("mine")
    assert execute_job(job, run_job) == 0
    found = sorted(path.relative_to(output).as_posix() for path in output.rglob("*"))
    assert found == sorted([*names, "model/mine.txt"])


@pytest.mark.parametrize("left", ["nothing", "a model", "a damaged manifest"])
def test_an_attempt_that_failed_at_once_is_followed_by_another(make_job, left):
    job = make_job(pad_token_id=5)  # an ordinary token
    assert execute_job(job, run_job) == 1
    output = Path(job.output_directory)
    assert (output / "error.txt").exists()
    if left == "a model":
        (output / "model").mkdir()
        (output / "model" / "half.safetensors").write_text("half")
    if left == "a damaged manifest":
        (output / "manifest.json").write_text("{")
    assert execute_job(job.model_copy(update={"pad_token_id": 0}), run_job) == 0
    assert not (output / "model" / "half.safetensors").exists()
    assert not (output / "scratch").exists()


def test_a_model_that_has_the_weights_already_scores_other_held_out_pairs_without_training(make_job, monkeypatch):
    first = make_job("first", settings={"lora_rank": 2}, weights_key="weights")
    run(first)
    splits = {
        "train": learnable_pairs(12),
        "validation": [],
        "test": [],
        "evaluation/new": learnable_pairs(4, first=90),
    }
    changes = {"splits": splits, "settings": {"lora_rank": 2}, "key": "another key"}
    expected = make_job("trained", **changes)
    run(expected)
    monkeypatch.setattr("rm_assets.training.run.train", None)  # it is not called
    second = make_job("second", **changes, weights_key="weights", trained=first.output_directory)
    run(second)
    found, trained, before = (read_result(Path(job.output_directory), job.key) for job in (second, expected, first))
    assert found["weights_key"] == "weights"
    clock = {"seconds", "total_seconds", "peak_memory_bytes", "pairs_per_second", "tokens_per_second"}
    assert {name: value for name, value in found["metrics"].items() if name not in clock} == {
        name: value for name, value in trained["metrics"].items() if name not in clock
    }
    assert found["metrics"]["seconds"] == before["metrics"]["seconds"]
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors", "metrics.jsonl"):
        assert found["files"][name] == before["files"][name]
    assert found["files"]["scores.parquet"] == trained["files"]["scores.parquet"]
    assert read_result(Path(first.output_directory), first.key) == before  # nothing of it was changed


def test_weights_that_changed_since_they_were_published_are_not_taken(make_job):
    first = make_job("first")
    run(first)
    weights = Path(first.output_directory) / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    with pytest.raises(TrainingResultError, match=r"model\.safetensors"):
        run(make_job("second", trained=first.output_directory))
