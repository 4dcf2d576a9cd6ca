"""What a GPU computes, on a CPU: bfloat16, torch's varlen attention with the kernel of `varlen_kernel`."""

import json
import re
from datetime import timedelta
from pathlib import Path

import architectures
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import varlen_kernel
from architectures import CPU, alone, build, edge_cases, gradients
from toy_pairs import learnable_pairs
from transformers import AutoConfig

from rm_assets.settings import TrainingSettings
from rm_assets.training.jobs.result import METRICS, MODEL, SCORES_FILE, clear_output
from rm_assets.training.loop.checkpoint import restore_state, training_state
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.held_out import pair_scores
from rm_assets.training.loop.setup import fit_micro_batches, prepare_run
from rm_assets.training.loop.step import train_step
from rm_assets.training.loop.trainer import planned_steps
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.model.adapter import with_adapter
from rm_assets.training.model.layers import decoder_layers, prepare_layers
from rm_assets.training.model.probe import Choice, choose_packing, use_packing
from rm_assets.training.model.probe_pairs import pairs_of
from rm_assets.training.model.reward_model import build_model, load_model
from rm_assets.training.model.scoring import Scorer, bfloat16_scores
from rm_assets.training.packing.attention import ATTENTION, row_attention
from rm_assets.training.packing.batches import collate
from rm_assets.training.packing.checks import read_splits
from rm_assets.training.packing.layout import Kernel, Layout, Segment
from rm_assets.training.packing.planning import Branches, MicroPlan, Packing, plan_rows
from rm_assets.training.run import train_and_publish


def single_plans(pairs):
    """A row for each sequence."""
    numbers = np.arange(len(pairs.sequences))
    return [MicroPlan(numbers[:0], (Branches(0, numbers[n : n + 1]),), Packing.PACKED) for n in numbers]


def bfloat16_rewards(model, pairs, plans):
    found = torch.zeros(len(pairs.sequences))
    for plan in plans:
        numbers = [number for branches in plan.branches for number in branches.sequences.tolist()]
        rewards = bfloat16_scores(Scorer(model), collate(pairs, plan, CPU))
        found = found.index_put((torch.tensor(numbers),), rewards)
    return found


def differences(found, expected):
    """Of rewards per standard deviation; of each weight's gradient per its norm, small ones per a fifth of all."""
    rewards = (found[0] - expected[0]).abs().max() / expected[0].std()
    everything = torch.stack([gradient.norm() for gradient in expected[1].values()]).norm()
    assert found[1].keys() == expected[1].keys()
    worst = [
        float((found[1][name] - gradient).norm() / max(gradient.norm(), 0.2 * everything))
        for name, gradient in expected[1].items()
    ]
    return float(rewards), max(worst)


@pytest.mark.parametrize("name", architectures.SHARED)
def test_rows_of_a_gpu_give_the_rewards_and_gradients_of_each_sequence_alone(cpu_as_gpu, name):
    model, pairs = build(name), pairs_of(edge_cases())
    rewards = alone(model, edge_cases())
    exact = rewards.detach(), gradients(model, rewards)
    model.set_attn_implementation(ATTENTION)
    rewards = bfloat16_rewards(model, pairs, single_plans(pairs))
    single = rewards.detach(), gradients(model, rewards)
    assert max(differences(single, exact)) < 0.04  # what rounding costs
    for packing in (Packing.SHARED, Packing.PACKED):
        calls = dict(varlen_kernel.CALLS)
        [plans] = plan_rows(pairs, np.arange(len(pairs)), packing, 150)
        assert len(plans) > 1
        rewards = bfloat16_rewards(model, pairs, plans)
        found = rewards.detach(), gradients(model, rewards)
        assert max(differences(found, single)) < 0.01  # a token of another sequence costs 0.1 and more
        expected_calls = 0 if name == "gemma2" else 2 * len(plans)  # capped logits are computed by pieces
        assert all(varlen_kernel.CALLS[what] - calls[what] == expected_calls for what in calls)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("num_key_heads", [4, 2])
