"""A base in 4 bits under adapters (QLoRA)."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import varlen_kernel
from architectures import CPU, build, edge_cases
from job_processes import MODULE
from stopped_jobs import run_until
from toy_pairs import learnable_pairs
from training_jobs import trained
from transformers import AutoConfig

from rm_assets.settings import TrainingSettings
from rm_assets.training.jobs.result import METRICS, MODEL, clear_output
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.setup import prepare_run
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.model.adapter import with_adapter
from rm_assets.training.model.layers import shallow_copy
from rm_assets.training.model.probe import Choice, choose_packing
from rm_assets.training.model.probe_pairs import pairs_of
from rm_assets.training.model.quantization import quantize_base
from rm_assets.training.model.reward_model import build_model, load_model
from rm_assets.training.packing.checks import read_splits
from rm_assets.training.packing.planning import Packing
from rm_assets.training.run import train_and_publish

FOUR_BITS = {"lora_rank": 2, "load_in_4bit": True, "learning_rate": 3e-3, "epochs": 3}
ADAPTERS = TrainingSettings(lora_rank=2, load_in_4bit=True)
SIZES = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    "gpt2": {"n_embd": 64},
    "bert": {"hidden_size": 64, "intermediate_size": 128},
}
"""Widths that are multiples of 64."""

needs_bitsandbytes = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="needs rm_assets[4bit]")


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(TrainingError, match=r"load_in_4bit needs bitsandbytes: pip install 'rm_assets\[4bit\]'"):
        quantize_base(build("llama", **SIZES["llama"]), CPU)


def wide(directory, name="llama"):
    """The directory of a configuration with two layers whose widths are multiples of 64."""
    config = AutoConfig.for_model(name, num_hidden_layers=2, num_attention_heads=4, **SIZES[name])
    config.save_pretrained(directory / name)
    return str(directory / name)


# --- the layers ----------------------------------------------------------------------------------------------


def quantized_names(model):
    return {name for name, weight in model.named_parameters() if type(weight).__name__ == "Params4bit"}


def dequantized(weight):
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("name", "sizes", "matrices"),
    [
        ("llama", {"attention_bias": True}, ["self_attn.q_proj", "mlp.down_proj"]),
        ("gpt2", {}, ["attn.c_attn", "mlp.c_proj"]),
        ("bert", {}, ["attention.self.query", "output.dense"]),
    ],
)
def test_the_linear_layers_of_the_body_are_in_4_bits_and_nothing_else(name, sizes, matrices):
    sizes = SIZES[name] | sizes
    model, original = build(name, **sizes), build(name, **sizes).state_dict()
    said = quantize_base(model, CPU)
    found = quantized_names(model)
    for matrix in matrices:
        assert sum(matrix in each for each in found) >= 2  # of two layers
    layers = ("layers.", ".h.", "encoder.layer.")
    expected = {each for each, weight in original.items() if any(part in each for part in layers) and weight.ndim == 2}
    assert found == expected  # no embeddings, no head, and no pooler of BERT, which is trained whole
    count = sum(original[each].numel() for each in found)
    assert said == f"the frozen base is in 4 bits (NF4): {count:,} of {model.num_parameters():,} weights"
    for each, weight in model.named_parameters():
        if each not in found:
            assert torch.equal(weight, original[each])
            continue
        matrix = original[each].T if name == "gpt2" else original[each]
        assert weight.numel() == matrix.numel() / 2  # two codes a byte
        # half of the widest gap between two values of NF4, which is between -1 and -0.696 of a block's largest weight
        assert (dequantized(weight) - matrix).abs().max() < 0.153 * matrix.abs().max()
        assert (dequantized(weight) - matrix).norm() < 0.1 * matrix.norm()


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_in_the_precision_of_its_inputs_also_after_an_evaluation(dtype):
    model = build("llama", **SIZES["llama"], attention_bias=True)
    torch.nn.init.normal_(model.model.layers[0].self_attn.q_proj.bias)
    quantize_base(model, CPU)
    layer = model.model.layers[0].self_attn.q_proj
    weight, bias = dequantized(layer.weight), layer.bias.detach().clone()
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.nn.functional.linear(inputs, weight.to(dtype), bias.to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    with torch.no_grad():
        assert layer(inputs).dtype == dtype
        assert (layer(inputs) - expected).abs().max() < tolerance
    inputs.requires_grad_()
    output = layer(inputs)
    assert (output - expected).abs().max() < tolerance
    [gradient] = torch.autograd.grad(output.sum(), inputs)
    assert gradient.dtype == dtype
    assert (gradient - weight.sum(0)).abs().max() < tolerance
    assert torch.equal(dequantized(layer.weight), weight)


@needs_bitsandbytes
def test_adapters_begin_as_those_of_the_same_model_in_full_precision():
    models = [build("llama", **SIZES["llama"]), build("llama", **SIZES["llama"])]
    quantize_base(models[1], CPU)
    whole, quantized = (with_adapter(model, ADAPTERS) for model in models)
    assert whole.num_parameters() == quantized.num_parameters()
    trained = [{n: w for n, w in model.named_parameters() if w.requires_grad} for model in (whole, quantized)]
    assert trained[0].keys() == trained[1].keys()
    assert len(trained[0]) == 2 * 7 * 2 + 1
    assert all(torch.equal(weight, trained[1][name]) for name, weight in trained[0].items())


@needs_bitsandbytes
def test_layers_of_another_width_stay_as_they_are():
    model = build("llama", **SIZES["llama"] | {"intermediate_size": 96})
    quantize_base(model, CPU)
    assert len(quantized_names(model)) == 2 * 6
    assert not any("down_proj" in name for name in quantized_names(model))
    with pytest.raises(
        TrainingError, match=r"no linear layers of a width that is a multiple of 64, .*: unset load_in_4bit"
    ):
        quantize_base(build("llama"), CPU)


# --- the probe -----------------------------------------------------------------------------------------------


@needs_bitsandbytes
def test_a_copy_for_the_probe_shares_the_codes_and_computes_the_same():
    model = build("llama", **SIZES["llama"] | {"num_hidden_layers": 4})
    quantize_base(model, CPU)
    copied = shallow_copy(model, CPU)
    originals = dict(model.named_parameters())
    assert len(quantized_names(copied)) == 2 * 7  # of 4 layers
    for name in quantized_names(copied):
        assert copied.get_parameter(name).data_ptr() == originals[name].data_ptr()
        assert copied.get_parameter(name).quant_state is originals[name].quant_state
    model.model.layers = model.model.layers[:2]
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(copied(input_ids=ids).logits, model(input_ids=ids).logits)


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("fault", "packing"), [(None, Packing.SHARED), (varlen_kernel.SEES_THE_SEQUENCE_BEFORE, Packing.PADDED)]
)
def test_the_probe_tells_a_wrong_packing_from_the_rounding_of_4_bits(cpu_as_gpu, monkeypatch, fault, packing):
    monkeypatch.setattr(varlen_kernel, "FAULTS", {fault} if fault else set())
    model = build("llama", **SIZES["llama"])
    quantize_base(model, CPU)
    model = with_adapter(model, ADAPTERS)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    assert choose_packing(model, pairs_of(edge_cases()), CPU).packing is packing


# --- training ------------------------------------------------------------------------------------------------


def curves(job, group):
    clear_output(Path(job.output_directory))
    said = []
    train_and_publish(job, group, TrainingLog(Path(job.output_directory) / METRICS, said.append))
    metrics = json.loads((Path(job.output_directory) / "manifest.json").read_text())["metrics"]
    lines = map(json.loads, (Path(job.output_directory) / METRICS).read_text().splitlines())
    return metrics, [line["loss"] for line in lines if "loss" in line], said


@needs_bitsandbytes
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_what_is_saved_is_the_checkpoint_with_the_adapters_merged(make_job, tmp_path, name):
    job = make_job(model=wide(tmp_path, name), settings=FOUR_BITS)
    original = build_model(job).state_dict()
    metrics, losses, said = curves(job, SINGLE_PROCESS)
    assert sum(text.startswith("the frozen base is in 4 bits (NF4): ") for text in said) == 1
    assert metrics["num_parameters"] == with_adapter(build_model(job), ADAPTERS).num_parameters()
    saved = load_model(Path(job.output_directory) / MODEL).state_dict()
    assert saved.keys() == original.keys()
    merged = 0
    for key, weight in saved.items():
        if weight.ndim == 2 and "embed" not in key and "score" not in key and "wte" not in key and "wpe" not in key:
            if "pooler" in key or "classifier" in key:
                continue
            added = weight - original[key]
            assert torch.linalg.matrix_rank(added, rtol=1e-4) <= 2, key  # rounding to 4 bits would have full rank
            merged += bool(added.abs().max() > 0)
        elif "score" not in key and "pooler" not in key and "classifier" not in key:
            assert torch.equal(weight, original[key]), key
    assert merged >= 8
    configuration = json.loads((Path(job.output_directory) / MODEL / "config.json").read_text())
    assert "quantization_config" not in configuration
    assert "| base while training | in 4 bits (NF4); " in (Path(job.output_directory) / MODEL / "README.md").read_text()
    assert losses[-1] < losses[0]


@needs_bitsandbytes
def test_a_gpu_trains_over_4_bits_as_a_cpu_does_but_for_rounding(make_job, gpu, monkeypatch, tmp_path):
    settings = {"learning_rate": 1e-3, "gradient_checkpointing": True}
    changes = {"model": wide(tmp_path), "settings": FOUR_BITS | settings}
    calls = dict(varlen_kernel.CALLS)
    job = make_job("gpu", **changes)
    figures, losses, _ = curves(job, gpu)
    assert all(varlen_kernel.CALLS[what] > calls[what] for what in calls)
    saved = load_model(Path(job.output_directory) / MODEL).state_dict()
    monkeypatch.undo()
    original = build_model(job).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.linalg.matrix_rank(saved[name] - original[name], rtol=1e-4) <= 2
    assert torch.equal(saved["model.embed_tokens.weight"], original["model.embed_tokens.weight"])
    expected_figures, expected, _ = curves(make_job("cpu", **changes), SINGLE_PROCESS)
    assert losses == pytest.approx(expected, abs=0.01)
    assert losses != expected  # which were computed in float32
    assert figures["packing"] == expected_figures["packing"] == Packing.SHARED
    assert figures["test_loss"] == pytest.approx(expected_figures["test_loss"], abs=0.02)


@needs_bitsandbytes
def test_on_a_gpu_each_process_keeps_the_codes_and_shards_the_adapters(make_job, gpu, tmp_path):
    from torch.distributed.tensor import DTensor

    job = make_job(model=wide(tmp_path), settings=FOUR_BITS)
    model = build_model(job)
    quantize_base(model, gpu.device)
    model = with_adapter(model, job.settings)
    run = prepare_run(model, read_splits(job, tmp_path)["train"], Choice(Packing.SHARED, ""), job.settings, gpu)
    kinds = {
        (type(weight).__name__, weight.dtype, isinstance(weight, DTensor), weight.requires_grad)
        for weight in run.scorer.model.base_model.model.model.parameters()
    }
    assert kinds == {
        ("Params4bit", torch.uint8, False, False),
        ("Parameter", torch.bfloat16, False, False),
        ("DTensor", torch.float32, True, True),
    }


@needs_bitsandbytes
def test_a_training_over_4_bits_resumes_to_the_bit(make_job, tmp_path):
    def make(name):
        splits = {"train": learnable_pairs(24), "validation": learnable_pairs(5, first=50)}
        settings = {**FOUR_BITS, "epochs": 1, "batch_pairs": 8, "micro_batch_tokens": 40}
        return make_job(name, splits=splits, model=wide(tmp_path), settings=settings)

    whole = make("whole")
    is_done, num_checks, _ = run_until(whole)
    assert is_done
    for part in (0.5, 0.8):
        job = make(f"stopped{part}")
        is_done, _, said = run_until(job, int(part * num_checks))
        assert not is_done
        assert "which is saved" in said[-1]
        assert run_until(job)[0]
        assert trained(job) == trained(whole)


@needs_bitsandbytes
@pytest.mark.soak  # two processes load everything first
def test_two_processes_over_4_bits_give_the_losses_of_one(make_job, metrics_of, tmp_path):
    found = []
    for number in (1, 2):
        settings = FOUR_BITS | {"num_processes": number, "batch_pairs": 3}
        job = make_job(f"{number}", model=wide(tmp_path), settings=settings)
        (tmp_path / "job.json").write_text(job.model_dump_json())
        done = subprocess.run([*MODULE, str(tmp_path / "job.json")], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append([line["loss"] for line in metrics_of(job)[0]])
    assert len(found[0]) == 12
    assert found[1] == pytest.approx(found[0], abs=1e-5)
