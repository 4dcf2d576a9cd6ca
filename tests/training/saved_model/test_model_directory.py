"""The model directory in the spellings of transformers 4 and 5. Other versions read it in tests/servers."""

import json
import os
import re
import shutil
import stat
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from architectures import SHARED, build
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from rm_assets.data.chat.pretrained import load_tokenizer
from rm_assets.training.jobs.training_job import TrainingError, TrainingJob
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.model.reward_model import load_model
from rm_assets.training.run import train_and_publish
from rm_assets.training.saved_model import model_directory
from rm_assets.training.saved_model.golden_scores import verify_golden_scores
from rm_assets.training.saved_model.model_directory import _write_old_configuration as write_old_configuration
from rm_assets.training.saved_model.model_directory import require_same_tokenizer, save_model
from rm_assets.training.saved_model.stock_scoring import load_saved_model

SAMPLE_TOKENIZER = Path("rm_assets/sample/tokenizer")
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3 |= {"original_max_position_embeddings": 64}
LONG = {"short_factor": [1.5] * 4, "long_factor": [2.5] * 4}
SIX_LAYERS = {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2}
THETA = {"rope_theta": 3456.0, "rope_type": "default"}

OLD_FIELDS = {
    "qwen3": ({"rope_parameters": THETA}, {"rope_theta": 3456.0, "rope_scaling": None}),
    "llama": (
        {"rope_parameters": {"rope_theta": 5e5, **LLAMA_3}},
        {"rope_theta": 5e5, "rope_scaling": LLAMA_3},
    ),
    "gemma3_text": (
        SIX_LAYERS
        | {
            "rope_parameters": {
                "full_attention": {"rope_theta": 7777.0, "rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_theta": 333.0, "rope_type": "default"},
            }
        },
        {"rope_theta": 7777.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 333.0}
        | {"sliding_window_pattern": 3},
    ),
    "phi3": (
        {
            "rope_parameters": {"rope_theta": 1234.0, "rope_type": "longrope", **LONG},
            "original_max_position_embeddings": 64,
        },
        {"rope_theta": 1234.0, "rope_scaling": {"type": "longrope", **LONG}, "partial_rotary_factor": 1.0},
    ),
    "gpt_neox": (
        {"rope_parameters": THETA | {"partial_rotary_factor": 0.5}},
        {"rotary_emb_base": 3456.0, "rotary_pct": 0.5, "rope_scaling": None},
    ),
    "gpt2": ({}, {}),
}
"""By architecture: fields of a configuration, and those by which transformers 4 knows them."""


