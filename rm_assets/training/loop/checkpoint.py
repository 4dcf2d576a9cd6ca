"""Checkpoints: what a stopped training goes on from, each a directory of verified files, or it does not count.

`<output>/checkpoints/step-<step>-<hash>/` has a safetensors file of each process, the curves so far, and
`manifest.json` with the hash of each of these; the directory's name has the hash of the manifest. All of it is written
and synced beside, and the rename to that name makes it exist. Nothing here is ever unpickled.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from rm_assets.training.jobs.result import (
    CHECKPOINTS,
    MANIFEST,
    METRICS,
    remove_checkpoint,
    sync_directory,
    synced_sha256,
)
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.loop.group import Group

KEPT = 2
_UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Position:
    """Where a training stands after `step` updates: pairs seen, the sum of the last epoch's losses, seconds, tokens.

    The order of the pairs is a function of (seed, epoch, step), so that this is all there is to it.
    """

    step: int = 0
    num_pairs: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    tally: dict[str, float] = field(default_factory=dict)  # of rm_assets.training.loop.throughput.Tally


@dataclass(frozen=True)
class Moment:
    """What a checkpoint holds besides tensors, taken when these are: its manifest without files, the curves so far."""

    content: Mapping[str, Any]
    curves: bytes | None


@dataclass
class Checkpoints:
    """The checkpoints of one job, as one process of its group sees them. `say` tells people."""

    output: Path
    key: str
    group: Group
    say: Callable[[str], object]
    good: list[Path] = field(default_factory=list)  # verified or written by this run, oldest first

    @property
    def directory(self) -> Path:
        """Where they lie."""
        return self.output / CHECKPOINTS

    def moment(self, position: Position) -> Moment:
        """What `write` needs to know of now."""
        content = {
            "key": self.key,
            "position": asdict(position),
            "num_processes": self.group.size,
            "environment": environment(self.group),
        }
        curves = self.output / METRICS
        return Moment(content, curves.read_bytes() if curves.exists() else None)

    def write(self, moment: Moment, tensors: Mapping[str, Tensor], group: Group | None = None) -> None:
        """Write the tensors of every process as one checkpoint; the two newest are kept.

        All processes call this, with the group aside where a thread does. A kill at any moment leaves the older
        checkpoints as they were.
        """
        group, beside = group or self.group, self.directory / _UNFINISHED
        if group.is_first:
            remove_checkpoint(beside)
            beside.mkdir(parents=True, exist_ok=True)
        group.wait()
        own = beside / _file_of(group.rank)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, own)
        hashes = _gathered(synced_sha256(own), group)
        if group.is_first:
            self._finish(beside, moment, hashes)
        group.wait()

    def _finish(self, beside: Path, moment: Moment, hashes: list[str]) -> None:
        files = {_file_of(rank): sha256 for rank, sha256 in enumerate(hashes)}
        if moment.curves is not None:
            (beside / METRICS).write_bytes(moment.curves)
            files[METRICS] = synced_sha256(beside / METRICS)
        content = {**moment.content, "files": files}
        (beside / MANIFEST).write_text(json.dumps(content, indent=1, allow_nan=False))
        name = f"step-{moment.content['position']['step']:08}-{synced_sha256(beside / MANIFEST)[:16]}"
        sync_directory(beside)
        _move(beside, self.directory / name)
        sync_directory(self.directory)
        self.good = [*self.good, self.directory / name][-KEPT:]
        for other in self.directory.iterdir():
            if other not in self.good and other.is_dir():
                remove_checkpoint(other)

    def newest(self) -> tuple[Position, dict[str, Tensor]] | None:
        """The newest checkpoint that is whole, its curves put back in their place; None where there is none.

        All processes of the group call this, and take the same one. One that is damaged is said to be, and an older
        one is taken. Raises TrainingError where another number of processes wrote it.
        """
        self.group.wait()
        for directory in sorted(self.directory.glob("step-*"), reverse=True):
            manifest, problem = self._checked(directory)
            if self._total(int(bool(problem))) == 0:
                return self._taken(directory, manifest)
            if problem or self.group.is_first:
                self.say(
                    f"checkpoint {directory.name} is damaged and not used: {problem or 'another process says how'}"
                )
        return None

    def _taken(self, directory: Path, manifest: dict[str, Any]) -> tuple[Position, dict[str, Tensor]]:
        if manifest["num_processes"] != self.group.size:
            raise TrainingError(
                f"checkpoint {directory.name!r} was written by {manifest['num_processes']} processes, these are "
                f"{self.group.size}: train with as many, or remove {str(self.directory)!r} to begin anew"
            )
        found, here = manifest["environment"], environment(self.group)
        if found != here:
            changed = ", ".join(
                f"{name} {found.get(name)!r} -> {here[name]!r}" for name in here if found.get(name) != here[name]
            )
            self.say(f"this training began elsewhere ({changed}): it goes on equal up to rounding, not bit for bit")
        if self.group.is_first and METRICS in manifest["files"]:
            shutil.copyfile(directory / METRICS, self.output / METRICS)
        self.good = [directory]
        return Position(**manifest["position"]), load_file(directory / _file_of(self.group.rank))

    def _checked(self, directory: Path) -> tuple[dict[str, Any], str]:
        """The manifest, and what is wrong with it or with the files that this process answers for; "" for nothing."""
        try:
            raw = (directory / MANIFEST).read_bytes()
            if hashlib.sha256(raw).hexdigest()[:16] != directory.name.rpartition("-")[2]:
                return {}, f"its {MANIFEST} has not the hash that its name has"
            manifest = json.loads(raw)
            if manifest["key"] != self.key:
                return {}, f"it is of the job {manifest['key']!r}"
            for name in self._own_files(manifest):
                if _sha256(directory / name) != manifest["files"][name]:
                    return {}, f"{name} has another sha256 than when it was written"
        except (OSError, ValueError, KeyError) as error:
            return {}, f"{type(error).__name__}: {error}"
        return manifest, ""

    def _own_files(self, manifest: dict[str, Any]) -> list[str]:
        """The first process answers for all files that belong to no other one of this group."""
        others = {_file_of(rank) for rank in range(self.group.size) if rank != self.group.rank}
        if self.group.is_first:
            return [name for name in manifest["files"] if name not in others]
        return [name for name in manifest["files"] if name == _file_of(self.group.rank)]

    def _total(self, number: int) -> int:
        total = torch.tensor(number, device=self.group.device)
        self.group.add_up(total)
        return int(total)


def _gathered(sha256: str, group: Group) -> list[str]:
    """The hash of each process's file, in every process."""
    table = torch.zeros(group.size, 32, dtype=torch.int64)
    table[group.rank] = torch.tensor(list(bytes.fromhex(sha256)))
    table = table.to(group.device)
    group.add_up(table)
    return [bytes(row).hex() for row in table.tolist()]


def environment(group: Group) -> dict[str, str | int]:
    """What a training's rounding depends on besides its job."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {**versions, "device": group.device.type, "threads": torch.get_num_threads()}


def _move(beside: Path, directory: Path) -> None:
    """Give a checkpoint its name; where one is that has it, which may be damaged, file by file."""
    if not directory.exists():
        beside.rename(directory)
        return
    for path in beside.iterdir():
        path.replace(directory / path.name)
    beside.rmdir()


def _file_of(rank: int) -> str:
    return f"process-{rank}.safetensors"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