def test_the_kernel_is_given_the_same_attention_as_the_pieces_compute(window, num_key_heads):
    segments = [Segment(0, 9), Segment(9, 12, 0, 6), Segment(12, 22, 0, 6), Segment(22, 25), Segment(25, 26, 22, 1)]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 26, heads, 8, generator=generator) for heads in (4, num_key_heads, num_key_heads)]
    tensors = [tensor.bfloat16().transpose(1, 2).requires_grad_() for tensor in tensors]
    found = {}
    for name, kernel in (("pieces", None), ("kernel", Kernel.of(segments, CPU))):
        given = {"scaling": 0.3, "sliding_window": window, "row_layout": Layout(tuple(segments), kernel)}
        output, _ = row_attention(torch.nn.Identity(), *tensors, None, **given)
        found[name] = [output, *torch.autograd.grad(output.float().square().sum(), tensors)]
    for piece, kernel in zip(*found.values(), strict=True):
        assert piece.shape == kernel.shape
        assert (piece - kernel).float().norm() < 0.01 * piece.float().norm()


def test_a_compiled_layer_has_two_graphs_whatever_the_rows_and_a_process_without_pairs_adds_none(cpu_as_gpu):
    from torch._dynamo.testing import CompileCounterWithBackend

    model, pairs = build("llama").bfloat16(), pairs_of(edge_cases())
    model.score.float()
    model.set_attn_implementation(ATTENTION)
    prepare_layers(model, TrainingSettings(), CPU)
    counter = CompileCounterWithBackend("eager")
    for layer in decoder_layers(model):
        layer.compile(dynamic=True, backend=counter)
    counts = []
    for packing, row_tokens in (("shared", 400), ("packed", 400), ("shared", 70), ("packed", 90), ("shared", 160)):
        [plans] = plan_rows(pairs, np.arange(len(pairs)), Packing(packing), row_tokens)
        for plan in plans:
            Scorer(model)(collate(pairs, plan, CPU)).sum().backward()
        counts.append(counter.frame_count)
    [_, [idle]] = plan_rows(pairs, np.arange(1), Packing.SHARED, 400, 2)
    Scorer(model)(collate(pairs, idle, CPU)).sum().backward()
    assert [*counts, counter.frame_count] == [1, 2, 2, 2, 2, 2]


# --- the probe -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gemma3_text", "gpt2"])
def test_the_probe_finds_shared_rows_right_in_bfloat16_too(cpu_as_gpu, name):
    choice = choose_packing(build(name), pairs_of(edge_cases()), CPU)
    assert choice.packing is Packing.SHARED
    largest = [float(word) for word in re.findall(r"\d\.\de[+-]\d\d", choice.reason)]
    assert len(largest) == 2
    assert max(largest) < 0.4  # far from what is refused


@pytest.mark.parametrize(
    ("fault", "packing", "name"),
    [
        # with as many queries as keys it is none
        *((varlen_kernel.ALIGNED_AT_THE_START, Packing.PACKED, name) for name in ("llama", "qwen2", "mistral", "gpt2")),
        *((varlen_kernel.SEES_THE_NEXT_TOKEN, Packing.PADDED, name) for name in ("llama", "qwen2")),
        (varlen_kernel.SEES_BEHIND_THE_WINDOW, Packing.PADDED, "gemma3_text"),
        *((varlen_kernel.SEES_THE_SEQUENCE_BEFORE, Packing.PADDED, name) for name in ("llama", "mistral", "gpt2")),
    ],
)
def test_the_probe_finds_a_kernel_that_is_wrong_by_a_token(cpu_as_gpu, monkeypatch, fault, packing, name):
    monkeypatch.setattr(varlen_kernel, "FAULTS", {fault})
    choice = choose_packing(build(name), pairs_of(edge_cases()), CPU)
    assert choice.packing is packing
    assert "rewards differ from those of each sequence alone by" in choice.reason


# --- training ------------------------------------------------------------------------------------------------


def test_processes_wait_for_the_first_and_plan_nothing_for_a_new_shape(gpu):
    assert (gpu.rank, gpu.size) == (0, 1)
    assert torch.distributed.group.WORLD._get_backend(CPU).options._timeout == timedelta(hours=2)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def as_arrays(pairs):
    return [[np.array(ids, np.int32) for ids in pair] for pair in pairs]


