"""Our training step and TRL's RewardTrainer side by side: `python benchmarks/training.py --help`.

Both arms start from the same weights and see the same pairs in the same order, with the same optimizer (fused AdamW),
learning rates, clipping and number of threads. TRL's own loop runs in this process; before or after each of its steps,
in turns, ours takes the same pairs, so that whatever else the machine does falls on both. Both keep to their own way:
TRL pads the batch and computes its metrics, ours plans rows, collates and checks for what is not finite.
Peak memory is measured apart, with a process for each arm. Without `--data` it reads the built-in sample.

    python benchmarks/training.py --data hh_harmless_1800.jsonl --tokenizer gpt2-chatml --max-length 512
    python benchmarks/training.py --device cuda --shape qwen3-0.6b --pairs-per-step 32 --data ...

Needs `pip install 'rm_assets[test]'` for TRL.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig, Qwen3Config, TrainerCallback
from trl import RewardConfig, RewardTrainer

from rm_assets.data.flattening import flattened_snapshot
from rm_assets.data.model_files import find_model, find_tokenizer
from rm_assets.data.padding import pad_token_id_of, padded_snapshot
from rm_assets.data.raw import raw_snapshot
from rm_assets.data.tokenization import tokenized_snapshot
from rm_assets.data.validation import validated_snapshot
from rm_assets.settings import Settings, TrainingSettings
from rm_assets.training.flops import Work, peak_flops, step_flops
from rm_assets.training.group import Group
from rm_assets.training.job import TrainingJob
from rm_assets.training.model import build_model
from rm_assets.training.optimizer import build_optimizer, learning_rate
from rm_assets.training.planning import Packing, Rows, epoch_steps, plan_rows
from rm_assets.training.probe import choose_packing
from rm_assets.training.store import Pairs, open_store
from rm_assets.training.tally import Tally, tally_of
from rm_assets.training.trainer import Run, prepared_run, train_step

SHAPES = {
    "llama-17m": LlamaConfig(
        hidden_size=256, num_hidden_layers=6, intermediate_size=704, num_attention_heads=4, num_key_value_heads=2
    ),
    "qwen3-0.6b": Qwen3Config(
        hidden_size=1024, num_hidden_layers=28, intermediate_size=3072, num_attention_heads=16, num_key_value_heads=8
    ),
    "qwen3-1.7b": Qwen3Config(
        hidden_size=2048, num_hidden_layers=28, intermediate_size=6144, num_attention_heads=16, num_key_value_heads=8
    ),
}
PEAK_RATE = 1e-4
NUM_MEMORY_STEPS = 6


@dataclass
class Case:
    """What both arms work on: the pairs, which of them form each step, and how."""

    pairs: Pairs
    steps: list[Rows]
    job: TrainingJob
    device: torch.device
    arguments: argparse.Namespace

    def our_run(self) -> Run:
        """Our arm, ready for its first step."""
        model = build_model(self.job).to(self.device)
        choice = choose_packing(model, self.pairs, self.device)
        print(choice.reason, file=sys.stderr)
        return prepared_run(model, self.pairs, choice, self.job.settings, Group(0, 1, self.device))

    def our_step(self, run: Run, number: int) -> tuple[float, Tally]:
        """The loss and the tally of our step `number`, counted from 0."""
        rows = self.steps[number]
        plans = plan_rows(self.pairs, rows, run.choice.packing, run.settings.micro_batch_tokens)
        figures, _ = train_step(run, number + 1, 1, rows, plans[0])
        return figures.loss, tally_of(self.pairs, rows, plans)

    def trainer(self, directory: str, callback: "Turns | None" = None) -> "RecordingTrainer":
        """TRL's arm: its trainer over the pairs of the steps in their order."""
        arguments = self.arguments
        tokenizer = AutoTokenizer.from_pretrained(self.job.tokenizer, trust_remote_code=False)
        model = build_model(self.job)
        if arguments.trl_attention:
            model.set_attn_implementation(arguments.trl_attention)
        optimizer = build_optimizer(model.to(self.device), self.job.settings)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE
        warmup = self.job.settings.warmup_fraction
        num_steps = math.ceil(len(self.pairs) / arguments.pairs_per_step)  # of the whole epoch, as for our arm
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: learning_rate(done + 1, num_steps, 1.0, warmup)
        )
        config = RewardConfig(
            output_dir=directory,
            per_device_train_batch_size=arguments.pairs_per_step,
            num_train_epochs=1,
            max_length=arguments.max_length,
            pad_token=tokenizer.convert_ids_to_tokens(self.job.pad_token_id),
            gradient_checkpointing=arguments.trl_defaults,
            max_grad_norm=self.job.settings.max_grad_norm,
            bf16=self.device.type == "cuda",
            use_cpu=self.device.type == "cpu",
            train_sampling_strategy="sequential",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = RecordingTrainer(
            model=model,
            args=config,
            train_dataset=self._dataset(),
            processing_class=tokenizer,
            optimizers=(optimizer, schedule),
            callbacks=[callback] if callback else [],
        )
        trainer.remove_callback(transformers.PrinterCallback)  # standard output is for the figures
        return trainer

    def _dataset(self) -> datasets.Dataset:
        rows = np.concatenate(self.steps)
        sides = {"chosen_ids": self.pairs.chosen, "rejected_ids": self.pairs.rejected}
        columns: dict[str, Any] = {
            name: [self.pairs.sequences[number].tolist() for number in side[rows].tolist()]
            for name, side in sides.items()
        }
        if self.pairs.margin.any():
            columns["margin"] = self.pairs.margin[rows].tolist()
        return datasets.Dataset.from_dict(columns)


class RecordingTrainer(RewardTrainer):  # type: ignore[misc]
    """TRL's trainer, which also keeps the loss of every step."""

    def compute_loss(self, *arguments: Any, **keywords: Any) -> Any:
        """The trainer's loss, noted on the way."""
        found = super().compute_loss(*arguments, **keywords)
        self.losses = [*getattr(self, "losses", []), (found[0] if isinstance(found, tuple) else found).detach()]
        return found


@dataclass
class Turns(TrainerCallback):  # type: ignore[misc]
    """Lets our arm take each step of TRL's loop too: before it in even steps, after it in odd ones."""

    ours: Callable[[int], None]
    device: torch.device
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "trl": []})
    processor_seconds: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "trl": []})
    step: int = 0
    mark: tuple[float, float] = (0.0, 0.0)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The clock starts: the first batch is loaded on TRL's time, as every later one."""
        self._begin()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """In even steps ours goes first."""
        if self.step % 2 == 0:
            self._add("trl")
            self._turn()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """TRL's step is done; in odd steps ours follows."""
        self._add("trl")
        if self.step % 2 == 1:
            self._turn()
        self.step += 1

    def _begin(self) -> None:
        for figures in (*self.seconds.values(), *self.processor_seconds.values()):
            figures.append(0.0)
        self.mark = self._now()

    def _turn(self) -> None:
        self.ours(self.step)
        self._add("ours")

    def _add(self, arm: str) -> None:
        now = self._now()
        for figures, end, start in zip((self.seconds, self.processor_seconds), now, self.mark, strict=True):
            figures[arm] += [0.0] * (self.step + 1 - len(figures[arm]))
            figures[arm][self.step] += end - start
        self.mark = self._now()

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


