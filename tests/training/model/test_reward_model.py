import json

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
)

from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.model.reward_model import build_model, load_tokenizer

TINY = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**TINY, intermediate_size=32),
    "qwen3": Qwen3Config(**TINY, intermediate_size=32, num_key_value_heads=1, head_dim=8),
    "gpt2": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32),
}


def test_a_toy_takes_vocabulary_and_pad_token_from_the_job(make_job):
    model = build_model(make_job(vocab_size=23, pad_token_id=22))
    assert model.get_input_embeddings().weight.shape == (23, 16)
    assert model.config.pad_token_id == 22


def test_a_new_head_is_normal_with_deviation_one_over_root_of_width_plus_one(make_job, tmp_path):
    wide = LlamaConfig(
        vocab_size=4,
        hidden_size=4095,
        intermediate_size=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=2,
    )
    wide.save_pretrained(tmp_path / "wide")
    head = build_model(make_job(model=str(tmp_path / "wide"), vocab_size=4)).score.weight
    assert head.shape == (1, 4095)
    # 1 / sqrt(4096) = 1 / 64; the deviation of a sample of 4095 is within 5 % of it
    assert head.std().item() == pytest.approx(1 / 64, rel=0.05)
    assert head.mean().item() == pytest.approx(0, abs=0.001)


def test_a_language_model_gets_a_head_that_depends_on_the_seed_only(make_job, tmp_path):
    body = LlamaForCausalLM(CONFIGS["llama"])
    body.save_pretrained(tmp_path / "language")
    jobs = [make_job(model=str(tmp_path / "language"), toy=False, settings={"seed": seed}) for seed in (3, 3, 4)]
    first, same, other = (build_model(job) for job in jobs)
    assert torch.equal(first.score.weight, same.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    assert torch.equal(first.get_input_embeddings().weight, body.get_input_embeddings().weight)


def test_a_reward_model_keeps_its_head(make_job, tmp_path):
    CONFIGS["qwen3"].num_labels = 1
    trained = AutoModelForSequenceClassification.from_config(CONFIGS["qwen3"])
    trained.save_pretrained(tmp_path / "reward")
    model = build_model(make_job(model=str(tmp_path / "reward"), toy=False))
    assert torch.equal(model.score.weight, trained.score.weight)


def test_half_precision_weights_become_float32_masters(make_job, tmp_path):
    LlamaForCausalLM(CONFIGS["llama"]).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    model = build_model(make_job(model=str(tmp_path / "half"), toy=False))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_checkpoint_without_some_weights_is_an_error(make_job, tmp_path):
    body = LlamaForCausalLM(CONFIGS["llama"])
    kept = {name: weight for name, weight in body.state_dict().items() if "layers.1" not in name}
    body.save_pretrained(tmp_path / "part", state_dict=kept)
    with pytest.raises(TrainingError, match=r"lacks the weights \['model.layers.1"):
        build_model(make_job(model=str(tmp_path / "part"), toy=False))


def test_a_model_without_the_head_is_an_error_that_names_the_setting(make_job, tmp_path):
    BartConfig(vocab_size=999, d_model=16).save_pretrained(tmp_path / "bart")
    with pytest.raises(TrainingError, match="BartForSequenceClassification is an encoder-decoder without a linear"):
        build_model(make_job(model=str(tmp_path / "bart")))


@pytest.mark.parametrize("toy", [True, False])
def test_a_model_that_is_not_there_is_an_error_that_names_the_setting(make_job, tmp_path, toy):
    with pytest.raises(TrainingError, match=r"nowhere' cannot be loaded .*; change the setting model"):
        build_model(make_job(model=str(tmp_path / "nowhere"), toy=toy))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_act": "none of them"}, "KeyError"),
        ({"num_attention_heads": 0}, ""),
        ({"dtype": "none"}, ""),
        ({"rope_parameters": []}, ""),
        ({"hidden_size": None}, ""),
        ({"num_hidden_layers": 200, "intermediate_size": 200_000}, "it lacks the weights"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_an_error_that_names_the_setting(make_job, tmp_path, changes, told):
    directory = tmp_path / "hostile"
    LlamaForCausalLM(CONFIGS["llama"]).save_pretrained(directory)
    configuration = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(configuration | changes))
    with pytest.raises(
        TrainingError, match=rf"hostile' cannot be loaded .*{told}.*; change the setting model"
    ) as error:
        build_model(make_job(model=str(directory), toy=False))
    assert "\n" not in str(error.value)


def test_a_pad_id_that_the_tokenizer_does_not_have_is_an_error(make_job):
    with pytest.raises(TrainingError, match="has no token of id 77 to pad with"):
        load_tokenizer(make_job(pad_token_id=77))


def test_an_ordinary_token_is_no_pad_token(make_job):
    with pytest.raises(TrainingError, match=r"token 'w5' .* is an ordinary one"):
        load_tokenizer(make_job(pad_token_id=5))
