"""Which architectures can become reward models, by their configuration alone."""

import pytest
from architectures import PADDED, SHARED
from transformers import (
    AutoConfig,
    BartConfig,
    BertConfig,
    Gemma3Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    Phi3Config,
    T5Config,
    XLNetConfig,
)

from rm_assets.settings import SettingsError
from rm_assets.training.model.architecture import check_architecture, empty_model, max_positions

LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 600}
LONG_ROPE |= {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64, "factor": 15.0}
PHI3_ROPE = LONG_ROPE | {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}


@pytest.mark.parametrize("name", sorted((SHARED | PADDED).keys()))
def test_every_architecture_that_is_trained_passes(tmp_path, name):
    AutoConfig.for_model(name, **(SHARED | PADDED)[name]).save_pretrained(tmp_path)
    check_architecture(tmp_path, 256)
    weights = list(empty_model(tmp_path).parameters())
    assert all(weight.is_meta for weight in weights)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (BertConfig(is_encoder_decoder=True), "BertForSequenceClassification is an encoder-decoder without a linear"),
        (T5Config(), "T5ForSequenceClassification is an encoder-decoder"),
        (BartConfig(), "BartForSequenceClassification is an encoder-decoder"),
        (XLNetConfig(), "XLNetForSequenceClassification is a model without a linear head 'score'"),
        (GraniteConfig(), "has no sequence classifier for models of its type 'granite'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_architecture_that_is_not_trained_is_named_with_one_that_is(tmp_path, config, problem):
    config.save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match=rf"{problem}.* give a causal language model .* such as Qwen3"):
        check_architecture(tmp_path, 128)


@pytest.mark.parametrize("config", [LlamaConfig(), GPT2Config(), BertConfig()], ids=lambda config: config.model_type)
def test_a_model_without_layers_is_refused(tmp_path, config):
    config.num_hidden_layers = 0
    if hasattr(config, "layer_types"):
        config.layer_types = []
    config.save_pretrained(tmp_path)
    with pytest.raises(
        SettingsError, match=r"its config.json says num_hidden_layers is 0: give a causal language model"
    ):
        check_architecture(tmp_path, 128)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (LlamaConfig(max_position_embeddings=600), 600),
        (GPT2Config(n_positions=600), 600),
        (Gemma3Config(text_config={"max_position_embeddings": 600}), 600),
        (AutoConfig.for_model("mpt", max_seq_len=600), 600),
        (AutoConfig.for_model("bloom"), None),
        (LlamaConfig(max_position_embeddings=9000, rope_parameters=LONG_ROPE), 600),
        (
            Phi3Config(max_position_embeddings=9000, original_max_position_embeddings=600, rope_parameters=PHI3_ROPE),
            600,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_longest_pair_must_fit_into_the_positions(tmp_path, config, positions):
    config.save_pretrained(tmp_path)
    assert max_positions(empty_model(tmp_path)) == positions
    check_architecture(tmp_path, positions or 10**6)
    if positions:
        with pytest.raises(
            SettingsError, match=r"600 positions.* are fewer than max_length .*, which is 601: set that to 6"
        ):
            check_architecture(tmp_path, 601)
