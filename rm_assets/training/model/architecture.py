"""Which models can become reward models: judged by their configuration, before any work and without their weights.

A reward model is stock `AutoModelForSequenceClassification` with one label. The head of a decoder is a linear layer
`score` that reads the last token's hidden state; that of an encoder, such as BERT, is everything outside of its body.
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

from rm_assets.data.chat.pretrained import CONFIGURATION, shown
from rm_assets.settings import SettingsError

HEAD = "score"
_CURE = (
    "give a causal language model (a decoder) such as Qwen3, Llama or Gemma, or an encoder such as DeBERTa-v3 or "
    "ModernBERT"
)


def check_architecture(directory: Path, max_length: int) -> Any:
    """The model in a directory as `empty_model` gives it; of its files only `config.json` must be there.

    Raises SettingsError if it cannot become a reward model, or cannot read `max_length` tokens.
    """
    model = empty_model(directory)
    require_head(model)
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if num_layers is not None and num_layers < 1:
        raise SettingsError(f"its {CONFIGURATION} says num_hidden_layers is {num_layers}: {_CURE}")
    positions = max_positions(model)
    if positions is not None and max_length > positions:
        which = " before LongRoPE's scaling" if _original_positions(model.config.get_text_config()) else ""
        raise SettingsError(
            f"its {positions} positions{which} are fewer than max_length (or RM_MAX_LENGTH), which is {max_length}: "
            f"set that to {positions}"
        )
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
        raise SettingsError(
            f"its {CONFIGURATION} describes no model that can be built ({shown(error)}): correct it, or download the "
            "files again"
        ) from None
    raise SettingsError(
        f"transformers {transformers.__version__} has no sequence classifier for models of its type "
        f"{config.model_type!r}, and a reward model is one; {_CURE}"
    )


def require_head(model: Any) -> None:
    """Raise SettingsError unless the model is a decoder with a linear head `score`, or an encoder; with one output."""
    name = model.config.model_type
    head = output_layer(model)[1] if is_encoder(model) else getattr(model, HEAD)
    has_one_output = isinstance(head, nn.Linear) and head.out_features == 1 and hasattr(model, model.base_model_prefix)
    if getattr(model.config, "is_encoder_decoder", False):
        kind = "an encoder-decoder"
    elif has_one_output and (not is_encoder(model) or name in MODEL_FOR_MASKED_LM_MAPPING_NAMES):
        return
    elif name in MODEL_FOR_MASKED_LM_MAPPING_NAMES or name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        kind = "an encoder"
    else:
        kind = "a model"
    raise SettingsError(f"{type(model).__name__} is {kind} without a linear head {HEAD!r}: {_CURE}")


def is_encoder(classifier: Any) -> bool:
    """Whether a stock classifier scores sequences by a head of its own, not by a layer `score` on the last token."""
    return not hasattr(classifier, HEAD)


def head_modules(classifier: Any) -> dict[str, nn.Module]:
    """The modules with weights outside of a stock classifier's body, by name, in the order in which they are applied.

    A decoder's `score`, BERT's `classifier`, DeBERTa's `pooler` and `classifier`, ModernBERT's `head` and `classifier`.
    """
    return {
        name: module
        for name, module in classifier.named_children()
        if name != classifier.base_model_prefix and next(module.parameters(), None) is not None
    }


def output_layer(classifier: Any) -> tuple[str, nn.Linear | None]:
    """The layer that gives the score, the last linear one of the head, and its name; None without any."""
    layers = [
        (".".join(filter(None, (prefix, name))), layer)
        for prefix, module in head_modules(classifier).items()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    return layers[-1] if layers else ("", None)


def max_positions(model: Any) -> int | None:
    """Longest sequence in tokens, or None if the configuration has no limit.

    RoBERTa and its kin count positions from one after that of padding: of 514 positions, 512 are left for tokens.
    With LongRoPE (2402.13753), as in Phi-3, one sequence beyond the original positions would change the scores of all
    sequences in its batch.
    """
    config = model.config.get_text_config()
    if original := _original_positions(config):
        return original
    positions: int | None = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))  # MPT
    if positions is None:
        return None
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    padding = next((table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None), -1)
    return positions - padding - 1


def _original_positions(config: Any) -> int | None:
    """Positions before LongRoPE scales, or None without it; a model may state it for each type of layer."""
    ropes = getattr(config, "rope_parameters", None) or {}
    found = [rope for rope in (ropes, *ropes.values()) if isinstance(rope, dict)]
    lengths = [rope["original_max_position_embeddings"] for rope in found if rope.get("rope_type") == "longrope"]
    return min(lengths, default=None)
