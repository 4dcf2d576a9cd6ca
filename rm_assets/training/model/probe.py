"""Which packing a model computes exactly, tested before training.

Some architectures are silently wrong in packed rows: recurrent and linear-attention layers run across sequences, others
derive positions from a token's index in the row, or look ahead. So nothing is assumed of an architecture: rewards and
gradients of a few sequences in a row are compared with those of each sequence alone.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rm_assets.training.devices import is_device_failure, trains_in_bfloat16
from rm_assets.training.model.adapter import base_of
from rm_assets.training.model.layers import shallow_copy
from rm_assets.training.model.probe_pairs import probe_pairs
from rm_assets.training.model.scoring import Scorer, bfloat16_scores
from rm_assets.training.packing.attention import ATTENTION, UnsupportedModelError
from rm_assets.training.packing.batches import collate
from rm_assets.training.packing.pairs import Pairs
from rm_assets.training.packing.planning import Branches, MicroPlan, Packing, plan_rows


@dataclass(frozen=True)
class Tolerance:
    """Allowed differences: of a reward, relative to the standard deviation and to the largest of all rewards; of a
    weight's gradient, relative to its norm and to the norm of all gradients."""

    reward_per_spread: float
    reward_per_largest: float
    gradient_per_norm: float
    gradient_per_all: float


FLOAT32 = Tolerance(1e-4, 1e-5, 1e-3, 1e-5)
"""Of rows from each sequence alone, in float32."""
BFLOAT16 = Tolerance(5e-2, 1e-2, 5e-2, 1e-2)
"""In bfloat16, which by itself costs 1 to 2 % of a gradient: of a row for each sequence from each sequence alone in
float32, by stock attention, and of rows from a row for each sequence, by the same kernels. Attending to one token of
another sequence costs more than 10 %, to a prefix at the wrong position more than 50 %."""


@dataclass(frozen=True)
class Choice:
    """The packing in use, and a sentence with the reason, for the log, the manifest and the UI."""

    packing: Packing
    reason: str


def choose_packing(model: Any, pairs: Pairs, device: torch.device) -> Choice:
    """The fastest packing that gives the rewards and gradients of each sequence alone; sets the model to it.

    Computes on `device` in float32, and on a GPU in bfloat16 too, in the model's current mode, on pairs of the data and
    synthetic ones. It uses a copy with a few layers: the gradients of all layers, or the model before it is sharded,
    may not fit into memory. Does not change the random state.
    """
    classifier = base_of(model)
    probe = _Probe(
        model=shallow_copy(classifier).to(device),
        stock=classifier.config._attn_implementation,
        pairs=probe_pairs(classifier.config.get_text_config(), pairs),
        device=device,
    )
    failures = []
    with _undisturbed(device):
        for packing in (Packing.SHARED, Packing.PACKED):
            try:
                found = probe.excess(packing)
            except Exception as error:  # whatever an architecture does with unknown arguments
                if device.type == "cuda":
                    torch.cuda.synchronize(device)  # raises an error of the GPU
                if is_device_failure(error):
                    raise
                failures.append(" ".join(str(error).split())[:200])
            else:
                if found.is_allowed:
                    _set_attention(classifier, ATTENTION)
                    return Choice(packing, _success(packing, found, len(probe.pairs), failures))
                failures.append(str(found))
        found = probe.excess(Packing.PADDED)
        _set_attention(classifier, probe.stock)
    return Choice(Packing.PADDED, _fallback(failures, found))


def use_packing(model: Any, packing: Packing) -> None:
    """Set a model with stock attention to a packing that was verified for its architecture."""
    if packing is not Packing.PADDED:
        _set_attention(base_of(model), ATTENTION)


def _success(packing: Packing, found: "Excess", num_pairs: int, failures: list[str]) -> str:
    what = "packed rows with shared prompts" if packing is Packing.SHARED else "packed rows without shared prompts"
    why = f"sharing fails, {failures[0]}; without it " if failures else ""
    return f"{what}: {why}on {num_pairs} pairs {found}"


def _fallback(failures: list[str], found: "Excess") -> str:
    shared, packed = failures
    and_packed = "so does packing" if packed == shared else f"packing without sharing fails, {packed}"
    exact = "" if found.is_allowed else f"; even here {found}"
    return f"padded rows of like length: sharing prompts fails, {shared}; {and_packed}{exact}"


