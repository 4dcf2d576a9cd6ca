"""Trains the sample's tokenizer, a small byte-level BPE, and writes it as Hugging Face directories are."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rm_assets.sample.chat_template import CHAT_TEMPLATE

VOCAB_SIZE = 2000
PAD, START, END, END_OF_TEXT = SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")

CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": END,
    "pad_token": PAD,
    "additional_special_tokens": [START, END_OF_TEXT],
    "clean_up_tokenization_spaces": False,
    "model_max_length": 32768,
}


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE that knows these texts; any other text still goes through it, byte by byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    """The three files that `AutoTokenizer.from_pretrained` reads."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(tokenizer.to_str() + "\n", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2, sort_keys=True) + "\n")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
