"""A model on the Hub is checked by its small files and by the names of the others, before its weights are fetched."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from hub import REPOSITORY, Hub, hub_of_models
from safetensors.numpy import save_file

from rm_assets.data.chat.model_checks import INDEX
from rm_assets.data.chat.model_files import find_base_model
from rm_assets.settings import Settings, SettingsError
from rm_assets.training.model.architecture import check_architecture

LLAMA = {"model_type": "llama", "vocab_size": 7, "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with a sound model, whose weights nobody may fetch here."""
    with hub_of_models(tmp_path, monkeypatch) as server:
        configure(server)
        server.files["model.safetensors"] = b"weights"
        yield server
        assert not [path for _, path in server.requests if path.endswith("model.safetensors")]


def configure(hub: Hub, **changes: Any) -> None:
    hub.files["config.json"] = json.dumps(LLAMA | changes).encode()


def error_of() -> str:
    with pytest.raises(SettingsError) as error:
        find_base_model(Settings(model=REPOSITORY))
    setting = f"model (or RM_MODEL) is {REPOSITORY!r}: "
    assert str(error.value).startswith(setting)
    return str(error.value).removeprefix(setting)


def test_a_model_on_the_hub_is_known_by_its_commit(hub: Hub) -> None:
    model = find_base_model(Settings(model=REPOSITORY))
    assert model is not None
    assert (model.name, model.revision, model.vocab_size) == (REPOSITORY, hub.commit, 7)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "its head has 2 outputs"),  # the default, left out
        (
            {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}},
            "3 outputs",
        ),
        (
            {"architectures": ["LlamaForTokenClassification"], "id2label": {"0": "a", "1": "b"}},
            "its head has 2 outputs",
        ),
        ({"quantization_config": {"quant_method": "awq"}}, "its weights are quantized (awq)"),
        ({"model_type": "own"}, "model_type is 'own'"),
    ],
)
def test_a_model_that_cannot_be_trained_is_known_by_its_configuration(
    hub: Hub, changes: dict[str, Any], problem: str
) -> None:
    configure(hub, **changes)
    assert problem in error_of()


def test_a_reward_model_on_the_hub_is_taken(hub: Hub) -> None:
    configure(hub, architectures=["LlamaForSequenceClassification"], id2label={"0": "LABEL_0"})
    assert find_base_model(Settings(model=REPOSITORY))


def test_a_download_that_was_interrupted_is_no_fault_of_the_model(hub: Hub, tmp_path: Path) -> None:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"metadata": {}, "weight_map": dict(zip("ab", names, strict=True))}
    hub.files |= {f"model{INDEX}": json.dumps(index).encode()} | dict.fromkeys(names, b"weights")
    model = find_base_model(Settings(model=REPOSITORY))
    assert model is not None
    save_file({"a": np.zeros(2, np.float32)}, Path(model.directory) / names[0])  # as the training job fetches it
    assert find_base_model(Settings(model=REPOSITORY)) == model
    check_architecture(Path(model.directory), 512)


def test_an_adapter_on_the_hub_is_to_be_merged(hub: Hub) -> None:
    hub.files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}
    assert "a LoRA adapter, not a whole model; merge it into its base" in error_of()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("pytorch_model.bin", "has its weights only in 'pytorch_model.bin', and pickled weights are never opened"),
        ("model.gguf", "'model.gguf' cannot be trained"),
        ("original/model.safetensors", "has neither 'model.safetensors' nor"),
    ],
)
def test_a_repository_without_safetensors_is_named_with_what_it_has(hub: Hub, name: str, problem: str) -> None:
    hub.files[name] = hub.files.pop("model.safetensors")
    assert problem in error_of()


def test_a_repository_that_is_not_given_says_what_to_do(hub: Hub) -> None:
    hub.refusal = "GatedRepo"
    assert "the Hub asks to accept its license; do so on its page there, then log in with `hf auth login`" in error_of()
    hub.refusal = ""
    with pytest.raises(
        SettingsError, match="the Hub has no such repository, or a private one; correct the name, or log"
    ):
        find_base_model(Settings(model="owner/nothing"))


def test_a_hub_that_cannot_be_reached_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "give a local path, or try again when the Hub can be reached" in error_of()
