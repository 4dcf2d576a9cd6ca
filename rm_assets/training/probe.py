"""Which way of laying sequences into rows a model computes exactly, found by trying before training.

Some architectures are wrong in packed rows without a word: recurrent and linear-attention layers run across sequences,
others take positions from where a token lies, or look ahead. So nothing is assumed of an architecture: rewards and
gradients of a few sequences in a row are compared with those of each sequence alone.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rm_assets.training.adapter import base_of
from rm_assets.training.attention import ATTENTION, UnsupportedModelError
from rm_assets.training.batches import collate
from rm_assets.training.planning import Branches, MicroPlan, Packing, plan_rows
from rm_assets.training.probe_pairs import probe_pairs
from rm_assets.training.scoring import Scorer
from rm_assets.training.store import Pairs

SPREAD_TOLERANCE = 1e-4
"""Allowed difference of a reward, per standard deviation of the rewards."""
GRADIENT_TOLERANCE = 1e-3
"""Allowed difference of a weight's gradient, per its norm."""
ROUNDING_TOLERANCE = 1e-5
"""Allowed besides, per largest reward, and per norm of all gradients: float32 rounding where the spread is small."""
HALF_TOLERANCE = 3.0
"""In bfloat16: times what each sequence alone differs by from float32."""


@dataclass(frozen=True)
class Choice:
    """The packing in use, and a sentence that says why, for the log, the manifest and the UI."""

    packing: Packing
    reason: str


def choose_packing(model: Any, pairs: Pairs, device: torch.device) -> Choice:
    """The fastest packing that gives the rewards and gradients of each sequence alone; sets the model to it.

    Computes in float32, and on a GPU in bfloat16 too, in the model's present mode, on pairs of the data and invented
    ones. Leaves weights, gradients and random state as they were. Every process finds the same.
    """
    classifier = base_of(model)
    probe = _Probe(
        model=model,
        classifier=classifier,
        stock=classifier.config._attn_implementation,
        pairs=probe_pairs(classifier.config.get_text_config(), pairs),
        device=device,
    )
    failures = []
    with _undisturbed(model, device):
        for packing in (Packing.SHARED, Packing.PACKED):
            try:
                found = probe.excess(packing)
            except (torch.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:  # whatever an architecture does with arguments that it does not know
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
    """Set a model with stock attention to a packing that its architecture is known to compute exactly."""
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
        """Whether neither is too large; what is no number is."""
        return self.rewards <= 1 and self.gradients <= 1

    def __str__(self) -> str:
        return (
            f"rewards differ from those of each sequence alone by {self.rewards:.1e} of what is allowed, "
            f"gradients by {self.gradients:.1e}"
        )


@dataclass(frozen=True)
class _Difference:
    """From each sequence alone in float32: the largest of a reward, and the norm of each weight's gradient."""

    reward: float
    gradients: dict[str, float]

    def per(self, allowed: "_Difference") -> Excess:
        worst = max((_ratio(norm, allowed.gradients[name]) for name, norm in self.gradients.items()), default=0.0)
        return Excess(_ratio(self.reward, allowed.reward), worst)


@dataclass(frozen=True)
class _Probe:
    """A model, the attention it came with, and the pairs that it is tried on."""

    model: Any
    classifier: Any
    stock: str
    pairs: Pairs
    device: torch.device

    def excess(self, packing: Packing) -> Excess:
        """How far a packing is from each sequence alone; raises whatever the model does."""
        rewards, norms = self._alone()
        everything = sum(norm**2 for norm in norms.values()) ** 0.5
        allowed = _Difference(
            SPREAD_TOLERANCE * float(rewards.std()) + ROUNDING_TOLERANCE * float(rewards.abs().max()),
            {name: GRADIENT_TOLERANCE * norm + ROUNDING_TOLERANCE * everything for name, norm in norms.items()},
        )
        [plans] = plan_rows(self.pairs, np.arange(len(self.pairs)), packing, 1 << 30)
        found = self._difference(plans, bfloat16=False).per(allowed)
        if self.device.type != "cuda" or not found.is_allowed:
            return found
        alone = self._difference(self._single_plans(), bfloat16=True)
        allowed = _Difference(
            allowed.reward + HALF_TOLERANCE * alone.reward,
            {name: limit + HALF_TOLERANCE * alone.gradients[name] for name, limit in allowed.gradients.items()},
        )
        in_half = self._difference(plans, bfloat16=True).per(allowed)
        return Excess(max(found.rewards, in_half.rewards), max(found.gradients, in_half.gradients))

    def _difference(self, plans: Sequence[MicroPlan], bfloat16: bool) -> _Difference:
        # subtracted from the gradients in place: a second copy of them may not fit
        rewards, norms = self._alone()
        difference = float((self._backward(plans, bfloat16, -1.0) - rewards).abs().max())
        found = self._gradient_norms()
        return _Difference(difference, {name: found.get(name, float("inf")) for name in norms | found})

    def _alone(self) -> tuple[Tensor, dict[str, float]]:
        """Each sequence's reward, float32 [S], and the norm of each weight's gradient, which stays in `.grad`."""
        for weight in self.model.parameters():
            weight.grad = None
        return self._backward(self._single_plans(), False, 1.0), self._gradient_norms()

    def _single_plans(self) -> list[MicroPlan]:
        numbers = np.arange(len(self.pairs.sequences))
        return [MicroPlan(numbers[:0], (Branches(0, numbers[n : n + 1]),), Packing.PADDED) for n in numbers]

    def _backward(self, plans: Sequence[MicroPlan], bfloat16: bool, sign: float) -> Tensor:
        """The rewards of the plans' sequences; adds `sign` times the gradient of a weighted sum of them."""
        scorer = Scorer(self.model, bfloat16)
        found = torch.zeros(len(self.pairs.sequences), device=self.device)
        generator = np.random.default_rng(len(found))
        weights = torch.from_numpy(generator.normal(size=len(found)).astype(np.float32)).to(self.device)
        for plan in plans:
            _set_attention(self.classifier, self.stock if plan.packing is Packing.PADDED else ATTENTION)
            rewards = scorer(collate(self.pairs, plan, self.device))
            numbers = [number for branches in plan.branches for number in branches.sequences.tolist()]
            (sign * weights[numbers] * rewards).sum().backward()
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
    if not difference < float("inf"):
        return float("inf")
    return difference / allowed if allowed else float(difference > 0) * 1e9


@contextlib.contextmanager
def _undisturbed(model: Any, device: torch.device) -> Iterator[None]:
    """Gradients, random state and precision are afterwards what they were before."""
    gradients = [weight.grad for weight in model.parameters()]
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for weight, gradient in zip(model.parameters(), gradients, strict=True):
            weight.grad = gradient
