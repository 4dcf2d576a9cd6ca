"""The decoder layers of a model: what is spread, compiled and recomputed one by one."""

from typing import Any

from torch import nn

from rm_assets.settings import TrainingSettings


def decoder_layers(model: Any) -> list[nn.Module]:
    """The layers of a stock classifier's body: of its lists of modules, the one that holds most weights."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max((list(modules) for modules in lists), key=_num_weights, default=[])


def prepare_layers(model: Any, settings: TrainingSettings) -> None:
    """Let the layers be computed again in the backward pass, and compiled, where the settings ask for it."""
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
    if settings.compile:
        for layer in layers:
            layer.compile(dynamic=True)


def _num_weights(layers: list[nn.Module]) -> int:
    return sum(weight.numel() for layer in layers for weight in layer.parameters())
