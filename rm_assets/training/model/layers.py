"""The decoder layers of a model, which are sharded, compiled and recomputed one by one."""

import atexit
import copy
import importlib.util
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rm_assets.settings import TrainingSettings
from rm_assets.training.devices import trains_in_bfloat16
from rm_assets.training.model.quantization import is_quantized

MAX_GRAPHS = 64
"""Limit of compiled variants of a layer: one for each kind of layer, with and without shared prompts, gradients and
recomputation. torch's own limit is 8, beyond which layers silently run uncompiled."""

_CACHE_DIRECTORY = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable: where torch keeps compiled code. A value set by the user is respected."""


def decoder_layers(model: Any) -> nn.ModuleList:
    """The layers of a stock classifier's body: the module list with the most weights."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda layers: sum(weight.numel() for weight in layers.parameters()), default=nn.ModuleList())


def shallow_copy(model: Any, device: torch.device) -> Any:
    """A copy of a stock classifier on `device` with only its first layers: at least two, and one of every kind.

    Two if dense and sparse layers alternate, six if every sixth has full attention and the others a window; all if
    their parts are in several lists, as in XLM: one of attentions, one of feed-forward networks. Frozen weights that
    are on that device already are shared with the copy, as are all quantized ones.
    """
    layers, memo = decoder_layers(model), dict[int, Any]()
    config = model.config.get_text_config()
    kinds = [_kind(layer, number, config, len(layers)) for number, layer in enumerate(layers)]
    kept = len(layers) if _is_split(layers, model) else max([2, *(kinds.index(kind) + 1 for kind in kinds)])
    left_out = {id(weight) for layer in layers[kept:] for weight in layer.parameters()}
    for weight in model.parameters():
        if is_quantized(weight):
            memo |= {id(shared): shared for shared in (weight, weight.quant_state)}
        elif not weight.requires_grad and id(weight) not in left_out:
            memo[id(weight)] = nn.Parameter(weight.detach().to(device), requires_grad=False)
    memo[id(layers)] = copy.deepcopy(layers[:kept], memo)
    return copy.deepcopy(model, memo).to(device)


def _is_split(layers: nn.ModuleList, model: Any) -> bool:
    """Whether another list beside that of the layers has an entry for each of them, too."""
    lists = [[child for child in part.children() if isinstance(child, nn.ModuleList)] for part in model.modules()]
    beside = next((found for found in lists if any(each is layers for each in found)), [])
    return sum(len(each) == len(layers) for each in beside) > 1


@torch.no_grad()
def round_frozen_weights(model: Any, device: torch.device) -> None:
    """Convert the frozen weights of the body to bfloat16 where layers compute in it, so the results stay the same.

    On a CPU they compute in float32, and the weights stay float32, too. Quantized weights stay as they are. So do
    buffers: the frequencies of rotary positions are a buffer and need float32.
    """
    if trains_in_bfloat16(device):
        for weight in getattr(model, model.base_model_prefix).parameters():
            if not weight.requires_grad and not is_quantized(weight):
                weight.data = weight.data.to(torch.bfloat16)


def _kind(layer: nn.Module, number: int, config: Any, num_layers: int) -> list[str]:
    """What distinguishes a layer from other kinds: its modules, their settings, and the shapes of its weights.

    Also its entries in the lists of the configuration that have one item per layer.
    """
    kind = [
        f"{name} {type(module).__name__} {dict(_settings(module, number))}" for name, module in layer.named_modules()
    ]
    kind += [f"{name} {tuple(weight.shape)}" for name, weight in layer.named_parameters()]
    lists = {name: value for name, value in vars(config).items() if isinstance(value, list)}
    return kind + [f"{name} {value[number]}" for name, value in lists.items() if len(value) == num_layers]


def _settings(module: nn.Module, number: int) -> Iterator[tuple[str, Any]]:
    """The plain attributes of a module, except the index of its layer."""
    for name, value in vars(module).items():
        is_number = type(value) is int and value == number and ("layer" in name or "idx" in name)
        if value is None or (isinstance(value, bool | int | float | str | tuple) and not is_number):
            yield name, value


def prepare_layers(model: Any, settings: TrainingSettings, device: torch.device) -> None:
    """Turn on recomputation in the backward pass and compilation, as the settings say.

    If `compile` is unset, layers are compiled unless `reason_not_to_compile` gives a reason.
    """
    layers = decoder_layers(model)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for layer in layers:
            # transformers recomputes only in training mode, and our models stay in eval mode: so the flag of the layer
            # itself is set, not those of its modules, and its own dropout is turned off.
            layer.training = True
            for name, value in list(vars(layer).items()):
                if "drop" in name and isinstance(value, float):
                    setattr(layer, name, 0.0)
    if not reason_not_to_compile(settings, device):
        _compile_privately()
        torch._dynamo.config.recompile_limit = MAX_GRAPHS
        for layer in layers:
            layer.compile(dynamic=True)


def _compile_privately() -> None:
    """Keep compiled code in a directory that only this user can write to, and neither write nor read its pickles.

    The name of torch's default directory can be guessed, so anyone on this machine could create it first.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    torch.compiler.config.force_disable_caches = True
    if os.environ.get(_CACHE_DIRECTORY, default_cache_dir()) == default_cache_dir():
        os.environ[_CACHE_DIRECTORY] = tempfile.mkdtemp(prefix="rm_assets_compiled_")
        atexit.register(shutil.rmtree, os.environ[_CACHE_DIRECTORY], ignore_errors=True)


def reason_not_to_compile(settings: TrainingSettings, device: torch.device) -> str:
    """Why layers are not compiled, or "" if they are."""
    if settings.compile is not None:
        return "" if settings.compile else "compile is off"
    if device.type != "cuda":
        return "on a CPU it takes longer than it saves"
    missing = [] if importlib.util.find_spec("triton") else ["the package triton"]
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        missing.append("a C compiler")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        missing.append("Python's headers")
    return f"this machine lacks {', '.join(missing)}" if missing else ""
