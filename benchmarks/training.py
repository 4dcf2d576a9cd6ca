"""Our training step and TRL's RewardTrainer side by side: `python benchmarks/training.py --help`.

Both arms start from the same weights and see the same pairs in the same order, with the same optimizer (fused AdamW),
learning rates, clipping and number of threads. TRL's own loop runs in this process; before or after each of its steps,
in turns, ours takes the same pairs, so that whatever else the machine does falls on both. Both keep to their own way:
TRL pads the batch and computes its metrics, ours plans rows, collates and checks for what is not finite.
Peak memory is measured apart, with a process for each arm. Without `--data` it reads the built-in sample.

    python benchmarks/training.py --data hh_harmless_1800.jsonl --tokenizer gpt2-chatml --max-length 512

On a GPU each arm has a process of its own, since both together may not fit, one after the other. Its first steps are
not counted: libraries load and layers are compiled in them. TRL takes `--trl-pairs` pairs at a time and adds up their
gradients. Neither uses cuDNN's attention, which plans for every new shape. The data may be prepared elsewhere: the
machine with the GPU then needs torch, transformers, pyarrow and pydantic, and TRL for its arm alone.

    python benchmarks/training.py --shape qwen3-0.6b --pairs-per-step 32 --data ... --prepare CASE
    python benchmarks/training.py --device cuda --case CASE --arms ours

Needs `pip install 'rm_assets[test]'` for TRL.
"""

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig, Qwen3Config, TrainerCallback

from rm_assets.settings import Settings, TrainingSettings
from rm_assets.training.jobs.training_job import TrainingJob
from rm_assets.training.loop.group import Group, join_group, leave_group
from rm_assets.training.loop.optimizer import build_optimizer, learning_rate
from rm_assets.training.loop.setup import prepare_run
from rm_assets.training.loop.step import Run, train_step
from rm_assets.training.loop.throughput import ModelFlops, Tally, is_exact, peak_flops, step_flops, tally_step
from rm_assets.training.model.probe import choose_packing
from rm_assets.training.model.reward_model import build_model
from rm_assets.training.packing.pair_store import open_store
from rm_assets.training.packing.pairs import Pairs
from rm_assets.training.packing.planning import Packing, Rows, epoch_steps, plan_rows

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
JOB = "job.json"
ARMS = ["ours", "trl"]


@dataclass
class Case:
    """What both arms work on: the pairs, which of them form each step, and how."""

    pairs: Pairs
    steps: list[Rows]
    job: TrainingJob
    group: Group
    arguments: argparse.Namespace

    @property
    def device(self) -> torch.device:
        """Where both arms compute."""
        return self.group.device

    def our_run(self) -> Run:
        """Our arm, ready for its first step."""
        model = build_model(self.job)
        choice = choose_packing(model, self.pairs, self.device)
        print(choice.reason, file=sys.stderr)
        return prepare_run(model, self.pairs, choice, self.job.settings, self.group)

    def our_step(self, run: Run, number: int) -> tuple[float, Tally]:
        """The loss and the tally of our step `number`, counted from 0."""
        rows = self.steps[number]
        plans = plan_rows(self.pairs, rows, run.choice.packing, run.row_tokens)
        figures, _ = train_step(run, number + 1, 1, rows, plans[0])
        return figures.loss, tally_step(self.pairs, rows, plans)

    def trainer(self, directory: str, callback: TrainerCallback | None = None) -> Any:
        """TRL's arm: its trainer over the pairs of the steps in their order, which also keeps `losses`, by pass."""
        from trl import RewardConfig, RewardTrainer

        class RecordingTrainer(RewardTrainer):  # type: ignore[misc]
            def compute_loss(self, *arguments: Any, **keywords: Any) -> Any:
                found = super().compute_loss(*arguments, **keywords)
                self.losses = [*getattr(self, "losses", []), (found[0] if isinstance(found, tuple) else found).detach()]
                return found

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
            per_device_train_batch_size=self.trl_pairs,
            gradient_accumulation_steps=arguments.pairs_per_step // self.trl_pairs,
            torch_compile=arguments.trl_compile,
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

    @property
    def trl_pairs(self) -> int:
        """Pairs that TRL computes at a time."""
        return int(self.arguments.trl_pairs or self.arguments.pairs_per_step)

    def _dataset(self) -> Any:
        import datasets

        datasets.disable_progress_bars()
        rows = np.concatenate(self.steps)
        sides = {"chosen_ids": self.pairs.chosen, "rejected_ids": self.pairs.rejected}
        columns: dict[str, Any] = {
            name: [self.pairs.sequences[number].tolist() for number in side[rows].tolist()]
            for name, side in sides.items()
        }
        if self.job.settings.loss == "margin" and self.pairs.margin.any():
            columns["margin"] = self.pairs.margin[rows].tolist()
        return datasets.Dataset.from_dict(columns)


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


