"""Writes the model directory so that old and new versions of transformers, and other programs, read it alike.

transformers 5 renamed fields of `config.json` and `tokenizer_config.json`, for which transformers 4 silently uses
defaults: with another base of the rotary positions, for example, scores are wrong. The directory has both spellings.
What else is added is for one program each: see `_ADDED` and `_write_value_head`.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig

from rm_assets.data.chat.pretrained import CONFIGURATION, load_tokenizer
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.model.architecture import is_encoder
from rm_assets.training.model.scoring import Scorer, round_weights
from rm_assets.training.saved_model.golden_scores import CONVERSATIONS
from rm_assets.training.saved_model.stock_scoring import ConversationError, text_ids

WEIGHTS = "model.safetensors"
VALUE_HEAD = "value_head.safetensors"
_TOKENIZER = "tokenizer_config.json"
_ADDED = {
    "problem_type": "regression",  # vLLM and transformers' pipeline return scores instead of their sigmoid
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},  # so does CrossEncoder
}
_OLD_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "gpt_neox_japanese": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "modernbert": {"rope_theta": "global_rope_theta", "rope_local_base_freq": "local_rope_theta"},
}
"""Types of models whose fields had other names in transformers 4."""
_TEXTS = (
    "In 1234567 of 89.5 cases, it's 10 % off:\n\n\tx  = y\r\n   # I'LL don't\n",
    "naïve Äpfel, e\u0301 \ufb01 \u2126, 你好，世界！ こんにちは 안녕 Привет مرحبا 🙂👍🏽 <|x|> [INST]",
)
"""What tokenizers split in different ways: numbers, white space, contractions, and texts that are not normalized."""
_Fields = Callable[[Mapping[str, Any]], dict[str, Any]]
_FULL, _SLIDING = "full_attention", "sliding_attention"


def save_model(model: Any, tokenizer: Any, directory: Path, body_dtype: str = "float32") -> None:
    """Write a Hugging Face model directory: safetensors, configuration, tokenizer, chat template.

    With `body_dtype="bfloat16"` all weights but the head's are rounded, in the model itself.
    """
    if body_dtype == "bfloat16":
        round_weights(Scorer(model))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _write_old_configuration(directory)
    if (directory / "tokenizer.json").is_file():
        _write_old_tokenizer_configuration(directory)
    if not is_encoder(model):  # a single layer is not an encoder's head
        _write_value_head(directory, model.score)
    share_files(directory)


def require_same_tokenizer(tokenizer: Any, configuration: Any) -> None:
    """Raise TrainingError if the saved directory would be loaded with a tokenizer that gives other ids.

    transformers 5 chooses the tokenizer of some types of models only by the type: next to a Qwen2 model, every
    tokenizer is loaded as Qwen2's, which splits numbers in its own way.
    """
    with tempfile.TemporaryDirectory() as name:
        configuration.save_pretrained(name)
        tokenizer.save_pretrained(name)
        loaded = load_tokenizer(name)
    if _ids(loaded) != _ids(tokenizer):
        raise TrainingError(
            f"a saved model of type {configuration.model_type!r} would be loaded with {type(loaded).__name__}, which "
            "gives other token ids than the tokenizer of this training: set tokenizer (or RM_TOKENIZER) to the model's "
            "own, or choose another model"
        )


def share_files(directory: Path) -> None:
    """Give the safetensors of a directory the mode of its other files: safetensors 0.8 makes them the owner's alone."""
    for path in directory.glob("*.safetensors"):
        shutil.copymode(next(directory.glob("*.json")), path)


# --- config.json ---------------------------------------------------------------------------------------------


def _write_old_configuration(directory: Path) -> None:
    """Add the fields of transformers 4 to config.json, unless this version would then read another configuration."""
    path = directory / CONFIGURATION
    written = json.loads(path.read_bytes())
    expected = AutoConfig.from_pretrained(directory, trust_remote_code=False).to_dict()
    for fields_of in (_old_fields, _old_fields_without_scaling, _no_fields):
        _write_json(path, _with_old_fields({**written, **_ADDED}, fields_of))
        found = AutoConfig.from_pretrained(directory, trust_remote_code=False).to_dict()
        if _includes(found, {name: value for name, value in expected.items() if name not in _ADDED}):
            return
    raise AssertionError(f"{sorted(_ADDED)} change how {str(path)!r} is read")


def _with_old_fields(configuration: dict[str, Any], fields_of: _Fields) -> dict[str, Any]:
    """A configuration, and the one inside it of a model's text part, with the fields that `fields_of` adds."""
    inner = configuration.get("text_config")
    nested = {"text_config": _with_old_fields(inner, fields_of)} if isinstance(inner, dict) else {}
    return {**fields_of(configuration), **configuration, **nested}


