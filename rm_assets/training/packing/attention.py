"""One attention function for every architecture whose layers pass on their keyword arguments.

It is registered with transformers' public AttentionInterface and reads the positions of sequences from the keyword
`row_layout`. It raises where it would be wrong: without a layout it would attend across sequences.

Letters: Q heads of queries, K heads of keys, T tokens of a row, D width of a head.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rm_assets.training.packing.layout import Kernel, Layout

ATTENTION = "rm_assets_rows"
_SINKS = ("s_aux", "sinks")
_HALF = (torch.float16, torch.bfloat16)
_HAS_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters  # in a later torch


class UnsupportedModelError(RuntimeError):
    """A model that would be wrong in a packed row; the message names the module and the reason."""


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
    """The attention of a packed row: query [1, Q, T, D], key and value [1, K, T, D] to [1, T, Q, D].

    A token attends to its segment's prefix and to its segment's own tokens up to itself, of these the last
    `sliding_window`. On a GPU in half precision it uses torch's variable-length kernels; elsewhere, and with `softcap`,
    it computes pieces of at most PIECE queries. Raises UnsupportedModelError for what neither supports.
    """
    reason = _unsupported(module, query, attention_mask, dropout, row_layout, others)
    if reason:
        raise UnsupportedModelError(f"{type(module).__name__} {reason}")
    assert row_layout is not None
    if row_layout.kernel is not None and softcap is None and query.dtype in _HALF:
        return _varlen(query, key, value, row_layout.kernel, scaling, sliding_window), None
    output: Tensor = _uncompiled_by_piece(query, key, value, row_layout, scaling, sliding_window, softcap)
    return output, None


def _unsupported(
    module: nn.Module,
    query: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    layout: Layout | None,
    others: dict[str, Any],
) -> str:
    if layout is None:
        return "gets no layout of the row: the model's layers drop keyword arguments"
    # not checked in compiled layers: they would be recompiled for every number of tokens
    if not torch.compiler.is_compiling() and (query.shape[0] != 1 or query.shape[2] != layout.num_tokens):
        return f"attends over {tuple(query.shape)} where the row has {layout.num_tokens} tokens"
    if attention_mask is not None:
        return "has a mask of its own"
    if dropout:
        return f"has a dropout of {dropout!r}"
    if any(others.get(name) is not None for name in _SINKS):
        return "has attention sinks"
    if not others.get("is_causal", getattr(module, "is_causal", True)):
        return "is not causal"
    return ""


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, kernel: Kernel, scaling: float | None, window: int | None
) -> Tensor:
    """All segments in one call of torch's varlen attention; with fewer queries than keys it is causal from the end."""
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))  # [T, heads, D]
    if kernel.key_index is not None:
        keys, values = keys.index_select(0, kernel.key_index), values.index_select(0, kernel.key_index)
    groups: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        if _HAS_GROUPS:
            groups["enable_gqa"] = True
        else:
            keys, values = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (keys, values))
    output: Any = varlen_attn(
        queries.contiguous(),
        keys.contiguous(),
        values.contiguous(),
        kernel.query_ends,
        kernel.key_ends,
        kernel.max_queries,
        kernel.max_keys,
        scale=scaling,
        window_size=(-1, 0) if window is None else (window - 1, 0),
        **groups,
    )
    attended: Tensor = output[None]
    return attended


def _by_piece(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One call for each piece of a segment."""
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    pieces = layout.pieces(window)
    queries = query.split_with_sizes([piece.end - piece.start for piece in pieces], dim=2)
    ranges = tuple(piece.keys for piece in pieces)
    gathered: Any = _Gathered.apply
    keys, values = gathered(key, ranges), gathered(value, ranges)
    outputs = [
        _attention(*tensors, layout, scaling, window, softcap) for tensors in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


class _Gathered(torch.autograd.Function):
    """Ranges of a row's tokens: from [1, heads, T, D] a tensor for each tuple of ranges, joined.

    The same as slicing and concatenating, whose backward pass would write a whole row for every slice.
    """

    @staticmethod
    def forward(ctx: Any, row: Tensor, ranges: tuple[tuple[tuple[int, int], ...], ...]) -> tuple[Tensor, ...]:
        ctx.ranges, ctx.shape = ranges, row.shape
        return tuple(torch.cat([row[:, :, start:end] for start, end in parts], dim=2) for parts in ranges)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        batch, heads, tokens, width = ctx.shape
        row = gradients[0].new_zeros(batch, tokens, heads, width).transpose(1, 2)  # the model's memory layout
        for gradient, parts in zip(gradients, ctx.ranges, strict=True):
            offset = 0
            for start, end in parts:
                row[:, :, start:end] += gradient[:, :, offset : offset + end - start]
                offset += end - start
        return row, None


_uncompiled: Any = torch.compiler.disable  # untyped
_uncompiled_by_piece: Any = _uncompiled(_by_piece)  # its loop would be recompiled for every layout


def _attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    layout: Layout,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    num_queries, num_keys = queries.shape[2], keys.shape[2]
    if window is not None and window >= num_keys:
        window = None
    if softcap is not None:
        scale = queries.shape[3] ** -0.5 if scaling is None else scaling
        logits = softcap * torch.tanh(torch.matmul(queries, keys.transpose(2, 3)) * (scale / softcap))
        logits = logits + layout.mask(num_queries, num_keys, window, logits)
        return torch.softmax(logits, dim=-1, dtype=torch.float32).to(values.dtype) @ values
    if num_queries == num_keys and window is None:
        return scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scaling)
    if num_queries == 1 and window is None:
        return scaled_dot_product_attention(queries, keys, values, scale=scaling)
    mask = layout.mask(num_queries, num_keys, window, queries)
    return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling)


AttentionInterface.register(ATTENTION, row_attention)