def saved(name, directory, body_dtype="float32", tokenizer=SAMPLE_TOKENIZER, **fields):
    """A tiny model of this architecture in a directory, and the same in memory."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    model = build(name, vocab_size=len(tokenizer), **fields)
    save_model(model, tokenizer, directory, body_dtype)
    return model


def content(path: Path):
    return json.loads(path.read_text())


def golden_scores(directory: Path):
    return [item["score"] for item in content(directory / "golden_scores.json")["conversations"]]


def scores_by_the_card(directory: Path):
    """The scores that the card's code for transformers gives."""
    [code] = re.findall(r"transformers:\n\n```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    first, second = re.split(r"^conversation = .*\n", code, flags=re.MULTILINE)
    names: dict = {"directory": directory}
    exec(first, names)
    found = []
    for item in content(directory / "golden_scores.json")["conversations"]:
        names["conversation"] = item["messages"]
        exec(second, names)
        found.append(names["score"].item())
    return found


@pytest.mark.parametrize("name", OLD_FIELDS)
def test_the_configuration_has_the_fields_of_transformers_4(name, tmp_path):
    fields, old_fields = OLD_FIELDS[name]
    saved(name, tmp_path, **fields)
    written = content(tmp_path / "config.json")
    assert {field: written.get(field) for field in old_fields} == old_fields
    assert all(field in written for field in old_fields)
    assert written["torch_dtype"] == written["dtype"] == "float32"
    assert written["problem_type"] == "regression"


@pytest.mark.parametrize("name", SHARED)
def test_this_version_reads_what_was_saved(name, tmp_path):
    fields = OLD_FIELDS.get(name, ({}, {}))[0]
    model = saved(name, tmp_path, **fields)
    loaded = load_model(tmp_path)
    rope = dict(getattr(loaded.config, "rope_parameters", None) or {})
    rope.pop("type", None)  # the old name of rope_type, of Phi-3
    assert rope == (getattr(model.config, "rope_parameters", None) or {})
    assert getattr(loaded.config, "layer_types", None) == getattr(model.config, "layer_types", None)
    ids = torch.arange(5, 60)[None]
    assert torch.allclose(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-6)


BOTH_LAYERS = {
    "full_attention": {"rope_theta": 7777.0, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": THETA,
}


def test_a_spelling_that_this_version_would_read_otherwise_is_left_out(tmp_path):
    fields = {"rope_parameters": deepcopy(BOTH_LAYERS), "layer_types": ["sliding_attention", "full_attention"]}
    try:
        AutoConfig.for_model("cohere2", num_hidden_layers=2, **fields).save_pretrained(tmp_path)
    except AttributeError:
        pytest.skip("transformers 5.17 cannot state these parameters itself")
    write_old_configuration(tmp_path)
    written = content(tmp_path / "config.json")
    assert "rope_scaling" not in written  # which would replace the parameters of both types
    assert written["rope_theta"] == 7777.0
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == BOTH_LAYERS


def test_the_configuration_of_the_text_inside_another_one_has_the_fields_too(tmp_path):
    fields = SIX_LAYERS | {"rope_parameters": deepcopy(BOTH_LAYERS)}  # transformers 5.17 changes what it is given
    AutoConfig.for_model("gemma3", text_config=fields).save_pretrained(tmp_path)
    write_old_configuration(tmp_path)
    written = content(tmp_path / "config.json")["text_config"]
    assert (written["rope_theta"], written["rope_local_base_freq"]) == (7777.0, 3456.0)
    assert AutoConfig.from_pretrained(tmp_path).text_config.rope_parameters == BOTH_LAYERS


@pytest.mark.parametrize("name", ["qwen3", "qwen2"])  # the second has a class of its own in this version
def test_the_tokenizer_is_one_of_both_versions(name, tmp_path):
    saved(name, tmp_path)
    written = content(tmp_path / "tokenizer_config.json")
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["model_input_names"] == ["input_ids", "attention_mask"]
    assert written["additional_special_tokens"] == ["<|im_start|>", "<|endoftext|>"]
    assert "extra_special_tokens" not in written
    assert {"<|im_start|>", "<|pad|>"} <= set(AutoTokenizer.from_pretrained(tmp_path).all_special_tokens)


@pytest.mark.parametrize("own", ["Qwen2Tokenizer", "GPT2Tokenizer", "LlamaTokenizer"])
def test_a_tokenizer_of_another_class_gives_the_ids_that_its_class_gave(own, tmp_path):
    given = Path(shutil.copytree(SAMPLE_TOKENIZER, tmp_path / "tokenizer"))
    path = given / "tokenizer_config.json"
    path.write_text(json.dumps(content(path) | {"tokenizer_class": own}))
    saved("llama", tmp_path / "model", tokenizer=given)
    assert content(tmp_path / "model" / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    text = "  12345 * 6789\n\n\nGröße, e\u0301 你好 👍🏽"
    before, after = (AutoTokenizer.from_pretrained(directory) for directory in (given, tmp_path / "model"))
    assert before(text)["input_ids"] == after(text)["input_ids"]


def test_a_class_that_would_load_another_tokenizer_is_not_written(tmp_path, monkeypatch):
    def load(directory):
        tokenizer = load_tokenizer(directory)
        if content(Path(directory) / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast":
            tokenizer.add_tokens(["river"])
        return tokenizer

    monkeypatch.setattr(model_directory, "load_tokenizer", load)
    saved("llama", tmp_path)
    assert content(tmp_path / "tokenizer_config.json")["tokenizer_class"] == "TokenizersBackend"


def test_the_head_has_the_names_of_llama_factory_in_a_file_that_the_index_leaves_out(tmp_path):
    model = saved("llama", tmp_path)
    head = load_file(tmp_path / "value_head.safetensors")
    assert torch.equal(head["v_head.summary.weight"], model.score.weight)
    assert head["v_head.summary.bias"].tolist() == [0.0]
    names = content(tmp_path / "model.safetensors.index.json")["weight_map"]
    assert names == dict.fromkeys(load_file(tmp_path / "model.safetensors"), "model.safetensors")


def test_every_file_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        saved("llama", tmp_path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}


def test_a_body_in_bfloat16_has_a_head_in_float32_and_its_golden_scores(job_in, tmp_path):
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        job: TrainingJob = job_in(tmp_path, dtype, settings={"saved_dtype": dtype})
        train_and_publish(job, SINGLE_PROCESS, TrainingLog())
        directory = Path(job.output_directory) / "model"
        weights = load_file(directory / "model.safetensors")
        assert weights.pop("score.weight").dtype == torch.float32
        assert {weight.dtype for weight in weights.values()} == {getattr(torch, dtype)}
        written = content(directory / "config.json")
        assert written["dtype"] == written["torch_dtype"] == dtype
        assert verify_golden_scores(directory, load_saved_model(directory)) == 0
        assert scores_by_the_card(directory) == pytest.approx(golden_scores(directory), abs=1e-6)
        sizes[dtype] = sum(weight.nbytes for weight in weights.values())
    assert sizes["float32"] == 2 * sizes["bfloat16"]


def test_the_precision_of_the_saved_model_is_part_of_its_key(make_job):
    assert make_job().settings.decisive()["saved_dtype"] == "float32"
    assert make_job(settings={"saved_dtype": "bfloat16"}).settings.decisive()["saved_dtype"] == "bfloat16"


def test_a_tokenizer_that_the_models_type_would_replace_is_refused():
    tokenizer = load_tokenizer(str(SAMPLE_TOKENIZER))
    require_same_tokenizer(tokenizer, AutoConfig.for_model("llama"))
    with pytest.raises(TrainingError, match="type 'qwen2' would be loaded with Qwen2Tokenizer, which gives other"):
        require_same_tokenizer(tokenizer, AutoConfig.for_model("qwen2"))
