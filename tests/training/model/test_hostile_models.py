"""Model directories of somebody who means harm: no code of theirs runs, and no size that they claim is believed."""

import json
import os
import pickle
import resource
import struct
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, LlamaConfig

from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.model.reward_model import build_model


class RunsWhenUnpickled:
    def __reduce__(self):
        return Path.touch, (Path("run"),)


@pytest.fixture
def given_model(tmp_path, monkeypatch):
    """The directory of a sound model; whatever would run code of it leaves a file `run` beside it."""
    monkeypatch.chdir(tmp_path)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32}
    sound = LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, num_labels=1)
    AutoModelForSequenceClassification.from_config(sound).save_pretrained("given")
    Path("given", "own.py").write_text("open('run', 'w')\nclass Config: pass\nclass Model: pass\n")
    # room for what is sound, and none for what a configuration makes up
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, before[1]))
    yield tmp_path / "given"
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "job") == ["given"]


def configure(directory, **changes):
    configuration = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(configuration | changes))


OWN_CODE = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"vocab_size": 10**9}, "have the shape .40, 16., and its config.json describes .1000000000, 16."),
        ({"hidden_size": 10**4}, "the head 'score' in 'model.safetensors' has a weight of shape"),
        ({"num_hidden_layers": 50}, "lacks the weights"),
        ({"hidden_size": -1}, "not a multiple"),
        ({"hidden_size": "wide"}, "expected int, got str"),
        ({"auto_map": OWN_CODE, "model_type": "own"}, "auto_map asks for code of its own, which is never run"),
    ],
)
def test_a_configuration_that_the_weights_do_not_have_is_refused(make_job, given_model, changes, problem):
    configure(given_model, **changes)
    with pytest.raises((TrainingError, StrictDataclassError), match=problem):
        build_model(make_job(model=str(given_model), toy=False))


def test_the_code_of_a_model_that_transformers_knows_is_not_asked(make_job, given_model):
    configure(given_model, auto_map=OWN_CODE)
    assert type(build_model(make_job(model=str(given_model), toy=False))).__name__ == "LlamaForSequenceClassification"


@pytest.mark.parametrize(
    ("num_bytes", "tensors", "problem"),
    [
        (2**60, {}, "header too large"),
        (None, {"score.weight": {"dtype": "F32", "shape": [10**12, 10**12], "data_offsets": [0, 4]}}, "overflow"),
    ],
)
def test_weights_that_claim_to_be_endless_are_refused(make_job, given_model, num_bytes, tensors, problem):
    header = json.dumps(tensors).encode()
    (given_model / "model.safetensors").write_bytes(struct.pack("<Q", num_bytes or len(header)) + header + bytes(4))
    with pytest.raises((TrainingError, SafetensorError), match=problem):
        build_model(make_job(model=str(given_model), toy=False))


def test_an_adapter_beside_a_model_is_not_unpickled_nor_put_on_the_model_that_it_names(make_job, given_model):
    base = {"base_model_name_or_path": "somebody/else", "peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2}
    (given_model / "adapter_config.json").write_text(json.dumps(base | {"target_modules": ["q_proj"]}))
    (given_model / "adapter_model.bin").write_bytes(pickle.dumps(RunsWhenUnpickled()))
    with pytest.raises(TrainingError, match="a LoRA adapter, not a whole model; merge it into its base"):
        build_model(make_job(model=str(given_model), toy=False))