def curves(job, group):
    clear_output(Path(job.output_directory))
    progress = TrainingLog(Path(job.output_directory) / METRICS, print)
    train_and_publish(job, group, progress)
    manifest = json.loads((Path(job.output_directory) / "manifest.json").read_text())
    lines = (Path(job.output_directory) / METRICS).read_text().splitlines()
    return manifest["metrics"], [line["loss"] for line in map(json.loads, lines) if "loss" in line]


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}, {"gradient_checkpointing": True}])
def test_a_gpu_trains_as_a_cpu_does_but_for_rounding(make_job, gpu, monkeypatch, settings):
    settings = {"epochs": 3, "learning_rate": 3e-3} | settings
    calls = dict(varlen_kernel.CALLS)
    figures, losses = curves(make_job("gpu", settings=settings), gpu)
    assert all(varlen_kernel.CALLS[what] > calls[what] for what in calls)
    monkeypatch.undo()
    expected_figures, expected = curves(make_job("cpu", settings=settings), SINGLE_PROCESS)
    assert len(losses) == 9
    assert losses == pytest.approx(expected, abs=0.01)
    assert losses != expected  # which were computed in float32
    assert figures["packing"] == expected_figures["packing"] == Packing.SHARED
    assert figures["test_loss"] == pytest.approx(expected_figures["test_loss"], abs=0.02)


def test_a_gpu_trains_adapters_of_experts_as_a_cpu_does_but_for_rounding(make_job, gpu, monkeypatch, tmp_path):
    AutoConfig.for_model("mixtral", **architectures.SHARED["mixtral"]).save_pretrained(tmp_path / "experts")
    settings = {"epochs": 2, "learning_rate": 1e-3, "lora_rank": 2}
    job = make_job("gpu", model=str(tmp_path / "experts"), settings=settings)
    figures, losses = curves(job, gpu)
    adapters = json.loads((Path(job.output_directory) / "adapter" / "adapter_config.json").read_text())
    assert "gate_up_proj" in str(adapters["target_parameters"])
    monkeypatch.undo()
    expected_figures, expected = curves(make_job("cpu", model=job.model, settings=settings), SINGLE_PROCESS)
    assert losses == pytest.approx(expected, abs=0.02)  # rounding sends some tokens to other experts
    assert losses != expected
    assert figures["packing"] == expected_figures["packing"] == Packing.SHARED


ENCODERS = {
    "bert": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 16},
    "modernbert": {"bos_token_id": 2, "eos_token_id": 1, "cls_token_id": 2, "sep_token_id": 1},
}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("bert", {"lora_rank": 2}), ("deberta-v2", {}), ("modernbert", {"gradient_checkpointing": True})],
)
def test_a_gpu_trains_an_encoder_as_a_cpu_does_but_for_rounding(make_job, gpu, monkeypatch, tmp_path, name, settings):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    AutoConfig.for_model(name, **sizes, **ENCODERS[name]).save_pretrained(tmp_path / "encoder")
    changes = {"model": str(tmp_path / "encoder"), "settings": {"epochs": 3, "learning_rate": 3e-3} | settings}
    figures, losses = curves(make_job("gpu", **changes), gpu)
    monkeypatch.undo()
    expected_figures, expected = curves(make_job("cpu", **changes), SINGLE_PROCESS)
    assert losses == pytest.approx(expected, abs=0.01)
    assert losses != expected  # which were computed in float32
    assert losses[-1] < losses[0]
    assert figures["packing"] == expected_figures["packing"] == Packing.PADDED
    assert figures["test_loss"] == pytest.approx(expected_figures["test_loss"], abs=0.02)


