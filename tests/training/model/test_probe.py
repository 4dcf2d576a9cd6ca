import architectures
import numpy as np
import pytest
import torch
from architectures import CPU, alone, build, edge_cases, in_rows
from transformers import AutoConfig, AutoModelForSequenceClassification

from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.model.layers import decoder_layers, shallow_copy
from rm_assets.training.model.probe import choose_packing
from rm_assets.training.model.probe_pairs import pairs_of, probe_pairs
from rm_assets.training.packing.attention import ATTENTION
from rm_assets.training.packing.planning import Packing

REASONS = {
    "bloom": "BloomForSequenceClassification does not accept another attention function",
    "jamba": "rewards differ from those of each sequence alone by",
    "qwen3_next": "rewards differ from those of each sequence alone by",
    "stablelm": "StableLmAttention gets no layout of the row",
    "nemotron": "NemotronAttention gets no layout of the row",
    "gpt_oss": "GptOssAttention has attention sinks",
}


@pytest.mark.parametrize("name", architectures.SHARED)
def test_architectures_that_share_prompts_exactly_are_found(name):
    model = build(name)
    choice = choose_packing(model, pairs_of(edge_cases()), CPU)
    assert choice.packing is Packing.SHARED
    assert choice.reason.startswith("packed rows with shared prompts: on ")
    assert model.config._attn_implementation == ATTENTION


@pytest.mark.parametrize("name", REASONS)
def test_the_others_fall_back_to_padded_rows_and_say_why(name):
    model = build(name)
    stock = model.config._attn_implementation
    choice = choose_packing(model, pairs_of(edge_cases()), CPU)
    assert choice.packing is Packing.PADDED
    assert choice.reason.startswith("padded rows of similar length: sharing prompts fails, ")
    assert REASONS[name] in choice.reason
    assert "even here" not in choice.reason
    assert model.config._attn_implementation == stock
    expected = alone(model, edge_cases())
    assert torch.allclose(in_rows(model, edge_cases(), Packing.PADDED), expected, atol=1e-5)


class Positions(torch.nn.Module):
    """Embeddings that count tokens through the whole row wherever they are told to restart."""

    def __init__(self, embeddings):
        super().__init__()
        self.embeddings = embeddings

    def forward(self, positions):
        return self.embeddings(torch.arange(positions.shape[-1])[None] + 0 * positions)


def test_positions_that_do_not_restart_are_found_out():
    model = build("gpt2")
    model.transformer.wpe = Positions(model.transformer.wpe)
    choice = choose_packing(model, pairs_of(edge_cases()), CPU)
    assert choice.packing is Packing.PADDED
    assert "rewards differ" in choice.reason


def test_a_probe_leaves_gradients_random_state_and_weights_as_they_were():
    model = build("llama")
    model.score.weight.grad = torch.full_like(model.score.weight, 3.0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    choose_packing(model, pairs_of(edge_cases()), CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert model.score.weight.grad.unique().tolist() == [3.0]
    assert model.get_input_embeddings().weight.grad is None


def test_a_probe_computes_two_layers_alone():
    model = build("llama", num_hidden_layers=9)
    for layer in model.model.layers[2:]:
        layer.to("meta")  # which computes nothing, and cannot be copied to a device
    assert choose_packing(model, pairs_of(edge_cases()), CPU).packing is Packing.SHARED
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(
    ("name", "sizes", "kept"),
    [
        ("llama", {"num_hidden_layers": 12}, 2),
        ("llama", {"num_hidden_layers": 1}, 1),
        ("gpt2", {"n_layer": 12}, 2),
        ("gemma3_text", {"num_hidden_layers": 12}, 6),  # the sixth is the first that sees all tokens
        ("qwen2", {"num_hidden_layers": 8, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 4}, 5),
        ("qwen3_next", {"num_hidden_layers": 12}, 4),
    ],
)
def test_the_layers_that_are_tried_are_of_every_kind(name, sizes, kept):
    model = build(name, **sizes)
    tried = shallow_copy(model, torch.device("cpu"))
    assert len(decoder_layers(tried)) == kept
    tried.set_attn_implementation("eager")
    assert {layer.config._attn_implementation for layer in tried.modules() if hasattr(layer, "config")} == {"eager"}
    tried(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert all(weight.grad is None for weight in model.parameters())


CAUSED = RuntimeError("the layer failed")
CAUSED.__cause__ = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: misaligned address"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99999999999 bytes"),
        MemoryError(),
        CAUSED,
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_device_that_fails_is_no_property_of_the_architecture(error):
    model = build("llama")
    model.model.layers[0].register_forward_pre_hook(raising(error), with_kwargs=True)
    with pytest.raises(type(error)) as caught:
        choose_packing(model, pairs_of(edge_cases()), CPU)
    assert str(caught.value) == str(error)


def test_an_architecture_that_asks_for_other_kernels_is_one():
    model = build("llama")
    error = ImportError("this layer needs CUDA kernels that are not installed")
    model.model.layers[0].register_forward_pre_hook(raising(error), with_kwargs=True)
    choice = choose_packing(model, pairs_of(edge_cases()), CPU)
    assert choice.packing is Packing.PADDED
    assert "needs CUDA kernels" in choice.reason


def raising(error, in_packed_rows=True):
    """A hook that raises it in packed rows alone, or in all."""

    def hook(module, arguments, keywords):
        if not in_packed_rows or keywords.get("row_layout") is not None:
            raise error

    return hook


@pytest.mark.parametrize("name", ["openai-gpt", "minimax"])
def test_a_model_that_cannot_be_computed_in_bfloat16_is_an_error_before_training(name):
    sizes = {**architectures.PADDED["stablelm"], "num_local_experts": 2, "block_size": 8, "afn": "gelu"}
    config = AutoConfig.for_model(name, **sizes)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    with pytest.raises(TrainingError, match=r"cannot be computed in bfloat16, as GPUs and servers do .*; change the"):
        choose_packing(model, pairs_of(edge_cases()), CPU)


def test_a_model_that_fails_in_every_packing_is_an_error_with_its_reason():
    model = build("llama")
    model.model.layers[0].register_forward_pre_hook(
        raising(ValueError("not\ntoday"), in_packed_rows=False), with_kwargs=True
    )
    with pytest.raises(TrainingError, match=r"LlamaForSequenceClassification cannot be trained \(not today\); change"):
        choose_packing(model, pairs_of(edge_cases()), CPU)


def test_without_any_pairs_of_the_data_the_invented_ones_decide():
    assert choose_packing(build("qwen2"), pairs_of([]), CPU).packing is Packing.SHARED


def test_a_layer_that_gives_no_numbers_is_no_success():
    model = build("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    choice = choose_packing(model, pairs_of(edge_cases()), CPU)
    assert choice.packing is Packing.PADDED
    assert "even here" in choice.reason


def test_the_probes_pairs_reach_the_edges():
    config = build("mistral").config
    probe = probe_pairs(config, pairs_of(edge_cases()))
    lengths = np.diff(probe.sequences.offsets)
    assert len(probe) == 7  # two of the data, two invented ones, and three of a ranking of three
    assert probe.prefix.tolist()[2:] == [11, 0, architectures.WINDOW + 3]
    assert lengths.max() > architectures.WINDOW
    assert probe.sequences.ids.max() < architectures.VOCAB_SIZE
    config.max_position_embeddings = 24
    assert np.diff(probe_pairs(config, pairs_of(edge_cases())).sequences.offsets).max() == 24
