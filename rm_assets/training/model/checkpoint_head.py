"""The head of a checkpoint that is already a reward model, under the names that other trainers use.

| saved by | in | as |
|---|---|---|
| transformers, TRL's RewardTrainer, this package | the weights | `score.weight` |
| OpenRLHF (`value_head_prefix`) | the weights | `value_head.weight` |
| TRL's AutoModelForCausalLMWithValueHead | the weights | `v_head.summary.weight`, `.bias` |
| LLaMA-Factory | `value_head.safetensors` | `v_head.summary.weight`, `.bias` |

Stock classifiers of decoders have no bias in their head, so a head with one is refused: without it, all scores would
be others. An encoder has the head that transformers saves, under its own names, or a new one.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rm_assets.data.chat.model_checks import VALUE_HEAD, WEIGHTS, file_tensors, weight_tensors
from rm_assets.data.chat.model_checks import Tensor as Described
from rm_assets.settings import SettingsError
from rm_assets.training.model.architecture import HEAD, output_layer

_KNOWN = re.compile(rf"({HEAD}|value_head|v_head\.summary|v_head|reward_head)\.(weight|bias)")
_LANGUAGE_MODEL = re.compile(
    r"(lm_head|embed_out|cls|decoder\.(weight|bias)|\w*predictions|generator_lm_head|vocab_\w+|sop_classifier)\b"
)
"""Outputs of language models, causal and masked, which a reward model has no use for."""
_HEADLIKE = re.compile(r"\w*(head|score|reward|value|regress|gating|classif)")
NEW = "new"
_Heads = dict[tuple[str, bool], dict[str, Described]]
"""Weight and bias of each head, by its prefix and whether it is in `value_head.safetensors`."""


@dataclass(frozen=True)
class CheckpointHead:
    """The head of a checkpoint: the file and the name of its weight, a tensor [1, H]."""

    file: Path
    name: str

    @property
    def is_stock(self) -> bool:
        """Whether transformers loads it by itself."""
        return self.name == f"{HEAD}.weight" or not _KNOWN.fullmatch(self.name)

    def __str__(self) -> str:
        place = f" in {self.file.name}" if self.file.name.startswith(VALUE_HEAD) else ""
        return f"the checkpoint's ({self.name}{place})"

    def weight(self) -> Tensor:
        """The weight, float32 [1, H]."""
        return _read(self.file, self.name).float()


def find_head(directory: Path, configuration: dict[str, Any], width: int) -> CheckpointHead | None:
    """The head of a decoder in a directory of checked files, or None if training has to begin with a new one.

    It reads hidden states of this width. Raises SettingsError for a head that would be lost: of an unknown kind or
    width, pickled, one of two that differ, or with a bias.
    """
    if pickled := next(directory.glob(f"{VALUE_HEAD}.bin"), None):
        raise SettingsError(
            f"{pickled.name!r} in {str(directory)!r}: a pickled head, and pickles are never opened; if you "
            f"trust it, load it yourself and save it as {VALUE_HEAD}{WEIGHTS}"
        )
    found = list(weight_tensors(directory, configuration).items())
    if (path := directory / f"{VALUE_HEAD}{WEIGHTS}").is_file():
        found += file_tensors(path).items()
    heads: _Heads = {}
    for name, tensor in found:
        is_apart = tensor.file == path
        if known := _KNOWN.fullmatch(name):
            heads.setdefault((known[1], is_apart), {})[known[2]] = tensor
        elif is_apart or (_HEADLIKE.match(name.partition(".")[0]) and not _LANGUAGE_MODEL.match(name)):
            raise _lost_head_error(tensor.file, name, f"is one linear layer {HEAD!r}")
    heads = _without_copy(heads, width)
    if len(heads) > 1:
        raise SettingsError(
            f"{str(directory)!r} has several heads, {sorted(prefix for prefix, _ in heads)}: remove all but one"
        )
    return next((_checked(prefix, parts, width) for (prefix, _), parts in heads.items()), None)


def _without_copy(heads: _Heads, width: int) -> _Heads:
    """The heads but for the one in `value_head.safetensors` if it repeats that in the weights.

    Every saved model has such a copy, for LLaMA-Factory.
    """
    keys = sorted(heads, key=lambda key: key[1])
    if [is_apart for _, is_apart in keys] != [False, True]:
        return heads
    own, apart = (_checked(key[0], heads[key], width).weight() for key in keys)
    return {keys[0]: heads[keys[0]]} if torch.equal(own, apart) else heads


def unused_weights(unexpected: Iterable[str]) -> tuple[str, ...]:
    """Of the weights that transformers did not expect, those that are neither a head nor a language model's output."""
    return tuple(sorted(name for name in unexpected if not (_KNOWN.fullmatch(name) or _LANGUAGE_MODEL.match(name))))


def find_encoder_head(directory: Path, configuration: dict[str, Any], classifier: Any) -> CheckpointHead | None:
    """The head of an encoder in a directory of checked files, by the weight of its last layer, or None without that.

    `classifier` is the model as its configuration describes it. Raises SettingsError for a head that would be lost: of
    an unknown kind or width.
    """
    kind = f"is that of {type(classifier).__name__}"
    path = directory / f"{VALUE_HEAD}{WEIGHTS}"
    if path.is_file():
        raise _lost_head_error(path, next(iter(file_tensors(path)), ""), kind)
    own = {name for name, _ in classifier.named_parameters()}
    tensors = weight_tensors(directory, configuration)
    for name, tensor in tensors.items():
        is_own = name in own or f"{classifier.base_model_prefix}.{name}" in own
        if not is_own and _HEADLIKE.match(name.partition(".")[0]) and not _LANGUAGE_MODEL.match(name):
            raise _lost_head_error(tensor.file, name, kind)
    prefix, layer = output_layer(classifier)
    weight = tensors.get(f"{prefix}.weight")
    return None if weight is None or layer is None else _checked(prefix, {"weight": weight}, layer.in_features)


def _lost_head_error(file: Path, name: str, kind: str) -> SettingsError:
    return SettingsError(
        f"{file.name!r} in {str(file.parent)!r}: {name!r} looks like part of a head of another kind, which would be "
        f"lost; give a reward model whose head {kind}, or a language model"
    )


def _checked(prefix: str, parts: dict[str, Described], width: int) -> CheckpointHead:
    weight, bias = parts.get("weight"), parts.get("bias")
    place = f"the head {prefix!r} in {next(iter(parts.values())).file.name!r}"
    if weight is None or weight.shape != (1, width):
        found = "no weight" if weight is None else f"a weight of shape {list(weight.shape)}"
        raise SettingsError(
            f"{place} has {found}, and that of a reward model is [1, {width}] here: give a reward model"
        )
    value = 0.0 if bias is None else float(_read(bias.file, f"{prefix}.bias").sum())
    if value:
        raise SettingsError(
            f"{place} has a bias, {value:.6g}, for which transformers' classifiers have no place: set it to 0 there, "
            "which shifts all scores by as much and changes no difference between two"
        )
    return CheckpointHead(weight.file, f"{prefix}.weight")


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as content:
        tensor: torch.Tensor = content.get_tensor(name)
    return tensor
