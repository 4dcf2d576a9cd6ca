"""Trained models of three architectures, their data sets, and environments in which other programs read them."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from server_environments import Trained, make_environment
from support import polite_rows, run_stages, write_lines
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.stages.padding import pad_token_id_of
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings, TrainingSettings
from rm_assets.training.jobs.result import MODEL, clear_output
from rm_assets.training.jobs.training_job import SPLITS, TrainingJob
from rm_assets.training.loop.group import SINGLE_PROCESS
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.run import train_and_publish

ENVIRONMENTS = "RM_TEST_ENVIRONMENTS"
"""The variable that names a directory to keep virtual environments in; without it, every session makes its own."""
SAMPLE_TOKENIZER = Path(__file__).parents[2] / "rm_assets" / "sample" / "tokenizer"

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
SIZES |= {"num_hidden_layers": 2, "max_position_embeddings": 1024, "dtype": "float32"}
LLAMA_3 = {"rope_theta": 500_000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
LLAMA_3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
BY_LAYER = {
    "full_attention": {"rope_theta": 1_000_000.0, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_theta": 20_000.0, "rope_type": "default"},
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {"rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"}},
    "llama": {"rope_parameters": LLAMA_3},
    "gemma3_text": {"rope_parameters": BY_LAYER, "sliding_window": 16, "query_pre_attn_scalar": 32}
    | {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """A function that trains a reward model on a tiny base model of this architecture, once."""

    @functools.cache
    def train(name: str, saved_dtype: str = "float32") -> Trained:
        return _trained(name, saved_dtype, tmp_path_factory.mktemp(name))

    return train


def _trained(name: str, saved_dtype: str, directory: Path) -> Trained:
    base = directory / "base"
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE_TOKENIZER)
    if name == "llama":  # the template writes BOS, and so does the tokenizer unless it is told not to
        tokenizer.bos_token = "<|endoftext|>"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
        )
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    torch.manual_seed(1)
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), **SIZES | MODELS[name])
    config.pad_token_id = config.eos_token_id = config.bos_token_id = None
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    write_lines(directory / "annotations" / "a.jsonl", polite_rows(80))
    settings = Settings(
        annotations=str(directory / "annotations"), storage=str(directory / "storage"), model=str(base), num_workers=1
    )
    stages = run_stages(settings, find_tokenizer(settings))
    job = TrainingJob(
        key="0" * 64,
        output_directory=str(directory / "output"),
        data_snapshot=stages[Stage.PADDED].name,
        splits={split: list(map(str, stages[Stage.PADDED].paths(split))) for split in SPLITS},
        pad_token_id=pad_token_id_of(stages[Stage.TOKENIZED]),
        model=str(base),
        model_revision=None,
        toy=False,
        vocab_size=len(tokenizer),
        tokenizer=str(base),
        chat_template=None,
        settings=TrainingSettings.model_validate(
            {"batch_pairs": 16, "learning_rate": 1e-3, "saved_dtype": saved_dtype}
        ),
    )
    clear_output(Path(job.output_directory))
    train_and_publish(job, SINGLE_PROCESS, TrainingLog())
    return Trained(Path(job.output_directory) / MODEL, stages)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that makes a virtual environment with these packages; returns its Python."""
    home = Path(os.environ.get(ENVIRONMENTS) or tmp_path_factory.mktemp("environments"))

    return functools.partial(make_environment, home)
