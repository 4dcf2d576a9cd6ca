"""Makes the built-in sample anew, byte for byte: `python -m rm_assets.sample.generate [--directory DIR]`.

annotations/    about 2,000 preferences in five files and four formats, with a few lines wrong on purpose
tokenizer/      a byte-level BPE of 2,000 tokens, trained on these texts, with a chat template
model/          the configuration of a tiny decoder, without weights
training.json   the training settings that suit so little data and so small a model
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from rm_assets.sample.annotations import DAMAGED, draw_annotations, write_annotations
from rm_assets.sample.vocabulary import END, PAD, SPECIAL, VOCAB_SIZE, train_tokenizer, write_tokenizer

SEED = 2024

MODEL = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "model_type": "qwen3",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "use_cache": False,
    "pad_token_id": SPECIAL.index(PAD),
    "eos_token_id": SPECIAL.index(END),
}

TRAINING = {
    "epochs": 1,
    "learning_rate": 1e-3,
    "warmup_fraction": 0.1,
    "batch_pairs": 16,
}


def generate(directory: Path) -> None:
    """Writes the whole sample into the directory, over what is there."""
    lines = draw_annotations(Random(SEED))
    write_annotations(directory / "annotations", lines)
    write_tokenizer(directory / "tokenizer", train_tokenizer(_texts(lines)))
    _write_json(directory / "model" / "config.json", MODEL)
    _write_json(directory / "training.json", TRAINING)


def _texts(lines: dict[str, list[bytes]]) -> Iterator[str]:
    for name, rows in lines.items():
        for row in rows:
            if row not in DAMAGED[name].values():
                yield from _strings(json.loads(row))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the built-in sample anew.")
    parser.add_argument("--directory", type=Path, default=Path(__file__).parent)
    generate(parser.parse_args().directory)
