"""Which packing a model computes exactly, tested before training.

Some architectures are silently wrong in packed rows: recurrent and linear-attention layers run across sequences, others
derive positions from a token's index in the row, or look ahead. So nothing is assumed of an architecture: rewards and
gradients of a few sequences in a row are compared with those of each sequence alone.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from rm_assets.training.devices import is_device_failure
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.model.adapter import base_of
from rm_assets.training.model.architecture import is_encoder, max_positions
from rm_assets.training.model.exactness import Excess, Probe, set_attention
from rm_assets.training.model.layers import shallow_copy
from rm_assets.training.model.probe_pairs import probe_pairs
from rm_assets.training.packing.attention import ATTENTION
from rm_assets.training.packing.pairs import Pairs
from rm_assets.training.packing.planning import Packing


@dataclass(frozen=True)
class Choice:
    """The packing in use, and a sentence with the reason, for the log, the manifest and the UI."""

    packing: Packing
    reason: str


def choose_packing(model: Any, pairs: Pairs, device: torch.device) -> Choice:
    """The fastest packing that gives the rewards and gradients of each sequence alone; sets the model to it.

    Encoders are computed in padded rows; raises TrainingError for one that is not exact even there.

    Computes on `device` in float32, and on a GPU in bfloat16 too, in the model's current mode, on pairs of the data and
    synthetic ones. It uses a copy with a few layers: the gradients of all layers, or the model before it is sharded,
    may not fit into memory. Frozen weights are shared with the copy, and have no gradients. Does not change the random
    state.
    """
    classifier = base_of(model)
    probe = Probe(
        model=shallow_copy(classifier, device),
        stock=classifier.config._attn_implementation,
        pairs=probe_pairs(classifier.config.get_text_config(), pairs, max_positions(classifier)),
        device=device,
    )
    failures: list[str] = []
    with _isolate_numerics(device):
        for packing in () if is_encoder(classifier) else (Packing.SHARED, Packing.PACKED):
            try:
                found = probe.excess(packing)
            except Exception as error:  # an architecture may raise anything for unknown arguments
                if device.type == "cuda":
                    torch.cuda.synchronize(device)  # raises an error of the GPU
                if is_device_failure(error):
                    raise
                failures.append(" ".join(str(error).split())[:200])
            else:
                if found.is_allowed:
                    set_attention(classifier, ATTENTION)
                    return Choice(packing, _success(packing, found, len(probe.pairs), failures))
                failures.append(str(found))
        found = probe.excess(Packing.PADDED)
        set_attention(classifier, probe.stock)
    if not is_encoder(classifier):
        return Choice(Packing.PADDED, _fallback(failures, found))
    if not found.is_allowed:
        raise TrainingError(
            f"{type(classifier).__name__} scores a sequence differently beside a longer one: in padded rows {found}; "
            "change the setting model, for example to a decoder, DeBERTa-v3 or ModernBERT"
        )
    return Choice(
        Packing.PADDED,
        f"padded rows of similar length: encoders are computed in padded rows; on {len(probe.pairs)} pairs {found}",
    )


def use_packing(model: Any, packing: Packing) -> None:
    """Set a model with stock attention to a packing that was verified for its architecture."""
    if packing is not Packing.PADDED:
        set_attention(base_of(model), ATTENTION)


def _success(packing: Packing, found: Excess, num_pairs: int, failures: list[str]) -> str:
    what = "packed rows with shared prompts" if packing is Packing.SHARED else "packed rows without shared prompts"
    why = f"sharing fails, {failures[0]}; without it " if failures else ""
    return f"{what}: {why}on {num_pairs} pairs {found}"


def _fallback(failures: list[str], found: Excess) -> str:
    shared, packed = failures
    and_packed = "so does packing" if packed == shared else f"packing without sharing fails, {packed}"
    exact = "" if found.is_allowed else f"; even here {found}"
    return f"padded rows of similar length: sharing prompts fails, {shared}; {and_packed}{exact}"


@contextlib.contextmanager
def _isolate_numerics(device: torch.device) -> Iterator[None]:
    """Restore random state and matmul precision on leaving."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
