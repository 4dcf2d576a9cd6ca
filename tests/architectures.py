"""Tiny models with random weights of many architectures, and the plain forward pass that everything is held against."""

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rm_assets.training.model.probe_pairs import pairs_of
from rm_assets.training.model.scoring import Scorer
from rm_assets.training.packing.batches import collate
from rm_assets.training.packing.planning import plan_rows

CPU = torch.device("cpu")
VOCAB_SIZE, WINDOW = 97, 16
_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "num_labels": 1,
    "pad_token_id": 0,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_HEADS = {**_GROUPED, "head_dim": 8}
_GPT2 = {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
_GPT2 |= {"num_labels": 1, "pad_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_EXPERTS = {**_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2}

SHARED = {
    "llama": _HEADS,
    "qwen2": _GROUPED,
    "qwen3": _HEADS,
    "mistral": {**_HEADS, "sliding_window": WINDOW},
    "gemma2": {**_HEADS, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_HEADS, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    "phi3": _GROUPED,
    "olmo2": _GROUPED,
    "gpt2": _GPT2,
    "gpt_neox": {**_SIZES, "rotary_pct": 0.5},
    "mixtral": _EXPERTS,
}
"""Architectures that compute shared rows exactly."""

PADDED = {
    "bloom": {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "n_layer": 2, "n_head": 4, "num_labels": 1}
    | {"pad_token_id": 0, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "jamba": {**_GROUPED, "mamba_d_state": 4, "mamba_dt_rank": 4, "num_experts": 2, "use_mamba_kernels": False}
    | {"attn_layer_period": 2, "attn_layer_offset": 1},
    "qwen3_next": {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    | {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "stablelm": _GROUPED,
    "nemotron": _GROUPED,
    "gpt_oss": {**_EXPERTS, "sliding_window": WINDOW},
    "bert": _SIZES,
}
"""Architectures that do not, some of them without a word."""


def build(name, seed=0, **sizes):
    """The model in eval mode, with stock attention."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **(SHARED | PADDED)[name] | sizes)
    config.use_cache = False
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()


def edge_cases():
    """Pairs at the edges: as `pairs_of` takes them, a list of rankings."""
    generator = np.random.default_rng(5)

    def ids(length):
        return generator.integers(1, VOCAB_SIZE, length, dtype=np.int32)

    prompt, short, long = ids(21), ids(2), ids(40)
    return [
        [np.append(prompt, ids(4)), np.append(prompt, ids(9))],
        [short, np.append(short, ids(1))],  # one side is the beginning of the other
        [np.append(short, ids(30)), np.append(short, ids(33))],  # a short prefix before long tails
        [ids(1), ids(27)],  # nothing in common, and a single token
        [np.append(long, ids(1)), np.append(long, ids(1))],  # the last token alone differs
        [np.append(prompt, ids(n)) for n in (3, 1, 8, 5)],  # four replies to one prompt
    ]


def alone(model, rankings):
    """Stock scores of each sequence by itself, as one tensor [S] with a graph."""
    sequences = [torch.from_numpy(sequence.astype(np.int64)) for ranking in rankings for sequence in ranking]
    return torch.cat([model(input_ids=sequence[None]).logits[:, 0] for sequence in sequences])


def in_rows(model, rankings, packing, row_tokens=10_000):
    """The same through the rows of a packing."""
    pairs = pairs_of(rankings)
    found = torch.zeros(len(pairs.sequences))
    for plan in plan_rows(pairs, np.arange(len(pairs)), packing, row_tokens)[0]:
        numbers = [number for branches in plan.branches for number in branches.sequences.tolist()]
        found = found.index_put((torch.tensor(numbers),), Scorer(model)(collate(pairs, plan, CPU)))
    return found


def gradients(model, scores):
    """The gradient of a weighted sum of scores, by name of the weight."""
    weights = torch.linspace(-1, 2, len(scores))
    names, leaves = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad((weights * scores).sum(), leaves, allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}
