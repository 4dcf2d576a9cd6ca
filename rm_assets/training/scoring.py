"""From a micro-batch to its scores: the one forward pass of training and evaluation.

Letters: S sequences, T tokens of a row, B pairs, H the model's width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rm_assets.training.batches import MicroBatch


class Scorer(nn.Module):
    """The model behind one forward pass, so that sharding has a root to hook: micro-batch to scores float32 [S].

    `model` is a stock sequence classifier with a linear head `score`, or a PeftModel around one. The hidden state at
    `length - 1` goes through the head in float32; the body computes in bfloat16 where asked.
    """

    def __init__(self, model: Any, bfloat16: bool = False) -> None:
        super().__init__()
        self.model = model
        self.computes_bfloat16 = bfloat16

    def forward(self, batch: MicroBatch) -> Tensor:
        """The score of each sequence, float32 [S]."""
        classifier = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        body = getattr(classifier, classifier.base_model_prefix)
        with torch.autocast(batch.ids.device.type, dtype=torch.bfloat16, enabled=self.computes_bfloat16):
            hidden = body(input_ids=batch.ids, use_cache=False, **_arguments(batch)).last_hidden_state  # [., T, H]
        last = hidden.flatten(0, 1).index_select(0, batch.last)
        scores: Tensor = classifier.score(last.float()).squeeze(-1)
        return scores


def scores(scorer: nn.Module, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """The scores of the chosen and of the rejected sides, float32 [B] each."""
    found = scorer(batch)
    return found.index_select(0, batch.chosen), found.index_select(0, batch.rejected)


def _arguments(batch: MicroBatch) -> dict[str, Any]:
    if batch.layout is not None:
        return {"position_ids": batch.positions, "row_layout": batch.layout}
    places = torch.arange(batch.ids.numel(), device=batch.ids.device).view_as(batch.ids)
    return {"attention_mask": (places <= batch.last[:, None]).long()}
