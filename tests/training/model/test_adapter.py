import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.held_out import pair_scores
from rm_assets.training.loop.trainer import train
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.model.adapter import base_of, merged, with_adapter
from rm_assets.training.model.probe import choose_packing
from rm_assets.training.model.reward_model import build_model
from rm_assets.training.model.scoring import Scorer
from rm_assets.training.packing.checks import read_splits
from rm_assets.training.run import train_and_publish

LORA = {"lora_rank": 4, "lora_alpha": 8, "learning_rate": 2e-2}


def stock_scores(directory, sequences):
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).logits.item() for ids in sequences]


@pytest.mark.parametrize("settings", [{}, LORA])
def test_the_saved_directory_scores_as_the_trained_model_did_to_a_millionth(make_job, settings):
    job = make_job(settings={"epochs": 8} | settings)
    splits = read_splits(job, Path(job.output_directory) / "elsewhere")
    model = build_model(job)
    choice = choose_packing(model, splits["train"], SINGLE_PROCESS.device)
    model = with_adapter(model, job.settings)
    train(model, splits, choice, job.settings, SINGLE_PROCESS, TrainingLog())
    test = splits["test"]
    trained = pair_scores(Scorer(model), test, np.arange(3), SINGLE_PROCESS, choice.packing, 8192)

    train_and_publish(job, SINGLE_PROCESS, TrainingLog())  # the same training, saved
    output = Path(job.output_directory)
    sequences = [test.sequences[number].tolist() for side in (test.chosen, test.rejected) for number in side]
    stock = stock_scores(output / "model", sequences)
    assert stock == pytest.approx(trained.T.flatten().tolist(), abs=1e-6)
    rows = [row for row in pq.read_table(output / "scores.parquet").to_pylist() if row["split"] == "test"]
    reported = [row[f"{side}_score"] for side in ("chosen", "rejected") for row in rows]
    assert stock == pytest.approx(reported, abs=1e-6)
    assert max(stock) - min(stock) > 0.1


def test_adapters_train_the_head_too_and_nothing_else(make_job):
    job = make_job(settings=LORA | {"epochs": 3})
    splits = read_splits(job, Path(job.output_directory))
    model = build_model(job)
    choice = choose_packing(model, splits["train"], SINGLE_PROCESS.device)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model = with_adapter(model, job.settings)
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "score.modules_to_save" in name for name in trainable)
    # two layers of seven linear maps, two matrices each, and the head
    assert len(trainable) == 2 * 7 * 2 + 1
    head = before["score.weight"]
    train(model, splits, choice, job.settings, SINGLE_PROCESS, TrainingLog())
    for name, weight in base_of(model).state_dict().items():
        if "lora_" not in name and "modules_to_save" not in name:
            assert torch.equal(weight, before[name.replace(".base_layer", "").replace(".original_module", "")]), name
    whole = merged(model)
    assert not torch.equal(whole.score.weight, head)
    assert set(whole.state_dict()) == set(before)
    assert not torch.equal(whole.model.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"])


def test_adapters_learn_sixteen_pairs_by_heart(make_job):
    generator = np.random.default_rng(0)
    pairs = [tuple(generator.integers(3, 40, size=length).tolist() for length in (5, 6)) for _ in range(16)]
    settings = {"epochs": 80, "batch_pairs": 16, "lora_rank": 8, "learning_rate": 2e-2}
    job = make_job(splits={"train": pairs}, settings=settings)
    splits = read_splits(job, Path(job.output_directory))
    model = build_model(job)
    choice = choose_packing(model, splits["train"], SINGLE_PROCESS.device)
    model = with_adapter(model, job.settings)
    train(model, splits, choice, job.settings, SINGLE_PROCESS, TrainingLog())
    scores = pair_scores(Scorer(model), splits["train"], np.arange(16), SINGLE_PROCESS, choice.packing, 8192)
    assert (scores[:, 0] > scores[:, 1]).all()


def test_the_adapter_is_kept_beside_the_model_and_gives_the_same_scores(make_job):
    import peft

    job = make_job(settings=LORA | {"epochs": 4})
    train_and_publish(job, SINGLE_PROCESS, TrainingLog())
    output = Path(job.output_directory)
    manifest = json.loads((output / "manifest.json").read_text())
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(manifest["files"])
    configuration = json.loads((output / "adapter" / "adapter_config.json").read_text())
    assert configuration["base_model_name_or_path"] == Path(job.model).name
    loaded = peft.PeftModel.from_pretrained(build_model(job), output / "adapter").eval()
    ids = torch.tensor([[7, 8, 5, 1]])
    with torch.no_grad():
        found = loaded(input_ids=ids).logits.item()
    assert found == pytest.approx(stock_scores(output / "model", ids.tolist())[0], abs=1e-6)
