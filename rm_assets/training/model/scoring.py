"""From a micro-batch to its scores: the one forward pass of training and evaluation.

Letters: S sequences, T tokens of a row, B pairs, H the model's width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rm_assets.training.model.adapter import base_of
from rm_assets.training.model.architecture import head_modules, is_encoder
from rm_assets.training.model.quantization import is_quantized
from rm_assets.training.packing.attention import UnsupportedModelError
from rm_assets.training.packing.batches import MicroBatch


class Scorer(nn.Module):
    """Wraps the model as one forward pass, which sharding hooks: from a micro-batch to scores, float32 [S].

    `model` is a stock sequence classifier, or a PeftModel around one. A decoder's hidden state at `length - 1` goes
    through its linear head `score` in float32; encoders score padded rows by their own forward pass.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MicroBatch) -> Tensor:
        """The score of each sequence, float32 [S]. Raises UnsupportedModelError for a row that it cannot compute."""
        classifier = base_of(self.model)
        if is_encoder(classifier):
            return _stock_scores(classifier, batch)
        body = getattr(classifier, classifier.base_model_prefix)
        hidden = body(input_ids=batch.ids, use_cache=False, **_arguments(batch)).last_hidden_state  # [., T, H]
        last = hidden.flatten(0, 1).index_select(0, batch.last)
        scores: Tensor = classifier.score(last.float()).squeeze(-1)
        return scores.clone()  # not a view, which FSDP warns about


def bfloat16_scores(scorer: Scorer, batch: MicroBatch) -> Tensor:
    """The scores as sharding computes them on a GPU: from the body's weights in bfloat16, the head's in float32.

    Gradients reach the scorer's own weights, rounded to bfloat16.
    """
    head = _head_weights(scorer)
    weights = {
        # peft expects the frozen experts under its adapters to be parameters
        name: rounded if weight.requires_grad else nn.Parameter(rounded, requires_grad=False)
        for name, weight in scorer.named_parameters()
        if not (id(weight) in head or is_quantized(weight))
        for rounded in [weight.to(torch.bfloat16)]
    }
    found: Tensor = torch.func.functional_call(scorer, weights, (batch,))
    return found


@torch.no_grad()
def round_weights(scorer: Scorer) -> None:
    """Convert the weights of the body to bfloat16, as sharding does on a GPU; the head stays float32.

    Buffers stay as they are: the frequencies of rotary positions are a buffer and need float32.
    """
    head = _head_weights(scorer)
    for weight in scorer.parameters():
        if id(weight) not in head:
            weight.data = weight.data.to(torch.bfloat16)


def scores(scorer: nn.Module, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """The scores of the chosen and of the rejected sides, float32 [B] each."""
    found = scorer(batch)
    return found.index_select(0, batch.chosen), found.index_select(0, batch.rejected)


def _arguments(batch: MicroBatch) -> dict[str, Any]:
    if batch.layout is not None:
        return {"position_ids": batch.positions, "row_layout": batch.layout}
    places = torch.arange(batch.ids.numel(), device=batch.ids.device).view_as(batch.ids)
    return {"attention_mask": (places <= batch.last[:, None]).long()}


def _head_weights(scorer: Scorer) -> set[int]:
    modules = head_modules(base_of(scorer.model)).values()
    return {id(weight) for module in modules for weight in module.parameters()}


def _stock_scores(classifier: Any, batch: MicroBatch) -> Tensor:
    """The scores of an encoder by its own pooling. The body may be in bfloat16, so the head's inputs are converted."""
    if batch.layout is not None:
        raise UnsupportedModelError(f"{type(classifier).__name__} is an encoder, which is computed in padded rows")
    hooks = [module.register_forward_pre_hook(_in_float32) for module in head_modules(classifier).values()]
    try:
        scores: Tensor = classifier(input_ids=batch.ids, **_arguments(batch)).logits[:, 0].float()
    finally:
        for hook in hooks:
            hook.remove()
    return scores.clone()


def _in_float32(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() if isinstance(value, Tensor) else value for value in arguments)
