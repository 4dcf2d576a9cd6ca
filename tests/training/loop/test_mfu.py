import numpy as np
import pytest
from architectures import build
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from rm_assets.training.loop.throughput import ModelFlops, is_exact, num_dense_weights, peak_flops, step_flops
from rm_assets.training.model.probe_pairs import pairs_of
from rm_assets.training.model.scoring import Scorer
from rm_assets.training.packing.planning import Packing, plan_rows


def test_the_operations_of_a_pair_by_hand():
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_labels=1,
    )
    model = LlamaForSequenceClassification(config)
    # per layer: queries 8 x 8, keys and values 8 x 4 each, output 8 x 8, three of 8 x 12, two norms of 8
    weights = 3 * (64 + 32 + 32 + 64 + 3 * 96 + 16) + 8 + 8
    assert num_dense_weights(model) == weights
    pairs = pairs_of([[np.array([1, 2, 3], np.int32), np.array([1, 2, 4, 5], np.int32)]])
    [plans] = plan_rows(pairs, np.arange(1), Packing.SHARED, 100)
    # five tokens: 1, 2 and 3 see 1, 2 and 3 tokens, and the other branch's two see 3 and 4
    expected = 6 * weights * 5 + 12 * 3 * 2 * 4 * (1 + 2 + 3 + 3 + 4)
    assert step_flops(ModelFlops.of(Scorer(model)), pairs, plans) == expected
    [plans] = plan_rows(pairs, np.arange(1), Packing.PACKED, 100)
    assert step_flops(ModelFlops.of(model), pairs, plans) == 6 * weights * 7 + 12 * 3 * 2 * 4 * (6 + 10)


def test_a_tied_embedding_counts_no_more_than_one_of_its_own():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3, bias=False), nn.Linear(4, 7, bias=False))
    model[2].weight = model[0].weight
    assert num_dense_weights(model) == 12


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181.05e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Unheard Of", None),
    ],
)
def test_a_gpu_has_its_own_peak_and_one_that_is_not_known_none(name, peak):
    assert peak_flops(name) == peak


PAIRS = pairs_of([[np.arange(1, 20, dtype=np.int32), np.arange(1, 18, dtype=np.int32)]])  # the longer side has 19


@pytest.mark.parametrize(
    ("name", "changes", "exact"),
    [
        ("llama", {}, True),
        ("qwen3", {}, True),
        ("gpt2", {}, True),
        ("mistral", {"sliding_window": 18}, False),
        ("mistral", {"sliding_window": 19}, True),  # which hides nothing here
        ("mistral", {"sliding_window": None}, True),
        ("gemma3_text", {"sliding_window": 18}, False),
        ("gemma3_text", {"sliding_window": 18, "layer_types": ["full_attention"] * 2}, True),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 18, "max_window_layers": 1}, False),
        ("mixtral", {}, False),
        ("jamba", {}, False),
        ("qwen3_next", {}, False),
    ],
)
def test_operations_are_counted_where_every_weight_and_token_counts(name, changes, exact):
    assert is_exact(Scorer(build(name, **changes)), PAIRS) is exact


def test_frozen_weights_are_not_counted_as_trained_ones():
    peft = pytest.importorskip("peft")
    configuration = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear")
    assert not is_exact(Scorer(peft.get_peft_model(build("llama"), configuration)), PAIRS)