def test_a_gpu_scores_held_out_pairs_in_bfloat16_and_tells_what_that_changed(make_job, gpu, monkeypatch):
    splits = {"train": learnable_pairs(8), "validation": learnable_pairs(30, 50), "test": learnable_pairs(40, 90)}
    job = make_job(splits=splits)
    figures, _ = curves(job, gpu)
    assert (figures["scores_dtype"], figures["bfloat16_sample_pairs"]) == ("bfloat16", 64)
    assert 0 < figures["bfloat16_sample_largest_difference"] < 0.05
    card = (Path(job.output_directory) / MODEL / "README.md").read_text()
    assert f"| scores_precision | {figures['scores_precision']} |" in card
    scores = pq.read_table(Path(job.output_directory) / SCORES_FILE)
    monkeypatch.undo()
    model = load_model(Path(job.output_directory) / MODEL)
    exact = [alone(model, [pair]) for name in ("validation", "test") for pair in as_arrays(splits[name])]
    expected = torch.stack(exact).detach().numpy()
    found = np.stack([scores["chosen_score"], scores["rejected_score"]], axis=1)
    assert found == pytest.approx(expected, abs=2 * figures["bfloat16_sample_largest_difference"])
    assert (found != expected).mean() > 0.9


def test_weights_are_saved_whole_in_precision_right_after_a_look(make_job, gpu, tmp_path):
    job = make_job()
    pairs = read_splits(job, tmp_path)["train"]
    model = build_model(job)
    run = prepare_run(model, pairs, choose_packing(model, pairs, CPU), job.settings, gpu)
    [(_, rows), *_] = planned_steps(job.settings, pairs)
    train_step(run, 1, 1, rows, plan_rows(pairs, rows, Packing.SHARED, 100)[0])
    before = training_state(run.scorer, run.optimizer)
    pair_scores(run.scorer, pairs, rows, gpu, Packing.SHARED, 100)
    after = training_state(run.scorer, run.optimizer)
    assert {tensor.dtype for name, tensor in after.items() if not name.startswith("random")} == {torch.float32}
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    # and it goes on from there
    restore_state(run.scorer, run.optimizer, before)
    train_step(run, 2, 1, rows, plan_rows(pairs, rows, Packing.SHARED, 100)[0])


def test_under_adapters_a_gpu_keeps_the_base_in_bfloat16_and_saves_it_as_it_was(make_job, gpu, tmp_path):
    job = make_job(settings={"lora_rank": 2, "epochs": 2})
    original = build_model(job).state_dict()
    model = with_adapter(build_model(job), job.settings)
    run = prepare_run(model, read_splits(job, tmp_path)["train"], Choice(Packing.SHARED, ""), job.settings, gpu)
    dtypes = {(weight.requires_grad, weight.dtype) for weight in run.scorer.model.base_model.model.model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert {buffer.dtype for buffer in run.scorer.buffers() if buffer.is_floating_point()} == {torch.float32}

    train_and_publish(job, gpu, TrainingLog())
    saved = load_model(Path(job.output_directory) / MODEL).state_dict()
    assert torch.equal(saved["model.embed_tokens.weight"], original["model.embed_tokens.weight"])
    name = "model.layers.0.mlp.up_proj.weight"
    added = saved[name] - original[name]
    assert torch.linalg.matrix_rank(added, rtol=1e-4) <= 2  # rounding of the base would have full rank
    assert added.abs().max() > 0


class EnoughMemory:
    def free(self):
        return 1e15

    def peak(self, work):
        work()
        return 1


def test_what_was_tried_for_its_memory_leaves_no_trace_in_the_first_step(make_job, gpu, tmp_path):
    pairs = pairs_of([[np.full(1 + n % 40, 5, np.int32), np.full(2 + n % 40, 6, np.int32)] for n in range(80)])
    job = make_job(settings={"batch_pairs": 8, "micro_batch_tokens": 200})
    [(_, rows), *_] = planned_steps(job.settings, pairs)
    [plans] = plan_rows(pairs, rows, Packing.SHARED, 200)
    results = []
    for tried in (False, True):
        model = build_model(job)
        use_packing(model, Packing.SHARED)
        run = prepare_run(model, pairs, Choice(Packing.SHARED, ""), job.settings, gpu)
        run = fit_micro_batches(run, EnoughMemory()) if tried else run
        figures, _ = train_step(run, 1, 1, rows, plans)
        results.append((figures, training_state(run.scorer, run.optimizer)))
    assert len(plans) > 1
    assert results[0][0] == results[1][0]
    assert all(torch.equal(tensor, results[1][1][name]) for name, tensor in results[0][1].items())
