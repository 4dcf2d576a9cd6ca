"""What both scripts work on: the device, and pairs and models with random ids and weights.

Without CUDA the CPU takes the part of a GPU, so that the scripts can be tried anywhere: it trains in bfloat16 under
FSDP2, with the attention kernel that the tests emulate. Needs this repository and its folder tests on PYTHONPATH.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, Qwen3Config

from rm_assets.training import devices
from rm_assets.training.loop.group import Group
from rm_assets.training.model.probe_pairs import pairs_of
from rm_assets.training.packing.pairs import Pairs

CUDA = torch.cuda.is_available()
if not CUDA:
    import varlen_kernel  # noqa: F401  on import it gives torch's varlen attention a kernel on the CPU

VOCAB_SIZE = 151_936  # Qwen3's
NUM_WORDS = 1000  # ids that the pairs use
SHAPES = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 256, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "head_dim": 32, "vocab_size": NUM_WORDS},
    "0.6b": {"hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072, "num_attention_heads": 16},
    "1.7b": {"hidden_size": 2048, "num_hidden_layers": 28, "intermediate_size": 6144, "num_attention_heads": 16},
    "4b": {"hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728, "num_attention_heads": 32},
}
"""Qwen3 by its sizes; those named by weights have 8 key heads of width 128."""


@contextlib.contextmanager
def cpu_as_gpu(yes: bool = True) -> Iterator[None]:
    """Without CUDA: whether the CPU takes the part of a GPU, or computes in float32 as a CPU does."""
    kept = devices.BFLOAT16
    if not CUDA:
        devices.BFLOAT16 = frozenset({"cpu"} if yes else ())
    try:
        yield
    finally:
        devices.BFLOAT16 = kept


def synchronize() -> None:
    """Wait until the GPU has done what is queued."""
    if CUDA:
        torch.cuda.synchronize()


def device_name(group: Group) -> str:
    """The GPU's full name, or "cpu"."""
    return torch.cuda.get_device_name(group.device) if CUDA else "cpu"


def random_pairs(num: int, prompt: int, reply: int, longest: int, num_words: int = NUM_WORDS) -> Pairs:
    """Pairs of replies to a prompt, of ids below `num_words`.

    The lengths of prompts and replies are log-normal about these medians, and from 4 to `longest` tokens.
    """
    generator = np.random.default_rng(0)

    def ids(median: int) -> Any:
        length = int(median * np.exp(0.6 * generator.normal()))
        return generator.integers(1, num_words, min(max(length, 4), longest), dtype=np.int32)

    prompts = [ids(prompt) for _ in range(num)]
    return pairs_of([[np.append(start, ids(reply)), np.append(start, ids(reply))] for start in prompts])


def qwen3(shape: str, device: torch.device, layers: int = 0) -> Any:
    """A reward model with random float32 weights, made on `device`; `layers` other than the shape's, if any."""
    sizes = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": VOCAB_SIZE} | SHAPES[shape]
    sizes["num_hidden_layers"] = layers or sizes["num_hidden_layers"]
    config = Qwen3Config(**sizes, num_labels=1, pad_token_id=0, max_position_embeddings=32_768, use_cache=False)
    torch.manual_seed(0)
    with device:
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return model.to(device).eval()
