"""Reward models of other trainers go on with their own head, and score as before; none is lost without an error."""

import json
import re

import pytest
import torch
from hub import REPOSITORY, hub_of_models
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rm_assets.settings import SettingsError
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.model.checkpoint_head import NEW, find_head
from rm_assets.training.model.reward_model import build_with_origin, check_base_model, load_tokenizer
from rm_assets.training.saved_model.model_directory import save_model

CONFIG = LlamaConfig(
    vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
)
IDS = torch.tensor([[3, 9, 27, 5]])


@pytest.fixture
def language(tmp_path):
    """A language model, saved in `model/`."""
    torch.manual_seed(5)
    model = LlamaForCausalLM(CONFIG).eval()
    model.save_pretrained(tmp_path / "model")
    return model


def hidden_state(language):
    """The last token's hidden state, which every head reads, [1, H]."""
    return language.model(IDS).last_hidden_state[:, -1]


def change_weights(directory, change):
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def add(directory, **tensors):
    change_weights(directory, lambda weights: weights.update(tensors))


def built(make_job, directory):
    return build_with_origin(make_job(model=str(directory), toy=False))


def error_of(make_job, directory):
    """What is said before any work, and again by the job."""
    with pytest.raises(SettingsError) as error:
        check_base_model(directory, 64)
    with pytest.raises(TrainingError, match="change the setting model") as later:
        built(make_job, directory)
    assert str(error.value)[:300] in str(later.value)
    return str(error.value)


def test_a_language_model_gets_a_new_head(make_job, tmp_path, language):
    _, origin = built(make_job, tmp_path / "model")
    assert origin == (NEW, ())


def test_a_stock_head_is_kept(make_job, tmp_path):
    trained = LlamaForSequenceClassification(LlamaConfig(**CONFIG.to_diff_dict(), num_labels=1)).eval()
    trained.save_pretrained(tmp_path / "model")
    model, origin = built(make_job, tmp_path / "model")
    assert origin == ("the checkpoint's (score.weight)", ())
    assert torch.equal(model(IDS).logits, trained(IDS).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_saved_by_this_package_continues_with_its_head(make_job, tmp_path, dtype):
    trained = LlamaForSequenceClassification(LlamaConfig(**CONFIG.to_diff_dict(), num_labels=1)).eval()
    trained.score.weight.data.normal_()
    job = make_job()
    save_model(trained, load_tokenizer(job), tmp_path / "saved", dtype)
    assert (tmp_path / "saved" / "value_head.safetensors").is_file()
    model, origin = built(make_job, tmp_path / "saved")
    assert origin.head == "the checkpoint's (score.weight)"
    assert torch.equal(model.score.weight, trained.score.weight)
    change_head(tmp_path / "saved" / "value_head.safetensors")
    assert "has several heads, ['score', 'v_head.summary']: remove all but one" in error_of(
        make_job, tmp_path / "saved"
    )


def change_head(path):
    weights = load_file(path)
    weights["v_head.summary.weight"] += 1e-3
    save_file(weights, path)


@pytest.mark.parametrize("name", ["value_head.weight", "v_head.summary.weight", "v_head.weight", "reward_head.weight"])
def test_a_head_of_another_name_is_kept(make_job, tmp_path, language, name):
    head = torch.randn(1, 16)
    add(tmp_path / "model", **{name: head})
    model, origin = built(make_job, tmp_path / "model")
    assert origin == (f"the checkpoint's ({name})", ())
    torch.testing.assert_close(model(IDS).logits, hidden_state(language) @ head.T)


def test_a_head_in_a_shard_and_in_bfloat16_is_kept(make_job, tmp_path, language):
    head = torch.randn(1, 16).bfloat16()
    language.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    index["weight_map"]["value_head.weight"] = "model-head.safetensors"
    save_file({"value_head.weight": head}, tmp_path / "sharded" / "model-head.safetensors")
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    model, _ = built(make_job, tmp_path / "sharded")
    torch.testing.assert_close(model(IDS).logits, hidden_state(language) @ head.float().T)


def test_a_model_on_the_hub_is_fetched_with_its_head_and_nothing_else(make_job, tmp_path, language, monkeypatch):
    head = torch.randn(1, 16)
    save_file({"v_head.summary.weight": head}, tmp_path / "model" / "value_head.safetensors")
    with hub_of_models(tmp_path / "cache", monkeypatch) as hub:
        hub.files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
        hub.files["consolidated.safetensors"] = hub.files["original/model.safetensors"] = b"the same again"
        model, origin = build_with_origin(make_job(model=REPOSITORY, model_revision=hub.commit, toy=False))
        assert not [path for _, path in hub.requests if "consolidated" in path or "original" in path]
    assert origin.head == "the checkpoint's (v_head.summary.weight in value_head.safetensors)"
    torch.testing.assert_close(model(IDS).logits, hidden_state(language) @ head.T)


def test_llama_factorys_file_of_the_head_is_read(make_job, tmp_path, language):
    head = {"v_head.summary.weight": torch.randn(1, 16), "v_head.summary.bias": torch.zeros(1)}
    save_file(head, tmp_path / "model" / "value_head.safetensors")
    model, origin = built(make_job, tmp_path / "model")
    assert origin.head == "the checkpoint's (v_head.summary.weight in value_head.safetensors)"
    torch.testing.assert_close(model(IDS).logits, hidden_state(language) @ head["v_head.summary.weight"].T)


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (
            {"dense.weight": (4, 16)},
            "'value_head.safetensors' in .*: 'dense.weight' looks like part of a head of another",
        ),
        (
            {"v_head.summary.weight": (1, 16)},
            r"has several heads, \['v_head.summary', 'v_head.summary'\]: remove all but",
        ),
    ],
)
def test_a_file_of_the_head_holds_the_one_head_and_nothing_else(make_job, tmp_path, language, tensors, problem):
    save_file(
        {name: torch.ones(shape) for name, shape in tensors.items()}, tmp_path / "model" / "value_head.safetensors"
    )
    add(tmp_path / "model", **{"v_head.summary.weight": torch.full((1, 16), 2.0)})
    assert re.search(problem, error_of(make_job, tmp_path / "model"))


