import os
import tempfile
from pathlib import Path

import pytest
import torch
from architectures import CPU

from rm_assets.settings import TrainingSettings
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.trainer import train
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.model.adapter import with_adapter
from rm_assets.training.model.layers import decoder_layers, prepare_layers, reason_not_to_compile
from rm_assets.training.model.probe import choose_packing
from rm_assets.training.model.reward_model import build_model
from rm_assets.training.packing.checks import read_splits


def trained_weights(job, **changes):
    """The weights after training with these settings changed, by name."""
    settings = TrainingSettings(**(job.settings.model_dump() | changes))
    splits = read_splits(job, Path(job.output_directory))
    model = build_model(job)
    choice = choose_packing(model, splits["train"], SINGLE_PROCESS.device)
    model = with_adapter(model, settings)
    train(model, splits, choice, settings, SINGLE_PROCESS, TrainingLog())
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_layers_that_are_computed_again_change_nothing_but_memory(make_job, lora_rank):
    job = make_job()
    kept = trained_weights(job, lora_rank=lora_rank)
    again = trained_weights(job, lora_rank=lora_rank, gradient_checkpointing=True)
    assert kept.keys() == again.keys()
    assert all(torch.equal(weight, again[name]) for name, weight in kept.items())


@pytest.mark.parametrize(("gradient_checkpointing", "num_passes"), [(False, 1), (True, 2)])
def test_a_layer_is_computed_again_in_the_backward_pass(make_job, gradient_checkpointing, num_passes):
    model = build_model(make_job())
    prepare_layers(model, TrainingSettings(gradient_checkpointing=gradient_checkpointing), CPU)
    passes = []
    for layer in decoder_layers(model):
        layer.mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    model(input_ids=torch.tensor([[7, 5, 1]])).logits.sum().backward()
    assert len(passes) == 2 * num_passes


def test_only_the_layers_own_flags_are_set_and_their_own_dropout_is_off(make_job):
    model = build_model(make_job())
    layers = decoder_layers(model)
    assert len(layers) == 2
    layers[0].dropout = 0.3  # as some architectures have it
    prepare_layers(model, TrainingSettings(gradient_checkpointing=True), CPU)
    in_training_mode = [module for module in model.modules() if module.training]
    assert in_training_mode == list(layers)
    assert all(layer.gradient_checkpointing for layer in layers)
    assert layers[0].dropout == 0.0


def test_compiled_layers_may_have_as_many_graphs_as_there_are_kinds_of_rows_and_layers(make_job):
    with torch._dynamo.config.patch(recompile_limit=8):
        prepare_layers(build_model(make_job()), TrainingSettings(compile=True), CPU)
        assert torch._dynamo.config.recompile_limit == 64


def test_compiled_code_lies_where_nobody_else_can_write_and_without_pickles(make_job, monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    prepare_layers(build_model(make_job()), TrainingSettings(compile=True), CPU)
    assert torch.compile(lambda x: x.cos() + 1)(torch.zeros(8)).tolist() == [2.0] * 8
    [directory] = (tmp_path / "temporary").iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert list(directory.rglob("*.so"))  # it was compiled, and there
    assert {path.name for path in directory.iterdir()} & {"fxgraph", "aotautograd"} == set()


def test_a_directory_for_compiled_code_that_is_given_is_kept(make_job, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    prepare_layers(build_model(make_job()), TrainingSettings(compile=True), CPU)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


def test_layers_are_compiled_where_it_is_asked_for_or_on_a_gpu_that_can(monkeypatch):
    gpu, unset = torch.device("cuda", 0), TrainingSettings()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: name if name == "gcc" else None)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(Path(__file__).parent / "none")})
    assert reason_not_to_compile(unset, CPU) == "on a CPU it takes longer than it saves"
    assert reason_not_to_compile(unset, gpu) == "this machine lacks Python's headers"
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = "the package triton, a C compiler, Python's headers"
    assert reason_not_to_compile(unset, gpu) == f"this machine lacks {missing}"
    for device in (CPU, gpu):
        assert reason_not_to_compile(TrainingSettings(compile=True), device) == ""
        assert reason_not_to_compile(TrainingSettings(compile=False), device) == "compile is off"


def test_a_gpu_that_has_all_that_compiling_needs_compiles(monkeypatch, tmp_path):
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    assert reason_not_to_compile(TrainingSettings(), torch.device("cuda", 0)) == ""


@pytest.mark.soak
def test_compiled_layers_train_alike(make_job):
    job = make_job(settings={"learning_rate": 1e-3})
    plain, compiled = trained_weights(job), trained_weights(job, compile=True)
    assert all(torch.allclose(weight, compiled[name], atol=1e-4) for name, weight in plain.items())
