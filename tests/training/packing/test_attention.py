"""Shared and packed rows against each sequence alone, through stock transformers: rewards and gradients, float32."""

import dataclasses

import architectures
import numpy as np
import pytest
import torch
from architectures import CPU, alone, build, edge_cases, gradients, in_rows
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from rm_assets.training.model.probe_pairs import pairs_of, probe_pairs
from rm_assets.training.packing import layout
from rm_assets.training.packing.attention import ATTENTION, UnsupportedModelError, row_attention
from rm_assets.training.packing.batches import collate
from rm_assets.training.packing.layout import Kernel, Layout, Piece, Segment
from rm_assets.training.packing.planning import Packing, plan_rows


@pytest.mark.parametrize("packing", [Packing.SHARED, Packing.PACKED])
@pytest.mark.parametrize("name", architectures.SHARED)
def test_rewards_and_gradients_in_rows_are_those_of_each_sequence_alone(name, packing):
    model, rankings = build(name), edge_cases()
    expected = alone(model, rankings)
    expected_gradients = gradients(model, expected)
    model.set_attn_implementation(ATTENTION)
    found = in_rows(model, rankings, packing)
    assert expected.std() > 0.01
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()
    found_gradients = gradients(model, found)
    assert found_gradients.keys() == expected_gradients.keys()
    everything = torch.stack([gradient.norm() for gradient in expected_gradients.values()]).norm()
    for weight, gradient in expected_gradients.items():
        assert (found_gradients[weight] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6 * everything, weight


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3_text"])
def test_segments_of_many_pieces_give_the_same(monkeypatch, name):
    monkeypatch.setattr(layout, "PIECE", 7)
    test_rewards_and_gradients_in_rows_are_those_of_each_sequence_alone(name, Packing.SHARED)


@pytest.mark.parametrize("packing", list(Packing))
def test_the_size_of_a_row_changes_no_score(packing):
    model, rankings = build("qwen3"), edge_cases()
    expected = alone(model, rankings)
    if packing is not Packing.PADDED:
        model.set_attn_implementation(ATTENTION)
    for row_tokens in (1, 60, 130):
        assert torch.allclose(in_rows(model, rankings, packing, row_tokens), expected, atol=1e-6)


def test_layers_that_are_computed_again_in_the_backward_pass_give_the_same_gradients():
    model, rankings = build("qwen3"), edge_cases()
    model.set_attn_implementation(ATTENTION)
    expected = gradients(model, in_rows(model, rankings, Packing.SHARED))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    scores = in_rows(model, rankings, Packing.SHARED)
    weights = torch.linspace(-1, 2, len(scores))
    (weights * scores).sum().backward()  # checkpoints do not work with torch.autograd.grad
    assert all(torch.equal(dict(model.named_parameters())[name].grad, found) for name, found in expected.items())


def test_an_adapter_of_peft_is_computed_in_rows_too():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    configuration = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", init_lora_weights=False)
    model, rankings = peft.get_peft_model(build("llama"), configuration).eval(), edge_cases()
    expected = alone(model, rankings)
    expected_gradients = gradients_of_trained(model, expected)
    model.get_base_model().set_attn_implementation(ATTENTION)
    found = in_rows(model, rankings, Packing.SHARED)
    assert torch.allclose(found, expected, atol=1e-6)
    found_gradients = gradients_of_trained(model, found)
    assert any("lora_A" in name for name in found_gradients)
    assert any("score" in name for name in found_gradients)
    for name, gradient in expected_gradients.items():
        assert torch.allclose(found_gradients[name], gradient, atol=1e-5), name


def gradients_of_trained(model, scores):
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return dict(zip(trained, torch.autograd.grad(scores.square().sum(), list(trained.values())), strict=True))


# --- refusals ------------------------------------------------------------------------------------------------

TENSORS = [torch.zeros(1, heads, 3, 8) for heads in (4, 2, 2)]
LAYOUT = Layout.of([Segment(0, 3)], CPU)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"row_layout": None}, "Identity gets no layout of the row: the model's layers drop keyword arguments"),
        ({"row_layout": Layout.of([Segment(0, 2)], CPU)}, r"attends over \(1, 4, 3, 8\) where the row has 2 tokens"),
        ({"attention_mask": torch.ones(1, 1, 3, 3)}, "has a mask of its own"),
        ({"dropout": 0.1}, "has a dropout of 0.1"),
        ({"s_aux": torch.zeros(4)}, "has attention sinks"),
        ({"is_causal": False}, "is not causal"),
    ],
)
def test_what_would_be_wrong_in_a_row_is_refused(arguments, message):
    given = {"attention_mask": None, "row_layout": LAYOUT} | arguments
    with pytest.raises(UnsupportedModelError, match=message):
        row_attention(torch.nn.Identity(), *TENSORS, **given)


def test_a_layout_is_handed_to_every_layer_as_it_is():
    assert not dataclasses.is_dataclass(LAYOUT)  # FSDP would copy it for each of them


# --- pieces --------------------------------------------------------------------------------------------------


