"""How much memory the phases of a job take, in live tensors."""

import contextlib
import gc

import pytest
import torch
from architectures import CPU
from torch import nn
from transformers import LlamaConfig

from rm_assets.training import run as job_run
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.model import offloading
from rm_assets.training.model.adapter import base_of, with_adapter
from rm_assets.training.model.layers import decoder_layers, shallow_copy
from rm_assets.training.model.reward_model import build_model
from rm_assets.training.run import train_and_publish


def live_bytes():
    """Bytes of the storages of all tensors that Python objects refer to, and of their gradients; not of frozen ones."""
    storages = {}
    for found in gc.get_objects():
        with contextlib.suppress(ReferenceError):  # of a weak proxy
            if issubclass(type(found), torch.Tensor) and found.device == CPU:
                for tensor in (found.detach(), found.grad if found.is_leaf else None):
                    if tensor is not None:
                        storage = tensor.untyped_storage()
                        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.fixture
def peaks(monkeypatch):
    """The most live bytes at the start of a forward pass, by phase."""
    gc.collect()
    gc.freeze()  # what was there before is not counted, and need not be searched
    found, phase = {}, ["other"]
    forward = nn.Embedding.forward

    def noticed(self, ids):
        gc.collect(0)
        found[phase[0]] = max(found.get(phase[0], 0), live_bytes())
        return forward(self, ids)

    def in_phase(name):
        function = getattr(job_run, name)

        def called(*arguments, **keywords):
            phase[0] = name
            return function(*arguments, **keywords)

        return called

    monkeypatch.setattr(nn.Embedding, "forward", noticed)
    for name in ("choose_packing", "train", "evaluate", "write_golden_scores"):
        monkeypatch.setattr(job_run, name, in_phase(name))
    yield found
    gc.unfreeze()


@pytest.fixture
def larger_toy(tmp_path):
    config = LlamaConfig(
        vocab_size=40, hidden_size=128, intermediate_size=256, num_hidden_layers=6, num_attention_heads=2
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "larger")
    return str(tmp_path / "larger")


# weights, gradients, two moments, and the copies of all but gradients that are being written as a checkpoint
@pytest.mark.parametrize(("settings", "of_weights"), [({"lora_rank": 1}, 1.1), ({}, 7.1)])
def test_no_phase_takes_much_more_memory_than_training_itself(make_job, larger_toy, peaks, settings, of_weights):
    job = make_job(model=larger_toy, settings=settings)
    weights = 4 * sum(weight.numel() for weight in build_model(job).parameters())
    train_and_publish(job, SINGLE_PROCESS, TrainingLog())
    assert set(peaks) == {"choose_packing", "train", "evaluate", "write_golden_scores"}
    assert weights < peaks["train"] < of_weights * weights
    for phase, peak in peaks.items():
        assert peak < 1.2 * peaks["train"], (phase, {name: size / weights for name, size in peaks.items()})


def test_over_a_base_in_4_bits_no_phase_takes_much_more_of_a_gpu(make_job, larger_toy, peaks, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(offloading, "_free_memory", lambda device: 1000.0)  # layers of what is saved stay on the host
    job = make_job(model=larger_toy, settings={"lora_rank": 1, "load_in_4bit": True, "micro_batch_tokens": 400})
    weights = 4 * sum(weight.numel() for weight in build_model(job).parameters())
    train_and_publish(job, SINGLE_PROCESS, TrainingLog())
    # codes, and of the adapters: weights, gradients, two moments, and the copies that are being written
    assert weights / 8 < peaks["train"] < weights / 3
    assert peaks["choose_packing"] < 1.2 * peaks["train"]
    for phase in ("evaluate", "write_golden_scores"):
        assert weights < peaks[phase] < weights + 0.2 * peaks["train"], {n: size / weights for n, size in peaks.items()}


def test_a_copy_for_the_probe_shares_frozen_weights_and_no_others(make_job, larger_toy):
    job = make_job(model=larger_toy, settings={"lora_rank": 1})
    model = base_of(with_adapter(build_model(job), job.settings))
    copied = shallow_copy(model, CPU)
    assert (len(decoder_layers(model)), len(decoder_layers(copied))) == (6, 2)
    originals = dict(model.named_parameters())
    for name, weight in copied.named_parameters():
        is_shared = weight.data_ptr() == originals[name].data_ptr()
        assert (is_shared, weight.requires_grad) == (not originals[name].requires_grad, originals[name].requires_grad)
        assert weight is not originals[name]
