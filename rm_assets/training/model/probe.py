"""Which packing a model computes exactly, tested before training.

Some architectures are silently wrong in packed rows: recurrent and linear-attention layers run across sequences, others
derive positions from a token's index in the row, or look ahead. So nothing is assumed of an architecture: rewards and
gradients of a few sequences in a row are compared with those of each sequence alone.
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from rm_assets.training.devices import is_device_failure, trains_in_bfloat16
from rm_assets.training.jobs.training_job import TrainingError
from rm_assets.training.model.adapter import base_of
from rm_assets.training.model.architecture import is_encoder, max_positions
from rm_assets.training.model.exactness import Excess, Probe, set_attention
from rm_assets.training.model.layers import shallow_copy
from rm_assets.training.model.probe_pairs import pairs_of, probe_pairs
from rm_assets.training.packing.attention import ATTENTION, UnsupportedModelError
from rm_assets.training.packing.pairs import Pairs
from rm_assets.training.packing.planning import Packing

_CURE = "change the setting model, for example to a decoder such as Qwen3, DeBERTa-v3 or ModernBERT"
_FEW_TOKENS = 1000
"""Size of the vocabulary of an encoder that is tested before its weights are there."""


@dataclass(frozen=True)
class Choice:
    """The packing in use, and a sentence with the reason, for the log, the manifest and the UI."""

    packing: Packing
    reason: str


def choose_packing(model: Any, pairs: Pairs, device: torch.device) -> Choice:
    """The fastest packing that gives the rewards and gradients of each sequence alone; sets the model to it.

    Encoders are computed in padded rows. Raises TrainingError for one that is not exact even there, and for a model
    that cannot be computed in padded rows, or not in bfloat16.

    Computes on `device` in float32, and on a GPU in bfloat16 too, in the model's current mode, on pairs of the data and
    synthetic ones. It uses a copy with a few layers: the gradients of all layers, or the model before it is sharded,
    may not fit into memory. Frozen weights are shared with the copy, and have no gradients. Does not change the random
    state.
    """
    classifier = base_of(model)
    probe = _probe_of(classifier, shallow_copy(classifier, device), pairs, device)
    failures: list[str] = []
    with _isolate_numerics(device):
        for packing in () if is_encoder(classifier) else (Packing.SHARED, Packing.PACKED):
            try:
                found = _excess(probe, packing)
            except UnsupportedModelError as error:
                failures.append(str(error))
            else:
                if found.is_allowed:
                    _require_bfloat16(probe)
                    set_attention(classifier, ATTENTION)
                    return Choice(packing, _success(packing, found, len(probe.pairs), failures))
                failures.append(str(found))
        found = _padded_excess(probe)
        set_attention(classifier, probe.stock)
    if not is_encoder(classifier):
        return Choice(Packing.PADDED, _fallback(failures, found))
    return Choice(
        Packing.PADDED,
        f"padded rows of similar length: encoders are computed in padded rows; on {len(probe.pairs)} pairs {found}",
    )


def check_encoder(empty: Any) -> None:
    """Raise TrainingError for an encoder that `choose_packing` would refuse, by its configuration alone.

    `empty` is the classifier without memory for weights. Compares the rewards of a few layers of it, with random
    weights and a small vocabulary, on the CPU: about a second, 25 for ALBERT-xxlarge. Decoders are not tested: a layer
    may be very large.
    """
    if not is_encoder(empty):
        return
    cpu = torch.device("cpu")
    with _isolate_numerics(cpu):
        torch.manual_seed(0)
        model = _with_random_weights(empty.config).requires_grad_(False)
        _padded_excess(_probe_of(model, model, pairs_of([]), cpu))


def _with_random_weights(config: Any) -> Any:
    """A classifier of this configuration with few layers and tokens, and with weights as transformers initializes them.

    Layers are chosen before they take memory, as a configuration may describe each of them.
    """
    config, meta = copy.deepcopy(config), torch.device("meta")
    text = config.get_text_config()
    text.vocab_size = min(text.vocab_size, _FEW_TOKENS)
    if text.pad_token_id is not None and text.pad_token_id >= text.vocab_size:
        text.pad_token_id = 0
    with meta:
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    model = shallow_copy(model, meta).to_empty(device="cpu")
    for part in (*model.modules(), *model.parameters(), *model.buffers()):
        part._is_hf_initialized = False
    model.init_weights()
    return model.eval()


def _probe_of(classifier: Any, shallow: Any, pairs: Pairs, device: torch.device) -> Probe:
    return Probe(
        model=shallow,
        stock=classifier.config._attn_implementation,
        pairs=probe_pairs(classifier.config.get_text_config(), pairs, max_positions(classifier)),
        device=device,
    )


def _padded_excess(probe: Probe) -> Excess:
    """How much padded rows differ; raises TrainingError for a model that they do not compute, or no encoder exactly."""
    name = type(probe.model).__name__
    try:
        found = _excess(probe, Packing.PADDED)
    except UnsupportedModelError as error:
        raise TrainingError(f"{name} cannot be trained ({error}); {_CURE}") from None
    if is_encoder(probe.model) and not found.is_allowed:
        raise TrainingError(
            f"{name} scores a sequence differently beside a longer one: in padded rows {found}; {_CURE}"
        )
    _require_bfloat16(probe)
    return found


def _excess(probe: Probe, packing: Packing) -> Excess:
    """How much a packing differs; raises UnsupportedModelError if the model fails in it."""
    with _architecture_errors(probe.device):
        return probe.excess(packing)


def _require_bfloat16(probe: Probe) -> None:
    """Raise TrainingError unless the model can be computed in bfloat16, as its golden scores are: before training.

    A GPU has tested more than that.
    """
    if trains_in_bfloat16(probe.device):
        return
    try:
        with _architecture_errors(probe.device):
            probe.compute_in_bfloat16()
    except UnsupportedModelError as error:
        name = type(probe.model).__name__
        raise TrainingError(
            f"{name} cannot be computed in bfloat16, as GPUs and servers do ({error}); {_CURE}"
        ) from None


@contextlib.contextmanager
def _architecture_errors(device: torch.device) -> Iterator[None]:
    """Turn any error of a model into UnsupportedModelError, but not those of a GPU or of memory."""
    try:
        yield
    except Exception as error:  # an architecture may raise anything, for unknown arguments too
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # raises an error of the GPU
        if is_device_failure(error):
            raise
        raise UnsupportedModelError(" ".join(str(error).split())[:200] or type(error).__name__) from error


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
