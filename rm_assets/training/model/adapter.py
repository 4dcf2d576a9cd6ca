"""LoRA (2106.09685): small matrices on every linear layer, trained with the head while the model is frozen.

The published model is a plain one with the matrices merged into its weights; the adapter is saved beside it.
"""

from pathlib import Path
from typing import Any

import torch

from rm_assets.settings import TrainingSettings
from rm_assets.training.jobs.result import ADAPTER
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.model.architecture import head_modules, is_encoder


def with_adapter(model: Any, settings: TrainingSettings) -> Any:
    """The model with adapters on its linear layers, in place, as peft's wrapper of it; the head is trained whole.

    The base keeps its precision here; a GPU trains with it in bfloat16 (`layers.round_frozen_weights`), under adapters
    in float32. It may be quantized (`quantization.py`): the adapters are those of the same model in full precision.
    Without `lora_rank`, the model itself. Depends on model and settings only. Raises TrainingError without peft.
    """
    if not settings.lora_rank:
        return model
    try:
        import peft
    except ImportError:
        raise TrainingError("lora_rank needs peft: pip install 'rm_assets[lora]'") from None
    torch.manual_seed(settings.seed)
    configuration = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,  # peft trains and saves the head of this kind
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        modules_to_save=whole_modules(model),
    )
    return peft.get_peft_model(model, configuration).eval()


def whole_modules(model: Any) -> list[str] | None:
    """An encoder's modules that are trained whole besides `classifier`: the rest of its head, and BERT's pooler.

    They may have random weights, which small matrices could not replace.
    """
    if not is_encoder(model):
        return None
    body = getattr(model, model.base_model_prefix)
    poolers = ["pooler"] if getattr(body, "pooler", None) is not None else []
    return sorted({*head_modules(model), *poolers} - {"classifier"})


def base_of(model: Any) -> Any:
    """The stock classifier inside, adapters included."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def merged(model: Any) -> Any:
    """The stock classifier with its adapters merged into its weights, in place."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def save_adapter(model: Any, base_name: str, directory: Path) -> None:
    """Write the adapter and the head as peft reads them; `base_name` is the model that the adapter belongs to."""
    if hasattr(model, "merge_and_unload"):
        model.peft_config["default"].base_model_name_or_path = base_name
        model.save_pretrained(directory / ADAPTER, safe_serialization=True, save_embedding_layers=False)
