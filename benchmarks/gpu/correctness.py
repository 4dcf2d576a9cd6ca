"""Is what a GPU computes right? `python benchmarks/gpu/correctness.py [STAGE ...]`, all of them if none is named.

Each stage prints its figures and ends with PASS or FAIL; a failed one does not stop the others. The exit code is 0 if
all have passed. Without CUDA the stages try themselves on fewer and smaller models: see fixtures.py.
"""

import inspect
import itertools
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import torch
import transformers
from fixtures import CUDA, cpu_as_gpu, device_name, qwen3, random_pairs, synchronize
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from rm_assets.settings import TrainingSettings
from rm_assets.training.jobs.training_job import TrainingJob
from rm_assets.training.loop.checkpoint import Checkpoints, Position, restore_state, training_state
from rm_assets.training.loop.group import SINGLE_PROCESS, Group, join_group, leave_group
from rm_assets.training.loop.held_out import evaluate
from rm_assets.training.loop.saving import Saver
from rm_assets.training.loop.setup import prepare_run
from rm_assets.training.loop.step import Run, train_step
from rm_assets.training.loop.throughput import peak_flops
from rm_assets.training.loop.trainer import planned_steps
from rm_assets.training.model.probe import Choice, choose_packing, use_packing
from rm_assets.training.model.probe_pairs import pairs_of
from rm_assets.training.model.scoring import Scorer, bfloat16_scores
from rm_assets.training.packing.attention import ATTENTION, row_attention
from rm_assets.training.packing.batches import collate
from rm_assets.training.packing.layout import Layout, Segment
from rm_assets.training.packing.pairs import Pairs
from rm_assets.training.packing.planning import Packing, plan_rows

ROOT = Path(__file__).parents[2]
JOB = ROOT / ".gpu" / "job"
"""A prepared case of benchmarks/training.py: the built-in sample."""
NAMES = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text") if CUDA else ("qwen2", "gemma2")
WIDER = {"hidden_size": 256, "num_hidden_layers": 3, "head_dim": 64, "intermediate_size": 512} | {
    "max_position_embeddings": 1024,
    "sliding_window": 64,
    "query_pre_attn_scalar": 64,
}
"""Sizes that replace those of the tests' architectures: as wide as the heads of real models."""


def environment(group: Group) -> None:
    """Versions, and what the card itself can do: on an H100 or H200 about 790 TFLOP/s and 3 to 4.3 TB/s."""
    print("torch", torch.__version__, "cuda", torch.version.cuda, "transformers", transformers.__version__)
    print("varlen_attn", inspect.signature(varlen_attn))
    if not CUDA:
        return
    name = device_name(group)
    memory = torch.cuda.get_device_properties(group.device).total_memory
    print(f"{name}, {memory / 2**30:.0f} GiB, peak by our table: {peak_flops(name)}")
    matrix = torch.randn(8192, 8192, device=group.device, dtype=torch.bfloat16)
    source, target = (torch.empty(2**30, device=group.device, dtype=torch.uint8) for _ in range(2))
    print(f"matrix product: {2 * 8192**3 / _seconds(lambda: matrix @ matrix) / 1e12:.0f} TFLOP/s")
    print(f"copy: {2 * 2**30 / _seconds(lambda: target.copy_(source)) / 1e12:.2f} TB/s, read and written")


def _seconds(work: Callable[[], object], times: int = 20) -> float:
    for _ in range(3):
        work()
    synchronize()
    start = time.perf_counter()
    for _ in range(times):
        work()
    synchronize()
    return (time.perf_counter() - start) / times


SEGMENTS = [
    Segment(0, 300),
    Segment(300, 420, 0, 200),
    Segment(420, 421, 0, 100),
    Segment(421, 500),
    Segment(500, 501),
    Segment(501, 760, 421, 7),
]
LIMITS = {torch.bfloat16: 1.5e-2, torch.float32: 1e-4}


