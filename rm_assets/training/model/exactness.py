"""How much the rewards and gradients of a packing differ from those of each sequence alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rm_assets.training.devices import trains_in_bfloat16
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
class Excess:
    """Differences of rewards and gradients from those of each sequence alone, in units of the tolerance."""

    rewards: float
    gradients: float

    @property
    def is_allowed(self) -> bool:
        """Whether neither is too large; NaN is too large."""
        return self.rewards <= 1 and self.gradients <= 1

    def __str__(self) -> str:
        gradients = f", gradients by {self.gradients:.1e}" if self.gradients else ""  # none of frozen weights
        return f"rewards differ from those of each sequence alone by {self.rewards:.1e} of the tolerance{gradients}"


@dataclass(frozen=True)
class _Method:
    """How sequences are computed: in which rows, and in bfloat16 or float32."""

    plans: Sequence[MicroPlan]
    bfloat16: bool = False


@dataclass(frozen=True)
class Probe:
    """A model, its stock attention, and the pairs that it is tested on."""

    model: Any
    stock: str
    pairs: Pairs
    device: torch.device

    def excess(self, packing: Packing) -> Excess:
        """How much a packing differs from each sequence alone; raises the errors of the model."""
        [plans] = plan_rows(self.pairs, np.arange(len(self.pairs)), packing, 1 << 30)
        stock, rows = _Method(self._single_plans(Packing.PADDED)), _Method(plans)
        found = self._excess(rows, stock, FLOAT32)
        if not trains_in_bfloat16(self.device) or not found.is_allowed:
            return found
        single, rows = _Method(self._single_plans(packing), bfloat16=True), _Method(plans, bfloat16=True)
        every = [found, self._excess(single, stock, BFLOAT16), self._excess(rows, single, BFLOAT16)]
        return Excess(max(each.rewards for each in every), max(each.gradients for each in every))

    @torch.no_grad()
    def compute_in_bfloat16(self) -> None:
        """Compute one sequence in bfloat16 by stock attention; raises the errors of the model."""
        set_attention(self.model, self.stock)
        bfloat16_scores(Scorer(self.model), collate(self.pairs, self._single_plans(Packing.PADDED)[0], self.device))

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
        """The rewards of the rows' sequences; adds `sign` times the gradient of a weighted sum of them, if any."""
        scorer = Scorer(self.model)
        found = torch.zeros(len(self.pairs.sequences), device=self.device)
        generator = np.random.default_rng(len(found))
        weights = torch.from_numpy(generator.normal(size=len(found)).astype(np.float32)).to(self.device)
        for plan in method.plans:
            set_attention(self.model, self.stock if plan.packing is Packing.PADDED else ATTENTION)
            batch = collate(self.pairs, plan, self.device)
            rewards = bfloat16_scores(scorer, batch) if method.bfloat16 else scorer(batch)
            numbers = [number for branches in plan.branches for number in branches.sequences.tolist()]
            if rewards.requires_grad:
                torch.autograd.backward((sign * weights[numbers] * rewards).sum())
            found[numbers] = rewards.detach()
        return found

    def _gradient_norms(self) -> dict[str, float]:
        return {
            name: float(torch.linalg.vector_norm(weight.grad))
            for name, weight in self.model.named_parameters()
            if weight.grad is not None
        }


def set_attention(classifier: Any, name: str) -> None:
    classifier.set_attn_implementation(name)
    if classifier.config._attn_implementation != name:
        raise UnsupportedModelError(f"{type(classifier).__name__} does not accept another attention function")


def _ratio(difference: float, allowed: float) -> float:
    if not (difference < float("inf") and allowed < float("inf")):
        return float("inf")
    return difference / allowed if allowed else float(difference > 0) * 1e9