# --- data and model ------------------------------------------------------------------------------------------


def load_case(arguments: argparse.Namespace, storage: Path) -> Case:
    """The pairs by the project's own stages, and the job of a model with random weights."""
    settings = Settings(
        annotations=arguments.data,
        tokenizer=arguments.tokenizer,
        storage=str(storage),
        max_length=arguments.max_length,
        validation_fraction=1e-6,
        test_fraction=1e-6,
        training=TrainingSettings(
            batch_pairs=arguments.pairs_per_step,
            micro_batch_tokens=arguments.row_tokens,
            learning_rate=PEAK_RATE,
            center_rewards=0.0,
            seed=arguments.seed,
            compile=arguments.compile,
        ),
    )
    tokenizer = find_tokenizer(settings)
    raw = raw_snapshot(settings, _ignore)
    validated = validated_snapshot(settings, raw, _ignore)
    flattened = flattened_snapshot(settings, tokenizer, validated, _ignore)
    tokenized = tokenized_snapshot(settings, tokenizer, validated, flattened, _ignore)
    padded = padded_snapshot(settings, validated, tokenized, _ignore)
    files = {"train": [str(path) for path in padded.paths("train")]}
    pairs = open_store(storage / "scratch", padded.name, files)["train"]
    shape = SHAPES[arguments.shape]
    shape.max_position_embeddings = 32_768
    shape.architectures = ["ForCausalLM"]
    shape.save_pretrained(storage / "shape")
    job = TrainingJob(
        key="benchmark",
        output_directory=str(storage / "output"),
        data_snapshot=padded.name,
        splits=files,
        pad_token_id=pad_token_id_of(padded),
        model=str(storage / "shape"),
        model_revision=None,
        toy=True,
        vocab_size=find_model(settings, tokenizer).vocab_size,
        tokenizer=tokenizer.directory,
        chat_template=tokenizer.chat_template,
        settings=settings.training,
    )
    every = epoch_steps(pairs, arguments.seed, 1, arguments.pairs_per_step)
    steps = [rows for rows in every if len(rows) == arguments.pairs_per_step][: arguments.steps]
    return Case(pairs, steps, job, torch.device(arguments.device), arguments)


def _ignore(_: str) -> None:
    """Progress of the stages is not shown."""


# --- measurements --------------------------------------------------------------------------------------------


