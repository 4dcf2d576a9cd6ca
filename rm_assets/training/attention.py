"""One attention function for every architecture whose layers pass their keyword arguments on.

It is registered with transformers' public AttentionInterface and reads where sequences lie from the keyword
`row_layout`. An attention that does not get one refuses to compute: it would see across sequences.

Letters: Q heads of queries, K heads of keys, T tokens of a row, D width of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rm_assets.training.layout import Layout, Segment

ATTENTION = "rm_assets_rows"


class UnsupportedAttention(RuntimeError):  # noqa: N818
    """An attention that this function would compute wrongly."""


def row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    row_layout: Layout | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention of a packed row: query [1, Q, T, D], key and value [1, K, T, D] to [1, T, Q, D]."""
    if row_layout is None:
        raise UnsupportedAttention(f"{type(module).__name__} does not pass on the layout of a row")
    if others.get("s_aux") is not None:
        raise UnsupportedAttention(f"{type(module).__name__} has attention sinks")
    outputs = [
        _segment(query, key, value, segment, scaling, sliding_window, softcap, row_layout)
        for segment in row_layout.segments
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment: Segment,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    layout: Layout,
) -> Tensor:
    own, prefix = slice(segment.start, segment.end), slice(segment.prefix_start, segment.prefix_end)
    queries, keys, values = query[:, :, own], key[:, :, own], value[:, :, own]
    if segment.prefix_end > segment.prefix_start:
        keys = torch.cat([key[:, :, prefix], keys], dim=2)
        values = torch.cat([value[:, :, prefix], values], dim=2)
    group = query.shape[1] // key.shape[1]
    if group > 1:
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    num_queries, num_keys = queries.shape[2], keys.shape[2]
    position = torch.arange(num_keys - num_queries, num_keys, device=query.device)[:, None]
    distance = position - torch.arange(num_keys, device=query.device)
    mask = (distance >= 0) & (distance < (window or num_keys))
    if softcap is not None:
        logits = torch.matmul(queries, keys.transpose(2, 3)) * scaling
        logits = (softcap * torch.tanh(logits / softcap)).masked_fill(~mask, -torch.inf)
        return torch.softmax(logits, -1, dtype=torch.float32).to(values.dtype) @ values
    return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling)


AttentionInterface.register(ATTENTION, row_attention)
