"""A GPU's attention for sequences of varying length, on a CPU: importing this gives torch's own operators a CPU kernel.

torch's `varlen_attn` and its autograd formula are called as on a GPU; what computes is here, and says no to whatever
the CUDA kernel (FlashAttention 2) refuses or reads wrongly. Sums are float32, probabilities are rounded as there.
"""

import torch
from torch.nn.attention import varlen

CALLS = {"forward": 0, "backward": 0}
FAULTS = set[str]()
"""What the kernel does wrong, of these."""
ALIGNED_AT_THE_START = "aligned at the start"
SEES_THE_NEXT_TOKEN = "sees the next token"
SEES_BEHIND_THE_WINDOW = "sees a token behind the window"
SEES_THE_SEQUENCE_BEFORE = "sees a token of the sequence before"


def _shares(query, key, scale, window):
    """What each query gives each key, [key heads, group, queries, keys] in float32.

    It is causal as counted from the last key, and reaches `window` keys back.
    """
    grouped = query.float().unflatten(1, (key.shape[1], -1))
    logits = torch.einsum("qhgd,khd->hgqk", grouped, key.float()) * scale
    first = 0 if ALIGNED_AT_THE_START in FAULTS else len(key) - len(query)
    distance = torch.arange(first, first + len(query))[:, None] - torch.arange(len(key))
    seen = (distance >= -(SEES_THE_NEXT_TOKEN in FAULTS)) & (
        distance <= window + (SEES_BEHIND_THE_WINDOW in FAULTS) if window >= 0 else True
    )
    return logits.masked_fill(~seen, -torch.inf).softmax(-1)


def _attended(query, key, value, scale, window):
    """One sequence, [queries, heads, D]."""
    shares = _shares(query, key, scale, window).to(query.dtype).float()
    return torch.einsum("hgqk,khd->qhgd", shares, value.float()).flatten(1, 2).to(query.dtype)


def _gradients(gradient, query, key, value, scale, window):
    """Those of the three, of one sequence."""
    shares = _shares(query, key, scale, window)
    out, grouped = (part.float().unflatten(1, (key.shape[1], -1)) for part in (gradient, query))
    of_value = torch.einsum("hgqk,qhgd->khd", shares.to(query.dtype).float(), out)
    of_shares = torch.einsum("qhgd,khd->hgqk", out, value.float())
    of_logits = shares * (of_shares - (shares * of_shares).sum(-1, keepdim=True))
    of_logits = of_logits.to(query.dtype).float() * scale
    of_query = torch.einsum("hgqk,khd->qhgd", of_logits, key.float()).flatten(1, 2)
    return of_query, torch.einsum("hgqk,qhgd->khd", of_logits, grouped), of_value


def _ranges(tensors, ends, most):
    """The (queries, keys) of every sequence, after what the kernel's own checks would stop."""
    query, key, value = tensors
    for tensor, cumulative in ((query, ends[0]), (key, ends[1])):
        assert tensor.is_contiguous()
        assert cumulative.dtype == torch.int32
        assert int(cumulative[-1]) == len(tensor)
    assert query.dtype == key.dtype == value.dtype
    assert query.dtype in (torch.float16, torch.bfloat16)
    assert key.shape == value.shape
    assert query.shape[1] % key.shape[1] == 0
    assert query.shape[2] == key.shape[2] <= 256
    assert query.shape[2] % 8 == 0
    counts = [cumulative.diff() for cumulative in ends]
    assert (counts[0] > 0).all()
    assert (counts[1] >= counts[0]).all()
    assert all(int(count.max()) <= limit for count, limit in zip(counts, most, strict=True))
    starts = [cumulative.tolist() for cumulative in ends]
    bounds = zip(starts[0], starts[0][1:], starts[1], starts[1][1:], strict=False)
    before = SEES_THE_SEQUENCE_BEFORE in FAULTS
    return [(slice(a, b), slice(max(0, c - before), d)) for a, b, c, d in bounds]


def _reach(is_causal, window_size):
    left, right = window_size
    assert right == 0
    assert is_causal == (left == -1)
    return left


def _forward(query, key, value, query_ends, key_ends, max_q, max_k, is_causal=False, scale=None, window=None, *_):
    CALLS["forward"] += 1
    left = _reach(is_causal, window)
    scale = query.shape[2] ** -0.5 if scale is None else scale
    ranges = _ranges((query, key, value), (query_ends, key_ends), (max_q, max_k))
    outputs = [_attended(query[own], key[seen], value[seen], scale, left) for own, seen in ranges]
    sums = torch.zeros(query.shape[1], query.shape[0])  # the backward pass here needs none
    return torch.cat(outputs), sums, torch.zeros(2, dtype=torch.uint64)


def _backward(gradient, query, key, value, _output, _sums, query_ends, key_ends, max_q, max_k, is_causal, _, *options):
    scale, window = options
    CALLS["backward"] += 1
    assert gradient.dtype == query.dtype
    left = _reach(is_causal, window)
    scale = query.shape[2] ** -0.5 if scale is None else scale
    found = [torch.zeros_like(tensor) for tensor in (query, key, value)]
    for own, seen in _ranges((query, key, value), (query_ends, key_ends), (max_q, max_k)):
        gradients = _gradients(gradient[own], query[own], key[seen], value[seen], scale, left)
        for target, place, part in zip(found, (own, seen, seen), gradients, strict=True):
            target[place] += part
    return tuple(found)


varlen._varlen_attn.register_kernel("cpu")(_forward)
varlen._varlen_attn_backward.register_kernel("cpu")(_backward)
