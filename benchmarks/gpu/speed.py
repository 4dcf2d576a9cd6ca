"""How fast is a training step? `python benchmarks/gpu/speed.py SHAPE CASE [CASE ...]`; shapes are those of fixtures.py.

A case is words joined by +:
  eager | compile   layers as they are, or compiled
  ckpt              with gradient checkpointing
  16k | 32k         tokens of a micro-batch
  half              master weights and their moments in bfloat16 too: what that would give, not a way to train
  profile           also the kernels of one step
Every case ends with a line RESULT {json}, or FAILED. The exit code is 0 if none has failed.
"""

import argparse
import gc
import json
import re
import time
import traceback
from typing import Any

import numpy as np
import torch
import transformers
from fixtures import CUDA, SHAPES, cpu_as_gpu, device_name, qwen3, random_pairs, synchronize
from torch.profiler import ProfilerActivity, profile

from rm_assets.settings import TrainingSettings
from rm_assets.training.loop.group import Group, join_group, leave_group
from rm_assets.training.loop.setup import prepare_run
from rm_assets.training.loop.step import Run, train_step
from rm_assets.training.loop.throughput import Tally, peak_flops, step_flops, tally_step
from rm_assets.training.loop.trainer import planned_steps
from rm_assets.training.model.probe import Choice, use_packing
from rm_assets.training.packing.batches import collate
from rm_assets.training.packing.planning import MicroPlan, Packing, Rows, plan_rows

KINDS = {
    "fused": ("triton_",),
    "attention": ("flash", "fmha", "attention"),
    "matmul": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk", "sm90_"),
    "optimizer": ("adam", "multi_tensor", "foreach", "lpnorm"),
    "index": ("index", "gather", "scatter", "embedding"),
    "copy": ("memcpy", "memset"),
    "nccl": ("nccl",),
}
"""Kinds of kernels by a part of their names, the first that fits; all others are elementwise."""
ANNOTATIONS = ("##", "Torch-Compiled", "CompiledF", "Optimizer", "FSDP", "ProfilerStep", "aten::", "autograd::")
"""Beginnings of what the profiler draws on the card's line besides kernels."""
NUM_KERNELS_SHOWN = 20


def measured(arguments: argparse.Namespace, case: str, group: Group) -> dict[str, Any]:
    """The figures of one case, by the median of the steps after the warm-up."""
    run = prepared(arguments, set(case.split("+")), group)
    steps = [rows for _, rows in planned_steps(run.settings, run.pairs)]
    plans = [plan_rows(run.pairs, rows, Packing.SHARED, run.row_tokens)[0] for rows in steps]
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    seconds = [timed_step(run, number, rows) for number, rows in enumerate(steps, start=1)]
    counted = range(arguments.warm_up, len(steps))
    counted_seconds = seconds[arguments.warm_up :]
    total = len(counted) * float(np.median(counted_seconds))  # the median: a step of new lengths may compile again
    micro_batches = sum(len(plans[number]) for number in counted)
    tally = sum((tally_of_step(run, steps[number], plans[number]) for number in counted), Tally())
    result = {
        "shape": arguments.shape,
        "case": case,
        "device": device_name(group),
        "torch": torch.__version__,
        "row_tokens": run.row_tokens,
        "steps": len(counted),
        "milliseconds_per_step": 1e3 * total / len(counted),
        "micro_batches_per_step": micro_batches / len(counted),
        "milliseconds_per_micro_batch": 1e3 * total / micro_batches,
        "milliseconds_of_collating": 1e3 * collating_seconds(run, plans[-1]),
        "seconds_of_first_step": seconds[0],
        "seconds_of_slowest_counted_step": max(counted_seconds),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if CUDA else None,
        **tally.figures(total, peak_flops(device_name(group))),
    }
    if "profile" in case.split("+"):
        print_profile(run, steps[-1])
    return result