def prepare_case(arguments: argparse.Namespace, storage: Path) -> None:
    """Write the pairs by the project's own stages, and the job of a model with random weights, its paths relative."""
    from rm_assets.data.chat.model_files import find_tokenizer, toy_model
    from rm_assets.data.stages.flattening import publish_flattened
    from rm_assets.data.stages.padding import pad_token_id_of, publish_padded
    from rm_assets.data.stages.raw import publish_raw
    from rm_assets.data.stages.tokenization import publish_tokenized
    from rm_assets.data.stages.validation import publish_validated

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
    raw = publish_raw(settings, _ignore)
    validated = publish_validated(settings, raw, _ignore)
    flattened = publish_flattened(settings, tokenizer, validated, _ignore)
    tokenized = publish_tokenized(settings, tokenizer, validated, flattened, _ignore)
    padded = publish_padded(settings, validated, tokenized, _ignore)
    shape = SHAPES[arguments.shape]
    shape.max_position_embeddings = 32_768
    shape.architectures = ["ForCausalLM"]
    shape.save_pretrained(storage / "shape")
    shutil.copytree(tokenizer.directory, storage / "tokenizer", dirs_exist_ok=True)
    job = TrainingJob(
        key="benchmark",
        output_directory="output",
        data_snapshot=padded.name,
        splits={"train": [str(Path(path).relative_to(storage)) for path in padded.paths("train")]},
        pad_token_id=pad_token_id_of(padded),
        model="shape",
        model_revision=None,
        toy=True,
        vocab_size=toy_model(tokenizer).vocab_size,
        tokenizer="tokenizer",
        chat_template=tokenizer.chat_template,
        settings=settings.training,
    )
    (storage / JOB).write_text(job.model_dump_json())


def load_case(arguments: argparse.Namespace, storage: Path, group: Group) -> Case:
    """What `prepare_case` wrote."""
    job = TrainingJob.model_validate_json((storage / JOB).read_bytes()).with_paths(
        lambda path: str(storage / path), str(storage / "output")
    )
    if arguments.compile is not None:
        job = job.model_copy(update={"settings": job.settings.model_copy(update={"compile": arguments.compile})})
    pairs = open_store(storage / "scratch", job.data_snapshot, job.splits)["train"]
    arguments.pairs_per_step = job.settings.batch_pairs
    every = epoch_steps(pairs, job.settings.seed, 1, job.settings.batch_pairs)
    steps = [rows for rows in every if len(rows) == job.settings.batch_pairs][: arguments.steps]
    return Case(pairs, steps, job, group, arguments)


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
    return found


def _spread(ratios: Any) -> dict[str, float]:
    low, median, high = np.percentile(ratios, [10, 50, 90])
    return {"median": median, "p10": low, "p90": high, "least": ratios.min(), "most": ratios.max()}


