"""Checkpoints: what an interrupted training resumes from. Each is a directory of verified files, or it is not used.

`<output>/checkpoints/step-<step>-<hash>/` has a safetensors file of each process, the curves so far, and
`manifest.json` with the hash of each file; the directory's name has the hash of the manifest. All files are written and
synced in `.unfinished`, and the rename to the final name publishes them. Nothing here is ever unpickled.
"""

import contextlib
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rm_assets.data.storage.fingerprint import file_sha256
from rm_assets.data.storage.writing import fsync_directory
from rm_assets.training.jobs.result import CHECKPOINTS, MANIFEST, METRICS, remove_checkpoint, synced_sha256
from rm_assets.training.loop.group import Group
from rm_assets.training.loop.sharding import free_gathered_weights, local

KEPT = 2
_UNFINISHED = ".unfinished"
_RANDOM = "random"


@dataclass(frozen=True)
class Position:
    """How far a training is after `step` updates: pairs seen, the sum of the last epoch's losses, seconds, tokens.

    `is_validated`: the curves have the validation that follows this step, if one does. The order of the pairs is a
    function of (seed, epoch, step), so nothing else is needed.
    """

    step: int = 0
    num_pairs: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    tally: dict[str, float] = field(default_factory=dict)  # of rm_assets.training.loop.throughput.Tally
    is_validated: bool = False


# --- tensors of a process ------------------------------------------------------------------------------------


