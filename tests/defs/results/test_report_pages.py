"""The report of a real run against independent computations, and what its checks say of models that went wrong."""

import io
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support import QUICK, write_lines

from rm_assets import trace
from rm_assets.defs.results.plots import WIDTH_PIXELS
from rm_assets.defs.results.report_checks import REPORT_CHECKS


def metadata(result: Any, asset: str) -> dict[str, Any]:
    [event] = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in event.metadata.items()}


def table(value: Any) -> list[dict[str, Any]]:
    return [record.data for record in value.records]


def check(result: Any, name: str) -> Any:
    return next(found for found in result.get_asset_check_evaluations() if found.check_name == name)


def scores_of(result: Any, split: str) -> list[dict[str, Any]]:
    path = Path(metadata(result, "reward_model")["path"]).parent / "scores.parquet"
    return [row for row in pq.read_table(path).to_pylist() if row["split"] == split]


def judged_by_hand(rows: list[dict[str, Any]]) -> list[float]:
    answers = []
    for row in rows:
        tied = row["chosen_score"] == row["rejected_score"]
        answers.append(0.5 if tied else float(row["chosen_score"] > row["rejected_score"]))
    return answers


def interval_by_hand(rows: list[dict[str, Any]], num_resamples: int = 4_000) -> tuple[float, float]:
    """Prompts drawn one by one, with replacement."""
    prompts: dict[str, list[float]] = {}
    for row, answer in zip(rows, judged_by_hand(rows), strict=True):
        prompts.setdefault(row["prompt_key"], []).append(answer)
    generator = random.Random(5)
    means = []
    for _ in range(num_resamples):
        answers = [a for prompt in generator.choices(list(prompts.values()), k=len(prompts)) for a in prompt]
        means.append(sum(answers) / len(answers))
    return float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))