def kernel(group: Group) -> None:
    """Attention of a packed row and its gradients against float64: the varlen kernel, and in float32 the pieces.

    Expected are differences below 5e-3 of the norm in bfloat16. A mask that is wrong by one token gives 0.1 and more.
    """
    generator = torch.Generator().manual_seed(0)
    worst = dict.fromkeys(LIMITS, 0.0)
    for width, dtype in itertools.product((64, 128, 256) if CUDA else (64,), LIMITS):
        for key_heads, window in itertools.product((4, 2), (None, 37)):
            shapes = [(1, heads, SEGMENTS[-1].end, width) for heads in (4, key_heads, key_heads)]
            tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
            found, expected = _attended(tensors, window, group.device), _exactly_attended(tensors, window)
            errors = [_difference(*both) for both in zip(found, expected, strict=True)]
            worst[dtype] = max(worst[dtype], *errors)
            figures = "  ".join(
                f"{name} {error:.1e}" for name, error in zip(("out", "dq", "dk", "dv"), errors, strict=True)
            )
            print(f"{dtype} width {width}, 4 heads on {key_heads}, window {window}: {figures}")
    assert all(worst[dtype] < limit for dtype, limit in LIMITS.items()), worst


def _attended(tensors: list[Tensor], window: int | None, device: torch.device) -> list[Tensor]:
    leaves = [tensor.to(device).requires_grad_() for tensor in tensors]
    layout = Layout.of(SEGMENTS, device)
    output, _ = row_attention(nn.Identity(), *leaves, None, scaling=0.1, sliding_window=window, row_layout=layout)
    return [output, *torch.autograd.grad(output.float().square().sum(), leaves)]


def _exactly_attended(tensors: list[Tensor], window: int | None) -> list[Tensor]:
    """The same from a mask over the whole row."""
    seen = torch.zeros(SEGMENTS[-1].end, SEGMENTS[-1].end, dtype=torch.bool)
    for segment in SEGMENTS:
        prefix = range(segment.prefix_start, segment.prefix_start + segment.prefix)
        keys = torch.tensor([*prefix, *range(segment.start, segment.end)])
        distance = torch.arange(segment.prefix, segment.num_keys)[:, None] - torch.arange(segment.num_keys)
        seen[segment.start : segment.end, keys] = (distance >= 0) & (distance < (window or segment.num_keys))
    query, key, value = leaves = [tensor.double().requires_grad_() for tensor in tensors]
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    shares = (0.1 * query @ key.mT).masked_fill(~seen, -torch.inf).softmax(-1)
    output = (shares @ value).transpose(1, 2)
    return [output, *torch.autograd.grad(output.square().sum(), leaves)]