def test_the_head_of_trls_value_models_is_refused_for_its_bias_and_read_without(make_job, tmp_path, language):
    summary = torch.nn.Linear(16, 1)  # as ValueHead of TRL 0.x has it
    add(tmp_path / "model", **{f"v_head.summary.{name}": value for name, value in summary.state_dict().items()})
    assert "the head 'v_head.summary' in 'model.safetensors' has a bias" in error_of(make_job, tmp_path / "model")
    change_weights(tmp_path / "model", lambda weights: weights["v_head.summary.bias"].zero_())
    model, origin = built(make_job, tmp_path / "model")
    assert origin.head == "the checkpoint's (v_head.summary.weight)"
    torch.testing.assert_close(model(IDS).logits + summary.bias, summary(hidden_state(language)))


@pytest.mark.parametrize(
    ("name", "value"), [("v_head.summary.bias", 0.25), ("value_head.bias", -3.0), ("score.bias", 1e-6)]
)
def test_a_bias_would_be_lost_so_it_is_an_error_that_says_what_it_does(make_job, tmp_path, language, name, value):
    prefix = name.removesuffix(".bias")
    add(tmp_path / "model", **{f"{prefix}.weight": torch.randn(1, 16), name: torch.tensor([value])})
    told = error_of(make_job, tmp_path / "model")
    assert f"the head {prefix!r} in 'model.safetensors' has a bias, {value:.6g}, for which" in told
    assert "set it to 0 there, which shifts all scores by as much" in told


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (
            {"score.weight": (1, 16), "value_head.weight": (1, 16)},
            "has several heads, ['score', 'value_head']: remove all",
        ),
        ({"value_head.weight": (2, 16)}, "has a weight of shape [2, 16], and that of a reward model is [1, 16] here"),
        ({"value_head.weight": (16,)}, "has a weight of shape [16]"),
        ({"value_head.weight": (1, 1)}, "has a weight of shape [1, 1], and that of a reward model is [1, 16] here"),
        ({"v_head.summary.bias": (1,)}, "has no weight"),
        (
            {"score.0.weight": (16, 16), "score.2.weight": (1, 16)},
            "'score.0.weight' looks like part of a head of another",
        ),
        ({"regression_layer.weight": (19, 16)}, "'regression_layer.weight' looks like part of a head of another kind"),
        ({"reward_head.0.weight": (1, 16)}, "'reward_head.0.weight' looks like part of a head of another kind"),
        ({"classifier.weight": (1, 16)}, "'classifier.weight' looks like part of a head of another kind"),
    ],
)
def test_a_head_that_cannot_be_kept_is_an_error(make_job, tmp_path, language, tensors, problem):
    add(tmp_path / "model", **{name: torch.ones(shape) for name, shape in tensors.items()})
    assert problem in error_of(make_job, tmp_path / "model")


def test_a_pickled_head_is_not_opened(make_job, tmp_path, language):
    (tmp_path / "model" / "value_head.bin").write_bytes(b"\x80\x02}q\x00.")
    assert "'value_head.bin' in" in (told := error_of(make_job, tmp_path / "model"))
    assert "a pickled head, and pickles are never opened; if you trust it, load it yourself and save it" in told


def test_a_head_that_is_not_finite_is_an_error(make_job, tmp_path, language):
    add(tmp_path / "model", **{"value_head.weight": torch.full((1, 16), torch.nan)})
    with pytest.raises(TrainingError, match=r"its weights 'score.weight' are not all finite numbers"):
        built(make_job, tmp_path / "model")


def test_other_weights_without_a_place_are_named(make_job, tmp_path, language):
    add(tmp_path / "model", **{"mtp.fc.weight": torch.ones(2), "lm_head.weight": torch.ones(40, 16)})
    _, origin = built(make_job, tmp_path / "model")
    assert origin == (NEW, ("mtp.fc.weight",))


def test_output_embeddings_of_language_models_are_no_head(tmp_path):
    GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2).save_pretrained(tmp_path)
    outputs = {"lm_head.weight": torch.ones(40, 16), "lm_head.bias": torch.ones(40), "embed_out.weight": torch.ones(4)}
    save_file(outputs, tmp_path / "model.safetensors")
    assert find_head(tmp_path, {}, 16) is None
