"""Models that do not fit into a GPU; a copy on the same device shows what a copy to another would."""

import json
from pathlib import Path

import pytest
import torch
import varlen_kernel  # noqa: F401  # the kernel of a GPU
from architectures import CPU, alone, build, edge_cases
from toy_pairs import learnable_pairs

from rm_assets.training.jobs.result import METRICS, MODEL, SCORES_FILE
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.model import offloading
from rm_assets.training.model.layers import decoder_layers
from rm_assets.training.model.offloading import move_to
from rm_assets.training.run import train_and_publish
from rm_assets.training.saved_model.golden_scores import verify_golden_scores
from rm_assets.training.saved_model.stock_scoring import load_saved_model


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(offloading, "_free_memory", lambda device: 1000.0)


def places(layer):
    return [tensor.data_ptr() for tensor in (*layer.parameters(), *layer.buffers())]


def test_a_model_that_fits_is_moved_whole(monkeypatch):
    model = build("llama")
    size = sum(weight.nbytes for weight in model.parameters())
    for free, fits in ((size, False), (1.25 * size, True)):
        monkeypatch.setattr(offloading, "_free_memory", lambda device, free=free: free)
        assert (move_to(model, CPU) == "") == fits
    assert move_to(build("llama"), torch.device("meta")) == ""


def test_other_weights_are_moved_at_once(little_memory):
    model = build("llama")
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()}
    frequencies = model.model.rotary_emb.inv_freq.data_ptr()
    said = move_to(model, CPU)
    assert said.startswith(
        "the saved model takes 0.0 GB, and 0.0 GB are free on the GPU: its layers stay in host memory"
    )
    moved = {name for name, tensor in model.state_dict(keep_vars=True).items() if tensor.data_ptr() != before[name]}
    assert moved == {"model.embed_tokens.weight", "model.norm.weight", "score.weight"}
    assert model.model.rotary_emb.inv_freq.data_ptr() != frequencies


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_each_layer_is_on_the_device_only_while_it_computes(little_memory, name):
    model = build(name)
    expected = alone(model, edge_cases())
    move_to(model, CPU)
    layers, seen = decoder_layers(model), []
    before = [places(layer) for layer in layers]
    for number, layer in enumerate(layers):
        module = [module for module in layer.modules() if not [*module.children()]][-1]
        module.register_forward_hook(lambda *_, n=number: seen.append([places(each) for each in layers]) or None)
    assert torch.equal(alone(model, edge_cases()), expected)
    assert [places(layer) for layer in layers] == before
    for found in seen:  # in one layer at a time all tensors are copies
        copied = [not {*places_now} & {*places_before} for places_now, places_before in zip(found, before, strict=True)]
        assert sum(copied) == 1
        assert [now for now, is_copy in zip(found, copied, strict=True) if not is_copy] == [
            kept for kept, is_copy in zip(before, copied, strict=True) if not is_copy
        ]
    assert len(seen) >= 2


@torch.no_grad()
def test_layers_are_put_back_if_one_fails_and_may_be_rounded(little_memory):
    model, rounded = build("llama"), build("llama").bfloat16()
    move_to(model, CPU)
    layer = decoder_layers(model)[1]
    before = places(layer)
    with pytest.raises(TypeError):
        layer()
    assert places(layer) == before
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    found = alone(model, edge_cases()[:1])
    assert found.dtype == torch.bfloat16
    assert (found - alone(rounded, edge_cases()[:1])).abs().max() < 0.02  # whose buffers are rounded, too


def test_scores_and_golden_scores_are_the_same(make_job, gpu, monkeypatch):
    splits = {"train": learnable_pairs(4), "validation": learnable_pairs(30, 50), "test": learnable_pairs(40, 90)}
    files, trained = [], None
    for name, free in (("whole", float("inf")), ("layers", 1000.0)):
        monkeypatch.setattr(offloading, "_free_memory", lambda device, free=free: free)
        job, said = make_job(name, splits=splits, trained=trained, settings={"micro_batch_tokens": 4000}), []
        trained = job.output_directory
        train_and_publish(job, gpu, TrainingLog(Path(trained) / METRICS, said.append))
        assert sum("its layers stay in host memory" in text for text in said) == (name == "layers")
        files.append([(Path(trained) / path).read_bytes() for path in (SCORES_FILE, f"{MODEL}/golden_scores.json")])
    assert files[0] == files[1]
    assert json.loads(files[0][1])["largest_bfloat16_difference"] > 0
    directory = Path(trained) / MODEL
    assert verify_golden_scores(directory, load_saved_model(directory)) <= 1e-6