def prepared(arguments: argparse.Namespace, words: set[str], group: Group) -> Run:
    """The run of a case, as a job prepares it; compiled code is read from TORCHINDUCTOR_CACHE_DIR and kept there."""
    torch._dynamo.reset()
    sizes = [1024 * int(word[:-1]) for word in words if re.fullmatch(r"\d+k", word)]
    settings = TrainingSettings(
        batch_pairs=arguments.pairs,
        micro_batch_tokens=sizes[0] if sizes else arguments.tokens,
        learning_rate=1e-5,
        compile="compile" in words,
        gradient_checkpointing="ckpt" in words,
    )
    model = qwen3(arguments.shape, group.device, arguments.layers)
    if "half" in words:
        model.to(torch.bfloat16).score.float()
    use_packing(model, Packing.SHARED)
    pairs = random_pairs(arguments.pairs * (arguments.steps + arguments.warm_up), 180, 320, 512)
    run = prepare_run(model, pairs, Choice(Packing.SHARED, ""), settings, group)
    torch.compiler.config.force_disable_caches = False  # a job trusts no cache of another process; this one is ours
    return run


def timed_step(run: Run, number: int, rows: Rows) -> float:
    """Seconds of a step, numbered from 1, from its pairs to its update."""
    synchronize()
    start = time.perf_counter()
    plans = plan_rows(run.pairs, rows, Packing.SHARED, run.row_tokens)[0]
    figures, _ = train_step(run, number, 1, rows, plans)
    synchronize()
    seconds = time.perf_counter() - start
    print(f"step {number}: {seconds:.2f} s, loss {figures.loss:.4f}", flush=True)
    return seconds


def tally_of_step(run: Run, rows: Rows, plans: list[MicroPlan]) -> Tally:
    """What a step computes, with its floating-point operations where the card's peak is known."""
    return tally_step(run.pairs, rows, [plans], step_flops(run.flops, run.pairs, plans) if run.flops else 0.0)


def collating_seconds(run: Run, plans: list[MicroPlan]) -> float:
    """Seconds for a micro-batch's tensors, which a thread makes while the micro-batch before is computed."""
    start = time.perf_counter()
    for plan in plans:
        collate(run.pairs, plan, run.group.device)
    synchronize()
    return (time.perf_counter() - start) / len(plans)


def print_profile(run: Run, rows: Rows) -> None:
    """The largest kernels of one step, and how long the card was busy."""
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]) as found:
        wall = 1e3 * timed_step(run, run.num_steps, rows)
    kernels: dict[str, list[float]] = {}
    for event in found.events():
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(ANNOTATIONS)
        if is_kernel and not getattr(event, "is_user_annotation", False):
            kernels.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e3)
    kinds: dict[str, float] = {}
    for name, times in kernels.items():
        kind = next((k for k, parts in KINDS.items() if any(part in name.lower() for part in parts)), "elementwise")
        kinds[kind] = kinds.get(kind, 0.0) + sum(times)
    largest = sorted(kinds.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{kind} {milliseconds:.1f}" for kind, milliseconds in largest)
    count = sum(map(len, kernels.values()))
    print(f"PROFILE wall {wall:.1f} ms, busy {sum(kinds.values()):.1f} ms in {count} kernels: {shown}")
    for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:NUM_KERNELS_SHOWN]:
        print(f"   {sum(times):8.2f} ms x{len(times):5d} {name[:110]}")


def main(given: list[str] | None = None) -> int:
    """Measure every case; 0 if none has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--pairs", type=int, default=64 if CUDA else 4, help="of a step")
    parser.add_argument("--tokens", type=int, default=8192 if CUDA else 1024, help="of a micro-batch, at most")
    parser.add_argument("--steps", type=int, default=3, help="that are counted")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--layers", type=int, default=0, help="other than the shape's")
    arguments = parser.parse_args(given)
    transformers.logging.set_verbosity_error()
    failed = 0
    with cpu_as_gpu():
        group = join_group()
        for case in arguments.cases:
            try:
                found = measured(arguments, case, group)
                print("RESULT", json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}))
            except Exception as error:
                traceback.print_exc()
                print("FAILED", case, type(error).__name__, str(error)[:500], flush=True)
                failed += 1
            gc.collect()  # spread layers and their hooks hold each other
            if CUDA:
                torch.cuda.empty_cache()
        leave_group()
    return min(failed, 1)


if __name__ == "__main__":
    raise SystemExit(main())
