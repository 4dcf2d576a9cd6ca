"""A checkpoint whose weights are not those of its configuration is an error before any work, by its files' headers."""

import json

import pytest
import torch
from architectures import SHARED
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForQuestionAnswering

from rm_assets.settings import SettingsError
from rm_assets.training.model.reward_model import check_base_model
from rm_assets.training.saved_model.stock_scoring import load_saved_model

SHARDS = "model.safetensors.index.json"


@pytest.fixture
def save(tmp_path):
    """A function that saves a tiny model with random weights, and returns its directory."""

    def write(name="llama", kind=AutoModelForCausalLM, dtype=torch.float32, **options):
        config = AutoConfig.for_model(name, **{key: SHARED[name][key] for key in SHARED[name] if key != "num_labels"})
        kind.from_config(config, dtype=dtype).save_pretrained(tmp_path / "model", **options)
        return tmp_path / "model"

    return write


def configure(directory, **changes):
    configuration = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(configuration | changes))


def change_weights(directory, change):
    weights = load_file(directory / "model.safetensors")
    save_file(change(weights), directory / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox", "gemma3_text", "mixtral"])
def test_whole_weights_of_any_form_pass_without_a_message(save, capfd, caplog, name):
    causal = AutoModelForCausalLM
    for kind, dtype in ((causal, torch.float32), (causal, torch.bfloat16), (AutoModel, torch.float32)):
        directory = save(name, kind, dtype)
        capfd.readouterr()
        check_base_model(directory, 64)
        assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if "modeling" in record.name]


def test_weights_in_shards_pass_unless_the_index_leaves_some_out(save):
    directory = save(max_shard_size="20KB")
    check_base_model(directory, 64)
    index = json.loads((directory / SHARDS).read_text())
    index["weight_map"].pop("model.norm.weight")
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if "layers.1" not in name}
    (directory / SHARDS).write_text(json.dumps(index))
    with pytest.raises(SettingsError, match=r"^it lacks the weights \['model\.layers\.1\..*: give a complete checkpoi"):
        check_base_model(directory, 64)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"vocab_size": 120}, r"'model\.embed_tokens\.weight' have the shape \[97, 32\], and its config.* \[120, 32\]"),
        (
            {"intermediate_size": 64},
            r"'model\.layers\.0\.mlp\.down_proj\.weight' have the shape \[32, 48\], .*\[32, 6",
        ),
        ({"num_key_value_heads": 4}, r"'model\.layers\.0\.self_attn\.k_proj\.weight' have the shape \[16, 32\], and"),
        ({"num_hidden_layers": 3}, r"lacks the weights \['model\.layers\.2\."),
    ],
)
def test_weights_of_another_shape_than_the_configuration_describes_are_named(save, changes, problem):
    directory = save()
    configure(directory, **changes)
    with pytest.raises(SettingsError, match=problem):
        check_base_model(directory, 64)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda weights: {name: weight for name, weight in weights.items() if "q_proj" not in name},
            r"lacks the weights \['model\.layers\.0\.self_attn\.q_proj\.weight', .*\]: give",
        ),
        (
            lambda weights: {f"rwtransformer.{name}": weight for name, weight in weights.items()},
            r"lacks the weights \['model\.embed_tokens\.weight', .*\], and has others, such as 'rwtransformer\.",
        ),
    ],
)
def test_missing_weights_are_named_with_what_is_there_instead(save, change, problem):
    directory = save()
    change_weights(directory, change)
    with pytest.raises(SettingsError, match=problem):
        check_base_model(directory, 64)


def test_a_checkpoint_of_another_task_is_named_by_its_weights(save):
    with pytest.raises(SettingsError, match=r"lacks the weights \['model\..*, and has others, such as 'qa_outputs\."):
        check_base_model(save(kind=AutoModelForQuestionAnswering), 64)


def test_a_saved_model_of_another_shape_is_named_before_it_is_scored(make_job, tmp_path):
    from training_jobs import run

    directory = run(make_job()) / "model"
    configure(directory, intermediate_size=64)
    with pytest.raises(RuntimeError, match=r"down_proj\.weight' have the shape \[16, 32\], .* describes \[16, 64\]"):
        load_saved_model(directory)
