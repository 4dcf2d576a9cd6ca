"""The decoder layers of a model: what is spread, compiled and recomputed one by one."""

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

MAX_GRAPHS = 64
"""Of compiled layers: they double with kinds of layers, with rows that share prompts and rows that do not, gradients
and none, recomputation and none. torch's own limit is 8, beyond which layers run uncompiled without a word."""

_COMPILED = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable: where torch keeps compiled code. Whoever has set it has the say."""


def decoder_layers(model: Any) -> list[nn.Module]:
    """The layers of a stock classifier's body: of its lists of modules, the one that holds most weights."""
    return list(_layer_list(model))


def _layer_list(model: Any) -> nn.ModuleList:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda layers: sum(weight.numel() for weight in layers.parameters()), default=nn.ModuleList())


def shallow_copy(model: Any) -> Any:
    """A copy of a stock classifier with its first layers alone: at least two, and one of every kind that it has.

    Where layers are dense and sparse in turns it has two, where every sixth sees all tokens and the others few, six.
    """
    layers, memo = _layer_list(model), dict[int, Any]()
    config = model.config.get_text_config()
    kinds = [_kind(layer, number, config, len(layers)) for number, layer in enumerate(layers)]
    kept = max([2, *(kinds.index(kind) + 1 for kind in kinds)])
    memo[id(layers)] = copy.deepcopy(layers[:kept], memo)
    return copy.deepcopy(model, memo)


def _kind(layer: nn.Module, number: int, config: Any, num_layers: int) -> list[str]:
    """What tells a layer from those of other kinds: its modules, their settings, and the shapes of its weights.

    Besides them what the configuration says of it in lists of as many items as there are layers.
    """
    kind = [
        f"{name} {type(module).__name__} {dict(_settings(module, number))}" for name, module in layer.named_modules()
    ]
    kind += [f"{name} {tuple(weight.shape)}" for name, weight in layer.named_parameters()]
    lists = {name: value for name, value in vars(config).items() if isinstance(value, list)}
    return kind + [f"{name} {value[number]}" for name, value in lists.items() if len(value) == num_layers]


def _settings(module: nn.Module, number: int) -> Iterator[tuple[str, Any]]:
    """The plain attributes of a module, other than the number of its layer."""
    for name, value in vars(module).items():
        is_number = type(value) is int and value == number and ("layer" in name or "idx" in name)
        if value is None or (isinstance(value, bool | int | float | str | tuple) and not is_number):
            yield name, value


def prepare_layers(model: Any, settings: TrainingSettings, device: torch.device) -> None:
    """Let the layers be computed again in the backward pass, and compiled, where the settings ask for it.

    Without such a setting they are compiled where `reason_not_to_compile` has none.
    """
    layers = decoder_layers(model)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for layer in layers:
            # transformers recomputes in training mode alone, and our models stay in eval mode: the flag of the layer
            # itself is set, not of what is in it, and what dropout it applies by itself is turned off.
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
    """Have compiled code in a directory that only this user can write to, and its pickles neither kept nor opened.

    torch's own directory has a name that anyone on this machine can guess, and make before us.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    torch.compiler.config.force_disable_caches = True
    if os.environ.get(_COMPILED, default_cache_dir()) == default_cache_dir():
        os.environ[_COMPILED] = tempfile.mkdtemp(prefix="rm_assets_compiled_")
        atexit.register(shutil.rmtree, os.environ[_COMPILED], ignore_errors=True)


def reason_not_to_compile(settings: TrainingSettings, device: torch.device) -> str:
    """Why layers are not compiled, or "" where they are."""
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