def _old_fields(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of transformers 4 for those that have another name, or another form, in transformers 5."""
    fields = {"torch_dtype": configuration["dtype"]} if configuration.get("dtype") else {}
    rope = configuration.get("rope_parameters")
    if not rope:
        return fields
    if isinstance(full := rope.get(_FULL), dict):  # Gemma 3: by type of layer
        fields |= _old_rope(full) | {"rope_local_base_freq": (rope.get(_SLIDING) or full).get("rope_theta")}
    elif "rope_theta" in rope:
        fields |= _old_rope(rope)
    if configuration.get("model_type") == "phi3" and "long_factor" in (fields.get("rope_scaling") or {}):
        fields["rope_scaling"] = _of_phi3(fields["rope_scaling"])
    if pattern := _sliding_window_pattern(configuration.get("layer_types") or []):
        fields["sliding_window_pattern"] = pattern
    names = _OLD_NAMES.get(str(configuration.get("model_type")), {})
    return fields | {old: fields[name] for name, old in names.items() if name in fields}


def _old_fields_without_scaling(configuration: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _old_fields(configuration).items() if name != "rope_scaling"}


def _no_fields(_: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _old_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` as transformers 4 spells them.

    {"rope_theta": 5e5, "rope_type": "default"} is {"rope_theta": 5e5, "rope_scaling": None}.
    """
    outside = ("rope_theta", "partial_rotary_factor")
    scaling = {name: value for name, value in rope.items() if name not in outside}
    fields = {name: rope[name] for name in outside if name in rope}
    return fields | {"rope_scaling": scaling if rope.get("rope_type", "default") != "default" else None}


def _of_phi3(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Its class in transformers 4 takes exactly these fields."""
    return {"type": scaling["rope_type"]} | {name: scaling[name] for name in ("short_factor", "long_factor")}


def _sliding_window_pattern(layer_types: list[str]) -> int | None:
    """How many layers there are from one with full attention to the next, as Gemma 3 and Cohere 2 state it.

    [sliding, sliding, full, sliding] is 3. None without sliding layers, or if there is no such number.
    """
    for pattern in range(2, len(layer_types) + 2) if _SLIDING in layer_types else ():
        if layer_types == [_SLIDING if (i + 1) % pattern else _FULL for i in range(len(layer_types))]:
            return pattern
    return None


def _includes(found: Any, expected: Any) -> bool:
    """Whether a configuration has all values of another one; `type` is the old name of `rope_type`."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return all(name in found and _includes(found[name], expected[name]) for name in expected if name != "type")
    return bool(found == expected)


# --- tokenizer_config.json -----------------------------------------------------------------------------------


def _write_old_tokenizer_configuration(directory: Path) -> None:
    """Name the class that both versions load from `tokenizer.json` alone, unless that loads another tokenizer here."""
    path = directory / _TOKENIZER
    original, expected = path.read_bytes(), _behavior(load_tokenizer(str(directory)))
    written = json.loads(original)
    written |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    if isinstance(written.get("extra_special_tokens"), list):  # in transformers 4, an object under this name
        written["additional_special_tokens"] = written.pop("extra_special_tokens")
    _write_json(path, written)
    if _behavior(load_tokenizer(str(directory))) != expected:
        path.write_bytes(original)


def _behavior(tokenizer: Any) -> list[Any]:
    """What two equal tokenizers have in common: special tokens, and the ids of all kinds of text."""
    return [tokenizer.special_tokens_map, set(tokenizer.all_special_tokens), *_ids(tokenizer)]


def _ids(tokenizer: Any) -> list[list[int] | None]:
    """The ids of all kinds of text; None for a text on which the tokenizer fails."""
    texts = [str(message["content"]) for messages in CONVERSATIONS for message in messages]
    found: list[list[int] | None] = []
    for text in [*texts, *_TEXTS, " ".join(map(str, tokenizer.all_special_tokens))]:
        try:
            found.append(text_ids(tokenizer, text))
        except ConversationError:
            found.append(None)
    return found


# --- other files ---------------------------------------------------------------------------------------------


def _write_value_head(directory: Path, head: Any) -> None:
    """Write the head once more under the names of LLaMA-Factory, which would otherwise use random weights instead.

    The index keeps programs that load all safetensors of a directory, such as vLLM, from loading this one.
    """
    bias = torch.zeros(1) if head.bias is None else head.bias.detach()
    weights = {"v_head.summary.weight": head.weight.detach(), "v_head.summary.bias": bias}
    weights = {name: weight.to("cpu", torch.float32).contiguous() for name, weight in weights.items()}
    save_file(weights, directory / VALUE_HEAD, {"format": "pt"})
    if (directory / WEIGHTS).is_file():
        with safe_open(directory / WEIGHTS, framework="np") as file:
            names = dict.fromkeys(file.keys(), WEIGHTS)
        size = (directory / WEIGHTS).stat().st_size
        _write_json(directory / f"{WEIGHTS}.index.json", {"metadata": {"total_size": size}, "weight_map": names})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