def random_states() -> dict[str, Tensor]:
    """The states of torch's generators, by name."""
    states = {f"{_RANDOM}.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"{_RANDOM}.cuda"] = torch.cuda.get_rng_state()
    return states


def training_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, states: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """This process's part of the weights and of AdamW's moments, and its random states (unless given), by name.

    These are the live tensors, which the next step changes. Frozen weights are left out: the base model has them.
    """
    free_gathered_weights(model)
    tensors = {**(states or random_states())}
    for name, weight in _trained_weights(model):
        tensors[f"weight.{name}"] = local(weight.detach())
        for what, value in optimizer.state.get(weight, {}).items():
            tensors[f"{what}.{name}"] = local(value)
    return tensors


@torch.no_grad()
def restore_state(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors of `training_state` back into an equal model and optimizer."""
    torch.set_rng_state(tensors[f"{_RANDOM}.cpu"])
    if torch.cuda.is_available() and f"{_RANDOM}.cuda" in tensors:  # it may have begun on a CPU
        torch.cuda.set_rng_state(tensors[f"{_RANDOM}.cuda"])
    for name, weight in _trained_weights(model):
        local(weight).copy_(tensors[f"weight.{name}"].reshape(local(weight).shape))  # without rows it may be flat
        moments = {what: torch.zeros_like(weight) for what in ("exp_avg", "exp_avg_sq")}
        for what, moment in moments.items():
            local(moment).copy_(tensors[f"{what}.{name}"].reshape(local(moment).shape))
        optimizer.state[weight] = {"step": tensors[f"step.{name}"].to(weight.device), **moments}


def _trained_weights(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


# --- files ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """What a checkpoint holds besides tensors: its manifest without the files, and the curves so far."""

    content: Mapping[str, Any]
    curves: bytes | None


@dataclass
class Checkpoints:
    """The checkpoints of one job, as one process of its group sees them. `log` shows a line to the user.

    `rounding` has the settings on which the rounding of a step depends.
    """

    output: Path
    key: str
    group: Group
    log: Callable[[str], object]
    rounding: Mapping[str, Any] = field(default_factory=dict)
    valid: list[Path] = field(default_factory=list)  # verified or written by this run, oldest first

    @property
    def directory(self) -> Path:
        return self.output / CHECKPOINTS

    def header(self, position: Position) -> Header:
        """The header for a checkpoint at `position`, with the curves as they are now."""
        content = {
            "key": self.key,
            "position": asdict(position),
            "num_processes": self.group.size,
            "environment": {**environment(self.group), **self.rounding},
        }
        curves = self.output / METRICS
        return Header(content, curves.read_bytes() if curves.exists() else None)

    def write(self, header: Header, tensors: Mapping[str, Tensor], group: Group | None = None) -> None:
        """Write the tensors of every process as one checkpoint; the two latest are kept.

        All processes call this; a thread passes its own `group`. A kill at any moment leaves the older checkpoints
        intact.
        """
        group, unfinished = group or self.group, self.directory / _UNFINISHED
        if group.is_first:
            remove_checkpoint(unfinished)
            unfinished.mkdir(parents=True, exist_ok=True)
        group.wait()
        own = unfinished / _file_of(group.rank)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, own)
        hashes = _gather_hashes(synced_sha256(own), group)
        if group.is_first:
            self._publish(unfinished, header, hashes)
        group.wait()

    def _publish(self, unfinished: Path, header: Header, hashes: list[str]) -> None:
        files = {_file_of(rank): sha256 for rank, sha256 in enumerate(hashes)}
        if header.curves is not None:
            (unfinished / METRICS).write_bytes(header.curves)
            files[METRICS] = synced_sha256(unfinished / METRICS)
        content = {**header.content, "files": files}
        (unfinished / MANIFEST).write_text(json.dumps(content, indent=1, allow_nan=False))
        name = f"step-{header.content['position']['step']:08}-{synced_sha256(unfinished / MANIFEST)[:16]}"
        fsync_directory(unfinished)
        _move(unfinished, self.directory / name)
        fsync_directory(self.directory)
        self.valid = [*self.valid, self.directory / name][-KEPT:]
        for other in self.directory.iterdir():
            if other not in self.valid and other.is_dir():
                remove_checkpoint(other)

    def latest(self) -> tuple[Position, dict[str, Tensor]] | None:
        """The latest intact checkpoint, its curves copied back to the output directory; None if there is none.

        All processes of the group call this and get the same checkpoint. A damaged one is reported, and an older one
        is used. If another number of processes wrote it, its tensors are divided again.
        """
        self.group.wait()
        for directory in sorted(self.directory.glob("step-*"), reverse=True):
            manifest, problem = self._verify(directory)
            if self._sum(int(bool(problem))) == 0:
                return self._load(directory, manifest)
            if problem or self.group.is_first:
                problem = problem or "another process reports why"
                self.log(f"checkpoint {directory.name} is damaged and not used: {problem}")
        return None

    def _load(self, directory: Path, manifest: dict[str, Any]) -> tuple[Position, dict[str, Tensor]]:
        found = {**manifest["environment"], "processes": manifest["num_processes"]}
        here = {**environment(self.group), **self.rounding, "processes": self.group.size}
        changes = [
            f"{name} {found[name]!r} -> {here[name]!r}" for name in here if found.get(name, here[name]) != here[name]
        ]
        if changes:
            self.log(
                f"this training began under other conditions ({', '.join(changes)}): it continues from its checkpoint, "
                "and the result is equal up to rounding, not bit for bit"
            )
        if self.group.is_first and METRICS in manifest["files"]:
            shutil.copyfile(directory / METRICS, self.output / METRICS)
        self.valid = [directory]
        tensors = _tensors(directory, manifest["num_processes"], self.group)
        return Position(**manifest["position"]), tensors

    def _verify(self, directory: Path) -> tuple[dict[str, Any], str]:
        """The manifest, and what is wrong with it or with the files that this process checks; "" if nothing is."""
        try:
            raw = (directory / MANIFEST).read_bytes()
            if hashlib.sha256(raw).hexdigest()[:16] != directory.name.rpartition("-")[2]:
                return {}, f"its {MANIFEST} does not have the hash in its name"
            manifest = json.loads(raw)
            if manifest["key"] != self.key:
                return {}, f"it belongs to the job {manifest['key']!r}"
            for name in self._own_files(manifest):
                if file_sha256(directory / name) != manifest["files"][name]:
                    return {}, f"the sha256 of {name} has changed since it was written"
        except (OSError, ValueError, KeyError) as error:
            return {}, f"{type(error).__name__}: {error}"
        return manifest, ""

    def _own_files(self, manifest: dict[str, Any]) -> list[str]:
        """The files that this process checks: its own, and in the first process all that belong to no other one."""
        checked_by = {_file_of(number): number % self.group.size for number in range(manifest["num_processes"])}
        return [name for name in manifest["files"] if checked_by.get(name, 0) == self.group.rank]

    def _sum(self, number: int) -> int:
        total = torch.tensor(number, device=self.group.device)
        self.group.all_reduce(total)
        return int(total)


def _tensors(directory: Path, num_written: int, group: Group) -> dict[str, Tensor]:
    """This process's part of the tensors that `num_written` processes wrote, each of them some rows (`torch.chunk`)."""
    if num_written == group.size:
        return load_file(directory / _file_of(group.rank))
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(safe_open(directory / _file_of(number), framework="pt"))
            for number in range(num_written)
        ]
        own = files[group.rank % num_written]
        return {
            name: own.get_tensor(name)
            if name.startswith(_RANDOM) or not own.get_slice(name).get_shape()
            else _rows([file.get_slice(name) for file in files], group)
            for name in own.keys()  # noqa: SIM118  # not a mapping
        }


def _rows(parts: list[Any], group: Group) -> Tensor:
    """The rows of this process of a tensor whose rows are in these parts, in order."""
    ends = list(itertools.accumulate(part.get_shape()[0] for part in parts))
    size = -(-ends[-1] // group.size)
    first, last = min(group.rank * size, ends[-1]), min((group.rank + 1) * size, ends[-1])
    found = [
        part[max(0, first - end + rows) : min(rows, last - end + rows)]
        for part, end, rows in zip(parts, ends, (part.get_shape()[0] for part in parts), strict=True)
        if first < end and last > end - rows
    ]
    return torch.cat(found) if found else torch.empty(0, *parts[0].get_shape()[1:])


def _gather_hashes(sha256: str, group: Group) -> list[str]:
    """The hash of each process's file, in every process."""
    table = torch.zeros(group.size, 32, dtype=torch.int64)
    table[group.rank] = torch.tensor(list(bytes.fromhex(sha256)))
    table = table.to(group.device)
    group.all_reduce(table)
    return [bytes(row).hex() for row in table.tolist()]


def environment(group: Group) -> dict[str, str | int]:
    """What the rounding of a training depends on besides its job."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {**versions, "device": group.device.type, "threads": torch.get_num_threads()}


def _move(unfinished: Path, directory: Path) -> None:
    """Rename a checkpoint; file by file if one of that name exists, which may be damaged."""
    if not directory.exists():
        unfinished.rename(directory)
        return
    for path in unfinished.iterdir():
        path.replace(directory / path.name)
    unfinished.rmdir()


def _file_of(rank: int) -> str:
    return f"process-{rank}.safetensors"