class Clock(TrainerCallback):  # type: ignore[misc]
    """Keeps the seconds of each of TRL's steps, its loading of data among them."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.marks: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The first step begins."""
        self.marks.append(self.now())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step is done."""
        self.marks.append(self.now())


def measured_arm(case: Case, arm: str) -> dict[str, Any]:
    """The seconds and losses of every step of one arm, and its peak memory, in a process of its own."""

    def now() -> float:
        if case.device.type == "cuda":
            torch.cuda.synchronize(case.device)
        return time.perf_counter()

    _peak_bytes(case.device, reset=True)
    if arm == "ours":
        run = case.our_run()
        _peak_bytes(case.device, reset=True)  # the probe is no step
        marks, losses = [now()], []
        for number in range(len(case.steps)):
            losses.append(case.our_step(run, number)[0])
            marks.append(now())
        further = {"packing": str(run.choice.packing), **_work(case, run)}
    else:
        leave_group()  # TRL would make a group of its own
        clock = Clock(now)
        with tempfile.TemporaryDirectory() as directory:
            trainer = case.trainer(directory, clock)
            trainer.train()
        passes = np.array([float(loss) for loss in trainer.losses]).reshape(len(case.steps), -1)
        marks, losses, further = clock.marks, passes.mean(axis=1).tolist(), {}
    return {
        "seconds": np.diff(marks).tolist(),
        "losses": losses,
        "peak_memory_mib": _peak_bytes(case.device) / 2**20,
        **further,
    }


def _work(case: Case, run: Run) -> dict[str, Any]:
    """The useful operations of every step: those of shared rows, whichever arm computes them, where they are known."""
    if not is_exact(run.scorer, case.pairs):
        return {"flops": None}
    work = ModelFlops.of(run.scorer)
    plans = [plan_rows(case.pairs, rows, Packing.SHARED, 1 << 30)[0] for rows in case.steps]
    return {"flops": [step_flops(work, case.pairs, of_step) for of_step in plans]}


def apart(case: Case, storage: str) -> dict[str, Any]:
    """Times, losses and memory of the arms, a process each, without their first steps."""
    arms = {arm: _in_a_process(arm, storage) for arm in case.arguments.arms}
    counted = slice(case.arguments.warm_up, None)
    seconds = {arm: float(sum(found["seconds"][counted])) for arm, found in arms.items()}
    num_pairs = sum(map(len, case.steps[counted]))
    name = torch.cuda.get_device_name(case.device) if case.device.type == "cuda" else "cpu"
    found: dict[str, Any] = {
        "device": name,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "steps": len(case.steps[counted]),
        "pairs_per_second": {arm: num_pairs / value for arm, value in seconds.items()},
        "milliseconds_per_step": {arm: 1e3 * float(np.median(each["seconds"][counted])) for arm, each in arms.items()},
        "seconds_of_first_steps": {arm: sum(each["seconds"][: counted.start]) for arm, each in arms.items()},
        "losses_every_tenth": {arm: each["losses"][::10] for arm, each in arms.items()},
        "peak_memory_mib": {arm: each["peak_memory_mib"] for arm, each in arms.items()},
    }
    if len(arms) == 2:
        differences = np.abs(np.array(arms["ours"]["losses"]) - np.array(arms["trl"]["losses"]))
        found |= {
            "ratio_of_totals": seconds["trl"] / seconds["ours"],
            "largest_loss_difference": float(differences.max()),
        }
    if "ours" in arms:
        peak, flops = peak_flops(name), arms["ours"]["flops"]
        found["packing"] = arms["ours"]["packing"]
        found["mfu"] = peak and flops and {arm: sum(flops[counted]) / value / peak for arm, value in seconds.items()}
    return found


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


def _in_a_process(arm: str, storage: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--arm", arm, "--case", storage]
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
    parser.add_argument("--trl-pairs", type=int, help="pairs that TRL computes at a time; unset: those of a step")
    parser.add_argument("--trl-compile", action="store_true", help="TRL with torch_compile")
    compiled = argparse.BooleanOptionalAction
    parser.add_argument("--compile", action=compiled, help="compile our layers; unset: as the project does by itself")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--apart", action="store_true", help="a process for each arm, as on a GPU")
    parser.add_argument("--warm-up", type=int, default=5, help="first steps that are not counted, where arms are apart")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="which ones, where they are apart")
    parser.add_argument("--prepare", type=Path, help="write what is measured into this directory, and measure nothing")
    parser.add_argument("--case", type=Path, help="measure what --prepare wrote, with its settings of training")
    parser.add_argument("--arm", choices=ARMS, help="measure one arm alone")
    given = parser.parse_args(arguments)
    given.apart |= given.device == "cuda"
    if given.trl_pairs and given.pairs_per_step % given.trl_pairs:
        parser.error(f"--trl-pairs {given.trl_pairs} does not divide the {given.pairs_per_step} pairs of a step")
    return given


def main() -> None:
    """Measure, and print the figures as JSON."""
    arguments = parsed()
    transformers.logging.set_verbosity_error()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.prepare:
        arguments.prepare.mkdir(parents=True, exist_ok=True)
        prepare_case(arguments, arguments.prepare.absolute())
        return
    group = join_group()
    if group.device.type != arguments.device:
        raise SystemExit(f"device is {arguments.device!r}, but torch finds {group.device.type!r}")
    with tempfile.TemporaryDirectory() as temporary:
        storage = arguments.case or Path(temporary)
        if not arguments.case:
            prepare_case(arguments, storage)
        print(json.dumps(measured(load_case(arguments, storage, group), storage), indent=None if arguments.arm else 2))
    leave_group()


def measured(case: Case, storage: Path) -> dict[str, Any]:
    """All figures that the command line asks for."""
    arguments = case.arguments
    if len(case.steps) <= arguments.warm_up * arguments.apart:
        raise SystemExit(f"{len(case.pairs)} pairs are {len(case.steps)} steps of {arguments.pairs_per_step}: too few")
    if arguments.arm:
        return measured_arm(case, arguments.arm) if arguments.apart else memory(case, arguments.arm)
    if arguments.apart:
        return apart(case, str(storage))
    found = compare(case)
    if not arguments.no_memory:
        found["peak_memory_mib"] = {name: mib for arm in ARMS for name, mib in _in_a_process(arm, str(storage)).items()}
    return found


if __name__ == "__main__":
    main()
