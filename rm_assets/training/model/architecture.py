"""Which models can become reward models: judged by their configuration, before any work and without their weights.

A reward model is stock `AutoModelForSequenceClassification` with one label, whose head is a linear layer `score` that
reads one token's hidden state.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from rm_assets.data.chat.model_checks import WEIGHTS, weight_files
from rm_assets.data.chat.pretrained import CONFIGURATION, read_json, shown
from rm_assets.settings import SettingsError

HEAD = "score"
_SPARE_BYTES = 2**28
_CURE = "give a causal language model (a decoder) such as Qwen3, Llama or Gemma"


def check_architecture(directory: Path, max_length: int) -> Any:
    """The model in a directory as `empty_model` gives it; of its files only `config.json` must be there.

    Raises SettingsError if it cannot become a reward model, or cannot read `max_length` tokens.
    """
    model = empty_model(directory)
    require_head(model)
    positions = max_positions(model)
    if positions is not None and max_length > positions:
        raise SettingsError(
            f"its {positions} positions are fewer than max_length (or RM_MAX_LENGTH), which is {max_length}: set that "
            f"to {positions}"
        )
    files = weight_files(directory, read_json(directory / CONFIGURATION))
    if files and all(file.is_file() for file in files):  # some or all may still be on the Hub
        check_size(directory, model)
    return model


def empty_model(directory: Path) -> Any:
    """The reward model that a configuration describes, without memory for weights.

    Raises SettingsError if the configuration is not valid, or transformers has no such model.
    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, num_labels=1)
        if config.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
            with torch.device("meta"):
                return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers raises many types for a configuration
        raise SettingsError(f"its config.json describes no model that can be built ({shown(error)})") from None
    raise SettingsError(
        f"transformers {transformers.__version__} has no sequence classifier for models of its type "
        f"{config.model_type!r}, and a reward model is one; {_CURE}"
    )


def require_head(model: Any) -> None:
    """Raise SettingsError unless the model has a linear head `score` with one output."""
    head = getattr(model, HEAD, None)
    if isinstance(head, nn.Linear) and head.out_features == 1 and hasattr(model, model.base_model_prefix):
        return
    name = model.config.model_type
    if getattr(model.config, "is_encoder_decoder", False):
        kind = "an encoder-decoder"
    elif name in MODEL_FOR_MASKED_LM_MAPPING_NAMES or name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        kind = "an encoder"
    else:
        kind = "a model"
    raise SettingsError(f"{type(model).__name__} is {kind} without a linear head {HEAD!r}: {_CURE}")


def check_size(directory: Path, model: Any) -> None:
    """Raise SettingsError if a model needs far more weights than there are: the rest would be random.

    Quantized weights take at least an eighth of float32.
    """
    needed = 4 * sum(weight.numel() for weight in model.parameters())
    present = sum(path.stat().st_size for path in directory.glob(f"*{WEIGHTS}"))
    if needed > 10 * present + _SPARE_BYTES:
        raise SettingsError(
            f"its config.json describes {needed:,} bytes of weights, its safetensors hold {present:,}: get them again"
        )


def max_positions(model: Any) -> int | None:
    """Longest sequence in tokens, or None if the configuration has no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