def compare(case: Case) -> dict[str, Any]:
    """Times, losses and shares of both arms, step by step."""
    run = case.our_run()
    losses: list[float] = []
    tallies: list[Tally] = []

    def ours(number: int) -> None:
        loss, tally = case.our_step(run, number)
        losses.append(loss)
        tallies.append(tally)

    turns = Turns(ours, case.device)
    with tempfile.TemporaryDirectory() as directory:
        trainer = case.trainer(directory, turns)
        trainer.train()
    ratios, processor_ratios = (
        np.array(figures["trl"]) / np.array(figures["ours"]) for figures in (turns.seconds, turns.processor_seconds)
    )
    seconds = {arm: sum(values) for arm, values in turns.seconds.items()}
    processor_seconds = {arm: sum(values) for arm, values in turns.processor_seconds.items()}
    tally = sum(tallies, Tally())
    trl_losses = [float(loss) for loss in trainer.losses]
    differences = np.abs(np.array(trl_losses) - np.array(losses))
    found: dict[str, Any] = {
        "steps": len(losses),
        "num_parameters": int(trainer.model.num_parameters()),
        "packing": str(run.choice.packing),
        "pairs_per_second": {arm: tally.pairs / value for arm, value in seconds.items()},
        "ratio_of_totals": seconds["trl"] / seconds["ours"],
        "ratio_of_totals_in_processor_time": processor_seconds["trl"] / processor_seconds["ours"],
        "ratio_per_step": _spread(ratios),
        "ratio_per_step_in_processor_time": _spread(processor_ratios),
        "largest_loss_difference": float(differences.max()),
        "losses_every_tenth": {"ours": losses[::10], "trl": trl_losses[::10]},
        **tally.figures(seconds["ours"]),
    }
    if case.device.type == "cuda":
        found |= _utilisation(case, run, seconds)
    return found


def _spread(ratios: Any) -> dict[str, float]:
    low, median, high = np.percentile(ratios, [10, 50, 90])
    return {"median": median, "p10": low, "p90": high, "least": ratios.min(), "most": ratios.max()}


def _utilisation(case: Case, run: Run, seconds: dict[str, float]) -> dict[str, Any]:
    """MFU of both arms, for the same useful work: the tokens of shared rows."""
    name = torch.cuda.get_device_name(case.device)
    work = Work.of(run.scorer)
    flops = sum(
        step_flops(work, case.pairs, plan_rows(case.pairs, rows, Packing.SHARED, 1 << 30)[0]) for rows in case.steps
    )
    peak = peak_flops(name)
    return {"device": name, "mfu": {arm: flops / value / peak if peak else None for arm, value in seconds.items()}}


def memory(case: Case, arm: str) -> dict[str, float]:
    """Peak memory of one arm in MiB, beyond what the process holds before its model: its largest steps, alone."""
    sizes = [
        int(max(case.pairs.lengths("chosen")[rows].max(), case.pairs.lengths("rejected")[rows].max()))
        for rows in case.steps
    ]
    case.steps = [case.steps[number] for number in np.argsort(sizes)[::-1][:NUM_MEMORY_STEPS]]
    before = _peak_bytes(case.device, reset=True)
    if arm == "ours":
        run = case.our_run()
        for number in range(len(case.steps)):
            case.our_step(run, number)
    else:
        with tempfile.TemporaryDirectory() as directory:
            case.trainer(directory).train()
    return {arm: (_peak_bytes(case.device) - before) / 2**20}


def _peak_bytes(device: torch.device, reset: bool = False) -> int:
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def _memory_in_a_process(arm: str, storage: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--arm", arm, "--storage", storage]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(found.stderr)
    return dict(json.loads(found.stdout.splitlines()[-1]))


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="annotations; unset: the built-in sample")
    parser.add_argument("--tokenizer", help="tokenizer directory with a chat template; unset: the sample's")
    parser.add_argument("--shape", choices=SHAPES, default="llama-17m", help="of the model, whose weights are random")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a pair's longer side")
    parser.add_argument("--pairs-per-step", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100, help="at most; an epoch may have fewer")
    parser.add_argument("--row-tokens", type=int, default=8192, help="tokens of our micro-batches")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: body in bfloat16, both arms")
    parser.add_argument("--threads", type=int, help="of torch, for both arms; unset: torch's own choice")
    parser.add_argument("--trl-defaults", action="store_true", help="TRL with gradient checkpointing, as it comes")
    parser.add_argument("--trl-attention", help="TRL's attention, such as flash_attention_2; unset: stock")
    parser.add_argument("--compile", action="store_true", help="compile our layers")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arm", choices=["ours", "trl"], help="measure the peak memory of one arm, and nothing else")
    parser.add_argument("--storage", help="directory of the prepared data; unset: a temporary one")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, and print the figures as JSON."""
    arguments = parsed()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        storage = arguments.storage or temporary
        case = load_case(arguments, Path(storage))
        if not case.steps:
            raise SystemExit(f"{len(case.pairs)} pairs are no step of {arguments.pairs_per_step}")
        if arguments.arm:
            print(json.dumps(memory(case, arguments.arm)))
            return
        found = compare(case)
        if not arguments.no_memory:
            found["peak_memory_mib"] = _memory_in_a_process("ours", storage) | _memory_in_a_process("trl", storage)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