def _difference(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference per norm."""
    return float((found.detach().double().cpu() - expected.detach()).norm() / expected.detach().norm())


def rows(group: Group) -> None:
    """Rewards and gradients of packed rows on the GPU against each sequence alone on the CPU in float32.

    Expected are 1e-5 in float32, and 1 to 3 % in bfloat16. A token that is seen out of its place costs 10 % and more.
    """
    generator = np.random.default_rng(6)
    far, one, two = (generator.integers(1, architectures.VOCAB_SIZE, n, dtype=np.int32) for n in (300, 200, 55))
    rankings = [*architectures.edge_cases(), [np.append(far, one), np.append(far, two)]]
    failed = []
    for name in NAMES:
        model = _wider(name)
        rewards = architectures.alone(model, rankings)
        expected, exact = rewards.detach(), architectures.gradients(model, rewards)
        norm = torch.stack([gradient.norm() for gradient in exact.values()]).norm()
        model.to(group.device).set_attn_implementation(ATTENTION)
        for packing, bfloat16 in ((Packing.SHARED, False), (Packing.SHARED, True), (Packing.PACKED, True)):
            rewards = _rewards(model, pairs_of(rankings), packing, bfloat16, group.device)
            found = architectures.gradients(model, rewards)
            of_rewards = float((rewards.detach() - expected).abs().max() / expected.std())
            of_each = [(found[weight].cpu() - gradient).norm() for weight, gradient in exact.items()]
            of_gradients = float(torch.stack(of_each).norm() / norm)
            what = f"{name} {packing} {'bfloat16' if bfloat16 else 'float32'}"
            print(f"{what}: rewards {of_rewards:.1e} of their deviation, gradients {of_gradients:.1e}", flush=True)
            if not max(of_rewards, of_gradients) < (0.08 if bfloat16 else 1e-3):
                failed.append(what)
    assert not failed, failed


def _wider(name: str) -> Any:
    return architectures.build(name, **{size: WIDER[size] for size in WIDER if size in architectures.SHARED[name]})


def _rewards(model: Any, pairs: Pairs, packing: Packing, bfloat16: bool, device: torch.device) -> Tensor:
    """The reward of each sequence [S] on the CPU, with a graph."""
    found = torch.zeros(len(pairs.sequences))
    for plan in plan_rows(pairs, np.arange(len(pairs)), packing, 700)[0]:
        batch = collate(pairs, plan, device)
        rewards = bfloat16_scores(Scorer(model), batch) if bfloat16 else Scorer(model)(batch)
        numbers = [number for branches in plan.branches for number in branches.sequences.tolist()]
        found = found.index_put((torch.tensor(numbers),), rewards.cpu())
    return found


def probe(group: Group) -> None:
    """The project's own probe chooses shared rows for each architecture, by differences far below what it allows."""
    num_pairs, length = (8, 256) if CUDA else (4, 50)
    pairs = random_pairs(num_pairs, length, length, length, num_words=architectures.VOCAB_SIZE)
    padded = []
    for name in NAMES:
        model = _wider(name).to(group.device)
        start = time.perf_counter()
        choice = choose_packing(model, pairs, group.device)
        print(f"{name}: {choice.packing} in {time.perf_counter() - start:.1f} s: {choice.reason}", flush=True)
        padded += [name] * (choice.packing is not Packing.SHARED)
    assert not padded, padded


def train(group: Group) -> None:
    """Three updates in bfloat16 against the CPU in float32: plain, again, with checkpointing, compiled; and restored.

    Losses are within 0.02 and gradient norms within 10 %. Two runs are probably not equal bit for bit: the kernel's
    backward pass adds up in any order.
    """
    with cpu_as_gpu(False):
        _, expected = _trained(SINGLE_PROCESS)
    print("float32 on the CPU:", expected)
    cases = {"plain": {}, "again": {}, "checkpointing": {"gradient_checkpointing": True}, "compiled": {"compile": True}}
    seen, failed = {}, []
    for name, settings in cases.items():
        run, found = _trained(group, **settings)
        seen[name] = found
        print(f"{name}:", found, flush=True)
        losses, norms = (np.array(part) for part in zip(*found, strict=True))
        right_losses, right_norms = (np.array(part) for part in zip(*expected, strict=True))
        if np.abs(losses - right_losses).max() > 0.02 or np.abs(norms / right_norms - 1).max() > 0.1:
            failed.append(name)
        state = {of: tensor.clone() for of, tensor in training_state(run.scorer, run.optimizer).items()}
        restore_state(run.scorer, run.optimizer, state)
        restored = training_state(run.scorer, run.optimizer)
        failed += [f"{name}: {of} restored" for of in state if not torch.equal(state[of], restored[of])]
    print("two runs are equal bit for bit:", seen["plain"] == seen["again"])
    assert not failed, failed


def _trained(group: Group, **settings: Any) -> tuple[Run, list[tuple[float, float]]]:
    """A run after its three steps, and their losses and gradient norms."""
    num_pairs, batch, longest = (48, 16, 300) if CUDA else (12, 4, 100)
    pairs = random_pairs(num_pairs, 90, 60, longest)
    model = qwen3("tiny", torch.device("cpu")).to(group.device)
    use_packing(model, Packing.SHARED)
    chosen = TrainingSettings(batch_pairs=batch, micro_batch_tokens=2000, learning_rate=3e-4, **settings)
    run = prepare_run(model, pairs, Choice(Packing.SHARED, ""), chosen, group)
    figures = [_stepped(run, step) for step in range(1, 4)]
    return run, figures


def _stepped(run: Run, step: int) -> tuple[float, float]:
    epoch, of_step = [*planned_steps(run.settings, run.pairs)][step - 1]
    plans = plan_rows(run.pairs, of_step, Packing.SHARED, run.row_tokens)[0]
    figures, _ = train_step(run, step, epoch, of_step, plans)
    return round(figures.loss, 5), round(figures.grad_norm, 4)


def saving(group: Group) -> None:
    """A checkpoint is copied, on CUDA to pinned memory, and written while the next step runs; it holds what was.

    Expected is a wait of a few milliseconds for the second copy.
    """
    run, _ = _trained(group)
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = Checkpoints(Path(directory), "key", group, print)
        with Saver(checkpoints) as saver:
            for step in (1, 2):
                state = training_state(run.scorer, run.optimizer)
                before = {name: tensor.cpu().clone() for name, tensor in state.items()}
                start = time.perf_counter()
                saver.save(Position(step=step), state)
                print(f"checkpoint {step}: training waited {1e3 * (time.perf_counter() - start):.1f} ms")
                _stepped(run, 3)
        position, found = checkpoints.latest() or (Position(), {})
    assert position.step == 2
    assert all(torch.equal(found[name], tensor) for name, tensor in before.items())
    now = training_state(run.scorer, run.optimizer)
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, now[name].cpu())]
    assert len(changed) > 10, changed