def test_pieces_by_hand(monkeypatch):
    monkeypatch.setattr(layout, "PIECE", 3)
    row = Layout.of([Segment(0, 10), Segment(10, 15, 2, 4)], CPU)
    assert row.pieces(None) == (
        Piece(0, 3, ((0, 3),)),
        Piece(3, 6, ((0, 6),)),
        Piece(6, 9, ((0, 9),)),
        Piece(9, 10, ((0, 10),)),
        Piece(10, 13, ((2, 6), (10, 13))),
        Piece(13, 15, ((2, 6), (10, 15))),
    )
    assert row.pieces(3)[2:] == (
        Piece(6, 9, ((4, 9),)),
        Piece(9, 10, ((7, 10),)),
        Piece(10, 13, ((4, 6), (10, 13))),
        Piece(13, 15, ((11, 15),)),
    )


@pytest.mark.parametrize("window", [None, 3])
def test_a_mask_shows_a_token_itself_and_what_is_before_it(window):
    row = Layout.of([Segment(0, 9)], CPU)
    seen = row.mask(2, 5, window, torch.zeros(1)) == 0
    expected = [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]] if window is None else [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert seen.int().tolist() == expected


class MasksOfAttention(TorchFunctionMode):
    """Keeps every mask that torch's attention is given."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        mask = (keywords or {}).get("attn_mask")
        if function is scaled_dot_product_attention and mask is not None:
            self.masks.append(mask)
        return function(*arguments, **(keywords or {}))


def lengths_of_dialogues(seed):
    """Segments of a row as dialogues have them: pairs with a prompt in common, their lengths far apart."""
    generator = np.random.default_rng(seed)
    segments, end = [], 0
    while end < 3000:
        prompt, *replies = np.clip(np.exp(generator.normal([5.0, 4.3, 4.3], 0.9)), 1, 900).astype(int).tolist()
        segments.append(Segment(end, end + prompt + replies[0]))
        segments.append(Segment(segments[-1].end, segments[-1].end + replies[1], end, prompt))
        end = segments[-1].end
    return segments


ROWS = [lengths_of_dialogues(seed) for seed in range(6)]
ROWS += [  # a longest segment of every remainder, and beside it few queries of many keys
    [Segment(0, longest), Segment(longest, longest + 2, 0, 11), Segment(longest + 2, longest + 3, 0, 160)]
    for longest in range(192, 200)
]


@pytest.mark.parametrize("window", [None, 16, 128])
def test_every_mask_begins_where_a_gpu_can_read_it_and_shows_what_it_should(window):
    rows = [
        *ROWS,
        *(collated(build("mistral").config, packing).segments for packing in (Packing.SHARED, Packing.PACKED)),
    ]
    num_masks = 0
    for segments in rows:
        tensors = [torch.zeros(1, 1, segments[-1].end, 8)] * 3
        row = Layout.of(segments, CPU)
        with MasksOfAttention() as seen:
            row_attention(torch.nn.Identity(), *tensors, None, sliding_window=window, row_layout=row)
        for mask in seen.masks:
            assert mask.stride(1) == 1
            assert mask.stride(0) % layout.ALIGNMENT == mask.storage_offset() % layout.ALIGNMENT == 0
            queries, keys = mask.shape
            distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
            assert torch.equal(mask == 0, (distance >= 0) & (distance < (window or keys)))
        num_masks += len(seen.masks)
    assert num_masks > 100


def collated(config, packing):
    """The layout of the row that the probe tries: its invented pairs, and sides of 192 tokens as of real dialogues."""
    generator = np.random.default_rng(0)
    sides = [generator.integers(1, config.vocab_size, length, dtype=np.int32) for length in (240, 192)]
    pairs = probe_pairs(config, pairs_of([[sides[0], sides[1]], [np.append(sides[0][:100], sides[1]), sides[0]]]))
    [[plan]] = plan_rows(pairs, np.arange(len(pairs)), packing, 1 << 30)
    return collate(pairs, plan, CPU).layout


# --- what a GPU's kernel reads -------------------------------------------------------------------------------


def test_the_kernels_view_by_hand():
    kernel = Kernel.of([Segment(0, 5), Segment(5, 7, 0, 2)], CPU)
    assert kernel.query_ends.tolist() == [0, 5, 7]
    assert kernel.key_ends.tolist() == [0, 5, 9]
    assert kernel.key_index.tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 6]
    assert (kernel.max_queries, kernel.max_keys) == (8, 8)
    assert Kernel.of([Segment(0, 5), Segment(5, 7)], CPU).key_index is None


def test_compiled_layers_give_the_same_scores_and_are_not_compiled_for_every_row():
    from torch._dynamo.testing import CompileCounterWithBackend

    model, rankings = build("llama"), edge_cases()
    expected = alone(model, rankings).detach()
    model.set_attn_implementation(ATTENTION)
    counter = CompileCounterWithBackend("eager")
    for layer in model.model.layers:
        layer.compile(dynamic=True, backend=counter)
    counts = []
    for row_tokens in (10_000, 60, 90, 130):
        assert torch.allclose(in_rows(model, rankings, Packing.SHARED, row_tokens), expected, atol=1e-6)
        counts.append(counter.frame_count)
    assert 0 < counts[1] == counts[-1]
