"""QLoRA (2305.14314): the frozen linear layers in 4 bits, under LoRA adapters.

NF4 in blocks of 64 weights, whose scales are quantized, too: 4.13 bits a weight. Layers convert their weights to the
precision of their inputs for each matrix product. What is published is merged from the checkpoint's own weights.
"""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rm_assets.training.devices import trains_in_bfloat16
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.model.adapter import whole_modules

BLOCK = 64
"""Weights that share a scale. On a CPU, bitsandbytes 0.50 misreads blocks that go across rows of a matrix."""


def quantize_base(model: Any, device: torch.device) -> str:
    """Quantize the linear layers of a stock classifier's body, in place and one by one, on `device`.

    Its head, embeddings and norms stay as they are, and so do experts that are not layers of their own, and layers
    whose inputs have a width that is not a multiple of BLOCK. Returns the share of the weights that are now in 4 bits
    as a sentence for the log. Depends on the model only. Raises TrainingError without bitsandbytes, or if there are no
    layers to quantize.
    """
    try:
        import bitsandbytes
    except ImportError:
        raise TrainingError("load_in_4bit needs bitsandbytes: pip install 'rm_assets[4bit]'") from None
    body, trained = getattr(model, model.base_model_prefix), set(whole_modules(model) or ())
    names = [name for name, module in body.named_modules() if _is_quantizable(name, module, trained)]
    num_weights, num_quantized = model.num_parameters(), 0
    for name in names:
        layer = body.get_submodule(name)
        num_quantized += layer.weight.numel()
        body.set_submodule(name, _quantized(layer, bitsandbytes, device))
    if not names:
        raise TrainingError(
            f"{type(model).__name__} has no linear layers of a width that is a multiple of {BLOCK}, and others are not "
            "quantized: unset load_in_4bit, or change the setting model"
        )
    model.is_loaded_in_4bit = True  # which peft and num_parameters read
    return f"the frozen base is in 4 bits (NF4): {num_quantized:,} of {num_weights:,} weights"


def is_quantized(weight: torch.Tensor) -> bool:
    """Whether a weight holds codes, which must not be converted to another precision."""
    return not weight.is_floating_point()


def _is_quantizable(name: str, module: nn.Module, trained: set[str]) -> bool:
    if type(module) not in (nn.Linear, Conv1D) or trained.intersection(name.split(".")):
        return False
    return _matrix(module).shape[1] % BLOCK == 0


def _matrix(layer: Any) -> torch.Tensor:
    """The weights of a layer, outputs x inputs; those of GPT-2's `Conv1D` are transposed."""
    weight: torch.Tensor = layer.weight.detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def _quantized(layer: Any, bitsandbytes: Any, device: torch.device) -> Any:
    weight = _matrix(layer)
    kind: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"}
    quantized = bitsandbytes.nn.Linear4bit(*weight.shape[::-1], bias=layer.bias is not None, device="meta", **kind)
    quantized.weight = bitsandbytes.nn.Params4bit(weight.contiguous(), module=quantized, **kind).to(device)
    if trains_in_bfloat16(device):
        quantized.weight.quant_state.dtype = torch.bfloat16  # of the matrix in the backward pass
    quantized.bias = layer.bias
    quantized.compute_type_is_set = True  # to None, that of the inputs: the probe computes in two precisions
    quantized.support_avx512bf16_for_cpu = False  # or evaluation would repack weights, which training cannot read then
    return quantized
