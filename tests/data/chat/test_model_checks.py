"""Directories that are not a model to train: each is one error before any work, which names the file and the cure."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rm_assets.data.chat.model_checks import INDEX, file_tensors, no_weights
from rm_assets.data.chat.model_files import find_base_model, find_tokenizer
from rm_assets.settings import Settings, SettingsError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n"
LLAMA = {"model_type": "llama", "vocab_size": 7, "architectures": ["LlamaForCausalLM"]}
BODY = {"model.norm.weight": np.zeros(4, np.float32)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The directory of a sound model, as far as files can tell."""
    directory = tmp_path / "model"
    directory.mkdir()
    configure(directory)
    save_file(BODY, directory / "model.safetensors")
    return directory


def configure(directory: Path, **changes: Any) -> None:
    (directory / "config.json").write_text(json.dumps(LLAMA | changes))


def write_shards(directory: Path, names: list[str]) -> list[Path]:
    """Shards of these names and their index, instead of a single file."""
    (directory / "model.safetensors").unlink()
    for name in names:
        save_file({name: np.zeros(2, np.float32)}, directory / name)
    content = {"metadata": {}, "weight_map": {name: name for name in names}}
    (directory / f"model{INDEX}").write_text(json.dumps(content))
    return [directory / name for name in names]


def error_of(directory: Path) -> str:
    """What the error says after the setting and its value."""
    with pytest.raises(SettingsError) as error:
        find_base_model(Settings(model=str(directory)))
    setting = f"model (or RM_MODEL) is {str(directory)!r}: "
    assert str(error.value).startswith(setting)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(setting)


def test_a_sound_model_is_taken_whole_or_in_shards(model: Path) -> None:
    assert find_base_model(Settings(model=str(model)))
    write_shards(model, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    assert find_base_model(Settings(model=str(model)))
    assert find_base_model(Settings()) is None


# --- files that are not what they are named ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "value_head.safetensors"])
def test_a_git_lfs_pointer_is_named_with_the_command_that_gets_the_file(model: Path, name: str) -> None:
    (model / name).write_bytes(POINTER)
    assert error_of(model) == (
        f"{name!r} in {str(model)!r}: a Git LFS pointer, not the file itself; run `git lfs install` and `git lfs pull` "
        "there"
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json", "chat_template.jinja"])
def test_a_git_lfs_pointer_in_place_of_a_file_of_the_tokenizer_is_named(model: Path, name: str) -> None:
    (model / name).write_bytes(POINTER)
    with pytest.raises(SettingsError, match=f"{name}' in .*: a Git LFS pointer, not the file itself"):
        find_tokenizer(Settings(model=str(model)))


def test_a_shard_that_is_a_pointer_is_named(model: Path) -> None:
    _, second = write_shards(model, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    second.write_bytes(POINTER)
    assert error_of(model).startswith(f"{second.name!r} in {str(model)!r}: a Git LFS pointer")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_empty_file_is_named(model: Path, name: str) -> None:
    (model / name).write_bytes(b"")
    assert error_of(model).startswith(f"{name!r} in {str(model)!r}: an empty file; download the files again")


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>", b'{"model_type": "llama", ', b"[]", b"\x80\x02}q\x00."])
def test_a_configuration_that_is_not_json_is_named(model: Path, content: bytes) -> None:
    (model / "config.json").write_bytes(content)
    assert error_of(model).startswith(f"'config.json' in {str(model)!r}: not a JSON object that can be read")


@pytest.mark.parametrize("left", [1, 7, 8, 40, -4, -1])
def test_weights_that_are_cut_short_are_named(model: Path, left: int) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:left])
    problem = "not a safetensors file that can be read, perhaps cut short"
    assert error_of(model).startswith(f"'model.safetensors' in {str(model)!r}: {problem}")


# --- files that are not there --------------------------------------------------------------------------------