def evaluation(group: Group) -> None:
    """Held-out pairs are scored in bfloat16; what that changes is what the sample in float32 says."""
    splits = {"test": random_pairs(400, 90, 60, 300) if CUDA else random_pairs(80, 50, 40, 50)}
    found = []
    for bfloat16 in (False, True):
        model = qwen3("tiny", torch.device("cpu")).to(group.device)
        use_packing(model, Packing.SHARED)
        start = time.perf_counter()
        found.append(evaluate(Scorer(model), splits, group, Packing.SHARED, 8192, bfloat16))
        print(f"{found[-1].precision}: {time.perf_counter() - start:.2f} s")
    exact, rounded = found
    difference = float(np.abs(exact.scores["test"] - rounded.scores["test"]).max())
    print(f"largest difference over all pairs: {difference:.2g}")
    assert rounded.rounding is not None
    assert 0 < 0.9 * rounded.rounding.largest_difference <= difference < 0.1


def job(_: Group) -> None:
    """A whole job by its command line: store, probe, training, golden scores and evaluation, on the built-in sample."""
    prepared = TrainingJob.model_validate_json((JOB / "job.json").read_bytes())
    files = prepared.splits["train"]
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "output"
        settings = {"batch_pairs": 16, "learning_rate": 1e-3}
        changes = {
            "splits": {"train": files[:3], "validation": files[3:4], "test": files[4:]},
            "settings": prepared.settings.model_copy(update=settings),
        }
        described = prepared.model_copy(update=changes).with_paths(lambda path: str(JOB / path), str(output))
        described = described.model_copy(update={"model": str(ROOT / "rm_assets" / "sample" / "model")})
        path = Path(directory) / "job.json"
        path.write_text(described.model_dump_json())
        command = [sys.executable, "-m", "rm_assets.training", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(*done.stdout.splitlines()[-6:], done.stderr[-1500:], sep="\n")
        assert done.returncode == 0, f"exit {done.returncode}"
        metrics = json.loads((output / "manifest.json").read_text())["metrics"]
    shown = ("device", "packing", "mfu", "test_accuracy", "pairs_per_second", "total_seconds", "scores_precision")
    print({name: metrics.get(name) for name in shown})
    assert metrics["packing"] == Packing.SHARED


STAGES = {stage.__name__: stage for stage in (environment, kernel, rows, probe, train, saving, evaluation, job)}


def main(names: list[str]) -> int:
    """Run these stages in the order given; 0 if all have passed."""
    transformers.logging.set_verbosity_error()
    failed = []
    with cpu_as_gpu():
        group = join_group()
        for name in names or STAGES:
            print(f"--- {name}: {(STAGES[name].__doc__ or '').splitlines()[0]}", flush=True)
            start = time.perf_counter()
            try:
                STAGES[name](group)
                verdict = "[PASS]"
            except Exception as error:
                traceback.print_exc()
                failed.append(name)
                verdict = f"[FAIL] {type(error).__name__}: {str(error)[:400]}:"
            print(f"{verdict} {name} in {time.perf_counter() - start:.1f} s", flush=True)
        leave_group()
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