def require_equal_by_hand(result: Any) -> None:
    """The report's accuracy, interval, log loss and means are those of its per-pair scores."""
    report, rows = metadata(result, "reward_model_report"), scores_of(result, "test")
    answers = judged_by_hand(rows)
    assert report["num_pairs"] == len(rows)
    assert report["accuracy"] == pytest.approx(sum(answers) / len(answers), abs=1e-4)
    if len(set(answers)) > 1:
        found = (report["accuracy_low"], report["accuracy_high"])
        assert found == pytest.approx(interval_by_hand(rows), abs=1.5 / len(rows) ** 0.5 / 10 + 1 / len(rows))
    losses = [math.log1p(math.exp(row["rejected_score"] - row["chosen_score"])) for row in rows]
    assert report["log_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    figures = json.loads((Path(report["path"]) / "report.json").read_text())["metrics"]
    assert figures["mean_chosen_score"] == pytest.approx(np.mean([row["chosen_score"] for row in rows]), rel=1e-3)


def test_accuracy_and_interval_are_those_of_the_scores_of_the_pairs(first_run) -> None:
    _, result = first_run
    require_equal_by_hand(result)


def test_every_picture_and_table_lies_in_the_snapshot(first_run) -> None:
    _, result = first_run
    report = metadata(result, "reward_model_report")
    directory = Path(report["path"])
    content = json.loads((directory / "report.json").read_text())
    assert content["metrics"]["accuracy"] == pytest.approx(report["accuracy"], abs=1e-4)
    assert "1000 resamples, seed 0" in content["intervals"] == report["intervals"]
    num_scored = len(pq.read_table(Path(metadata(result, "reward_model")["path"]).parent / "scores.parquet"))
    assert content["precision"] == report["precision"] == metadata(result, "reward_model")["precision"]
    assert report["precision"] == f"scores of {num_scored} held-out pairs computed in float32"
    assert len(content["slices"]) == len(table(report["slices"]))
    assert [row["model"] for row in content["history"]] == [Path(metadata(result, "reward_model")["path"]).parent.name]
    names = {"accuracy_by_slice", "calibration", "scores", "length_bias", "learning_curve", "history"}
    assert {path.stem for path in directory.glob("*.png")} == names
    for path in directory.glob("*.png"):
        assert Image.open(io.BytesIO(path.read_bytes())).width == WIDTH_PIXELS
    pairs = pq.read_table(directory / "pairs").to_pylist()
    assert sum(pair["correct"] for pair in pairs if pair["split"] == "test") / report["num_pairs"] == pytest.approx(
        report["accuracy"], abs=1e-4
    )


def test_prompt_baselines_are_measured_on_every_held_out_pair(first_run) -> None:
    _, result = first_run
    pairs = pq.read_table(Path(metadata(result, "reward_model_report")["path"]) / "pairs").to_pylist()
    assert {pair["split"] for pair in pairs} == {"test", "evaluation/held"}
    assert {pair["without_prompt"] for pair in pairs} | {pair["other_prompt"] for pair in pairs} <= {0.0, 0.5, 1.0}


def test_an_evaluation_set_is_a_column_of_its_own(first_run) -> None:
    _, result = first_run
    [row] = table(metadata(result, "reward_model_report")["evaluation_sets"])
    assert list(row) == ["subset", "test", "held"]
    rows = scores_of(result, "evaluation/held")
    accuracy = sum(judged_by_hand(rows)) / len(rows)
    assert row["held"] == f"{accuracy:.3f} of 6"


def test_every_check_of_the_report_says_what_it_found(first_run) -> None:
    _, result = first_run
    for spec in REPORT_CHECKS:
        assert any(sign.isdigit() for sign in check(result, spec.name).description)


def test_suspects_are_off_and_say_so(first_run) -> None:
    settings, result = first_run
    assert result.asset_materializations_for_node("suspect_annotations") == []  # off, and not shown as done
    assert not (Path(settings["storage"]) / "suspect_annotations").exists()


PLAIN_TRANSFORMERS = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

assert not any(name.startswith("rm_assets") for name in sys.modules)
directory = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForSequenceClassification.from_pretrained(directory)
golden = json.load(open(directory + "/golden_scores.json"))["conversations"]
texts = [tokenizer.apply_chat_template(item["messages"], tokenize=False) for item in golden]
assert texts == [item["text"] for item in golden]
largest = 0.0
for side, size in (("right", 7), ("left", 3), ("left", 20)):
    tokenizer.padding_side = side
    for start in range(0, len(texts), size):
        part = golden[start : start + size]
        batch = tokenizer(texts[start : start + size], padding=True, return_tensors="pt", add_special_tokens=False)
        for item, ids, mask in zip(part, batch["input_ids"], batch["attention_mask"]):
            assert ids[mask.bool()].tolist() == item["ids"]
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            scores = model(**batch, position_ids=positions).logits[:, 0].tolist()
        largest = max([largest, *(abs(score - item["score"]) for score, item in zip(scores, part))])
print(len(golden), largest)
"""


def test_golden_scores_hold_in_a_new_process_by_transformers_alone(first_run, tmp_path: Path) -> None:
    _, result = first_run
    command = [sys.executable, "-c", PLAIN_TRANSFORMERS, metadata(result, "reward_model")["path"]]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    number, largest = run.stdout.split()
    assert int(number) == 20
    assert float(largest) <= 1e-5


def test_the_trace_of_a_pair_ends_in_its_scores_or_in_its_training(first_run, monkeypatch, capsys) -> None:
    settings, result = first_run
    monkeypatch.setenv("RM_STORAGE", settings["storage"])
    held_out = scores_of(result, "test")[0]
    padded = Path(metadata(result, "padded_pairs")["path"])
    trained_on = pq.read_table(padded / "train").to_pylist()[0]
    assert trace.main([held_out["pair_id"]]) == 0
    told = capsys.readouterr().out
    assert f"{held_out['source']}, line {held_out['line']}\n" in told
    assert f"chosen {held_out['chosen_score']:+.4f}, rejected {held_out['rejected_score']:+.4f}" in told
    assert "(promoted, newest)" in told
    assert trace.main([trained_on["source"], str(trained_on["line"])]) == 0
    told = capsys.readouterr().out
    assert f"pair {trained_on['pair_id']}: in train" in told
    assert "trained on it, so no score" in told


# --- models that went wrong -----------------------------------------------------------------------------------


COLOURS = ["red", "green", "blue", "grey"]


def longer_is_better(num_pairs: int) -> list[object]:
    """Replies of the same few words, of which the longer one is always preferred."""
    generator = random.Random(3)
    rows: list[object] = []
    for number in range(num_pairs):
        short = generator.randint(2, 12)
        lengths = {"rejected": short, "chosen": short + generator.randint(2, 25)}
        sides = {
            side: " ".join(generator.choices(["red", "green", "blue", "grey"], k=k)) for side, k in lengths.items()
        }
        rows.append({"prompt": f"Name colours, list {number}.", **sides})
    return rows


def test_a_model_that_learned_length_is_flagged(tmp_path: Path, run_graph) -> None:
    write_lines(tmp_path / "a.jsonl", longer_is_better(150))
    paths = {"annotations": str(tmp_path / "a.jsonl"), "storage": str(tmp_path / "storage")}
    result = run_graph(**paths, **QUICK | {"epochs": 4, "batch_pairs": 16, "learning_rate": 3e-3})
    assert result.success
    assert metadata(result, "reward_model_report")["accuracy"] > 0.9  # it did learn what its labels say
    flagged = check(result, "scores_do_not_follow_length")
    assert not flagged.passed
    assert flagged.severity.value == "WARN"
    assert metadata(result, "reward_model_report")["difference_length_spearman"] > 0.5
    beaten = check(result, "model_beats_length")
    assert not beaten.passed
    assert beaten.metadata["longer_wins"].value == 1
    for failed, figures in (
        (flagged, "the limit is 0.5: longer replies score higher. Add pairs"),
        (beaten, "wins' 1.000, "),
    ):
        assert figures in failed.description
    assert beaten.description.endswith("the shorter one as often as the longer")