def test_a_shard_that_is_not_there_is_named(model: Path) -> None:
    first, second = write_shards(model, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    second.unlink()
    assert f"it names files that are missing: {second.name!r}; download the files again" in error_of(model)
    second.symlink_to("gone")
    assert second.name in error_of(model)
    second.unlink()
    first.unlink()
    assert f"it names files that are missing: {first.name!r} and 1 more;" in error_of(model)


@pytest.mark.parametrize("index", [{"metadata": {}, "weight_map": {}}, {"weight_map": {"a": "b.safetensors"}}, {}])
def test_an_index_that_lacks_an_object_is_an_error_that_names_both(model: Path, index: dict[str, Any]) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "weight_map, an object that is not empty, and metadata, an object" in error_of(model)


def test_shards_without_their_index_are_named(model: Path) -> None:
    first, _ = write_shards(model, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    (model / f"model{INDEX}").unlink()
    assert f"{first.name!r} without their index 'model.safetensors.index.json'" in error_of(model)


@pytest.mark.parametrize(
    "names",
    [
        ["pytorch_model.bin"],
        ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"],
        ["consolidated.00.pth"],
    ],
)
def test_pickled_weights_are_never_opened_and_how_to_convert_them_is_said(model: Path, names: list[str]) -> None:
    (model / "model.safetensors").unlink()
    for name in [*names, "training_args.bin"]:
        (model / name).write_bytes(b"\x80\x02}q\x00.")
    told = error_of(model)
    assert told.startswith(f"{str(model)!r} has its weights only in {names[0]!r}, and pickled weights are never opened")
    assert (
        "convert them to safetensors (load them with transformers where you trust them, then save_pretrained)" in told
    )


def test_a_directory_without_weights_names_what_it_has(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert "has neither 'model.safetensors' nor 'model.safetensors.index.json'; give a directory" in error_of(model)
    (model / "model-q4.gguf").write_bytes(b"GGUF")
    save_file(BODY, model / "value_head.safetensors")  # which is a part of a model
    assert "('model-q4.gguf' cannot be trained)" in error_of(model)


@pytest.mark.parametrize("below", ["checkpoint-100", "4598015e26a0087d/model"])
def test_a_directory_that_has_a_model_below_it_names_that(model: Path, tmp_path: Path, below: str) -> None:
    home = tmp_path / "trained"
    for name in (".training/run/model", below):
        shutil.copytree(model, home / name)
    cure = f"give a directory that save_pretrained of transformers wrote, such as {str(home / below)!r}"
    assert error_of(home) == f"no model there (no config.json); {cure}"
    (home / "damaged").mkdir()
    (home / "damaged" / "config.json").symlink_to("gone")
    assert error_of(home).endswith(cure)


def test_files_of_the_hub_are_judged_by_their_names() -> None:
    assert "only in 'pytorch_model.bin'" in no_weights(
        ["config.json", "pytorch_model.bin", "tf_model.h5"], "owner/name"
    )


# --- models that cannot be trained ---------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [True, False], ids=["beside a model", "alone"])
def test_an_adapter_is_to_be_merged(model: Path, beside: bool) -> None:
    (model / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "o/n"}))
    if not beside:
        (model / "config.json").unlink()
    cure = "merge it into its base (merge_and_unload of peft), and give the merged directory"
    assert error_of(model) == f"'adapter_config.json' in {str(model)!r}: a LoRA adapter, not a whole model; {cure}"


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, " (bitsandbytes)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, " (gptq)"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, " (fp8)"),
        ({"quantization": {"group_size": 64, "bits": 4}}, ""),
    ],
)
def test_quantized_weights_are_refused_by_the_configuration(model: Path, changes: dict[str, Any], shown: str) -> None:
    configure(model, **changes)
    assert f"says that its weights are quantized{shown}, and those cannot be trained; give the model" in error_of(model)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("model.layers.0.mlp.up_proj.weight", np.uint8), ("model.layers.0.mlp.up_proj.qweight", np.int32)],
)
def test_quantized_weights_are_refused_by_their_type(model: Path, name: str, dtype: Any) -> None:
    configure(model, quantization_config=None)
    save_file({name: np.zeros((2, 2), dtype), "model.rotary.bias": np.zeros(2, np.bool_)}, model / "model.safetensors")
    assert f"{name!r} is quantized" in error_of(model)


def test_buffers_of_integers_are_not_quantized_weights(model: Path) -> None:
    """GPT-2 saves its causal mask, and others the numbers of positions."""
    save_file(BODY | {"h.0.attn.bias": np.zeros((2, 2), np.uint8)}, model / "model.safetensors")
    assert find_base_model(Settings(model=str(model)))


@pytest.mark.parametrize("num_outputs", [2, 5])
def test_a_head_with_several_outputs_is_refused(model: Path, num_outputs: int) -> None:
    save_file(BODY | {"score.weight": np.zeros((num_outputs, 4), np.float32)}, model / "model.safetensors")
    assert f"its head has {num_outputs} outputs, and that of a reward model has 1: give" in error_of(model)


def test_a_head_with_one_output_is_taken_whatever_the_labels_are_named(model: Path) -> None:
    save_file(BODY | {"score.weight": np.zeros((1, 4), np.float32)}, model / "model.safetensors")
    configure(model, architectures=["LlamaForSequenceClassification"], id2label={"0": "good"})
    assert find_base_model(Settings(model=str(model)))


@pytest.mark.parametrize(
    ("model_type", "shown"), [("own", "'own'"), (None, "None"), (["llama"], "['llama']"), ("x" * 200, "'xxx")]
)
def test_an_unknown_architecture_is_named(model: Path, model_type: Any, shown: str) -> None:
    configure(model, model_type=model_type)
    told = error_of(model)
    assert f"model_type is {shown}" in told
    assert "does not know; give a model of a type that transformers knows, such as Qwen3" in told


def test_the_header_of_a_file_describes_its_tensors(model: Path) -> None:
    path = model / "model.safetensors"
    assert file_tensors(path) == {"model.norm.weight": ("F32", (4,), path)}