# --- comparison ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Excess:
    """Differences of rewards and gradients from those of each sequence alone, in units of what is allowed."""

    rewards: float
    gradients: float

    @property
    def is_allowed(self) -> bool:
        """Whether neither is too large; NaN is too large."""
        return self.rewards <= 1 and self.gradients <= 1

    def __str__(self) -> str:
        return (
            f"rewards differ from those of each sequence alone by {self.rewards:.1e} of what is allowed, "
            f"gradients by {self.gradients:.1e}"
        )


@dataclass(frozen=True)
class _Method:
    """How sequences are computed: in which rows, and in bfloat16 or float32."""

    plans: Sequence[MicroPlan]
    bfloat16: bool = False


@dataclass(frozen=True)
class _Probe:
    """A model, its stock attention, and the pairs that it is tested on."""

    model: Any
    stock: str
    pairs: Pairs
    device: torch.device

    def excess(self, packing: Packing) -> Excess:
        """How much a packing differs from each sequence alone; raises whatever the model raises."""
        [plans] = plan_rows(self.pairs, np.arange(len(self.pairs)), packing, 1 << 30)
        stock, rows = _Method(self._single_plans(Packing.PADDED)), _Method(plans)
        found = self._excess(rows, stock, FLOAT32)
        if not trains_in_bfloat16(self.device) or not found.is_allowed:
            return found
        single, rows = _Method(self._single_plans(packing), bfloat16=True), _Method(plans, bfloat16=True)
        every = [found, self._excess(single, stock, BFLOAT16), self._excess(rows, single, BFLOAT16)]
        return Excess(max(each.rewards for each in every), max(each.gradients for each in every))

    def _excess(self, method: _Method, reference: _Method, tolerance: Tolerance) -> Excess:
        """How much a method differs from the reference; its gradients are subtracted from the reference's in place."""
        for weight in self.model.parameters():
            weight.grad = None
        rewards = self._backward(reference, 1.0)
        norms = self._gradient_norms()
        everything = sum(norm**2 for norm in norms.values()) ** 0.5
        difference = float((self._backward(method, -1.0) - rewards).abs().max())
        allowed = tolerance.reward_per_spread * rewards.std() + tolerance.reward_per_largest * rewards.abs().max()
        ratios = [
            _ratio(norm, tolerance.gradient_per_norm * norms[name] + tolerance.gradient_per_all * everything)
            if name in norms
            else float("inf")
            for name, norm in self._gradient_norms().items()
        ]
        return Excess(_ratio(difference, float(allowed)), max(ratios, default=0.0))

    def _single_plans(self, packing: Packing) -> list[MicroPlan]:
        numbers = np.arange(len(self.pairs.sequences))
        kind = Packing.PADDED if packing is Packing.PADDED else Packing.PACKED
        return [MicroPlan(numbers[:0], (Branches(0, numbers[n : n + 1]),), kind) for n in numbers]

    def _backward(self, method: _Method, sign: float) -> Tensor:
        """The rewards of the rows' sequences; adds `sign` times the gradient of a weighted sum of them."""
        scorer = Scorer(self.model)
        found = torch.zeros(len(self.pairs.sequences), device=self.device)
        generator = np.random.default_rng(len(found))
        weights = torch.from_numpy(generator.normal(size=len(found)).astype(np.float32)).to(self.device)
        for plan in method.plans:
            _set_attention(self.model, self.stock if plan.packing is Packing.PADDED else ATTENTION)
            batch = collate(self.pairs, plan, self.device)
            rewards = bfloat16_scores(scorer, batch) if method.bfloat16 else scorer(batch)
            numbers = [number for branches in plan.branches for number in branches.sequences.tolist()]
            torch.autograd.backward((sign * weights[numbers] * rewards).sum())
            found[numbers] = rewards.detach()
        return found

    def _gradient_norms(self) -> dict[str, float]:
        return {
            name: float(torch.linalg.vector_norm(weight.grad))
            for name, weight in self.model.named_parameters()
            if weight.grad is not None
        }


def _set_attention(classifier: Any, name: str) -> None:
    classifier.set_attn_implementation(name)
    if classifier.config._attn_implementation != name:
        raise UnsupportedModelError(f"{type(classifier).__name__} takes no attention from outside")


def _ratio(difference: float, allowed: float) -> float:
    if not (difference < float("inf") and allowed < float("inf")):
        return float("inf")
    return difference / allowed if allowed else float(difference > 0) * 1e9


@contextlib.contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Restore random state and matmul precision on leaving."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
