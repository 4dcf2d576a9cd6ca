"""A word-per-token tokenizer, tiny models with random weights, and files of padded pairs."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from toy_pairs import PAD, VOCAB_SIZE, default_splits, padded_row
from transformers import LlamaConfig, PreTrainedTokenizerFast

from rm_assets.data.tables.schemas import PADDED
from rm_assets.settings import TrainingSettings
from rm_assets.training import devices
from rm_assets.training.jobs.training_job import TrainingJob
from rm_assets.training.loop.group import join_group, leave_group

TEMPLATE = "{% for message in messages %}{{ message['content'] }} <end>{% endfor %}"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tensors this small only wait for a second thread."""
    torch.set_num_threads(1)


@pytest.fixture
def cpu_as_gpu(monkeypatch):
    """What a GPU computes, on a CPU."""
    monkeypatch.setattr(devices, "BFLOAT16", {"cpu"})


@pytest.fixture
def gpu(cpu_as_gpu):
    """The group of a process alone with its GPU."""
    group = join_group()
    yield group
    leave_group()


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory):
    words = ["<pad>", "<end>", "<unknown>", *(f"w{number}" for number in range(3, VOCAB_SIZE))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["<pad>", "<end>"])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unknown>")
    wrapped.chat_template = TEMPLATE
    directory = tmp_path_factory.mktemp("tokenizer")
    wrapped.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def toy_directory(tmp_path_factory):
    """A configuration whose vocabulary (999) and pad token (998) the job has to replace."""
    config = LlamaConfig(
        vocab_size=999,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=998,
        attention_dropout=0.9,
    )
    config.architectures = ["LlamaForCausalLM"]
    directory = tmp_path_factory.mktemp("toy")
    config.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def write_pairs():
    """A function that writes rows, or (chosen, rejected[, margin]) triples, as a file of padded_pairs."""

    def write(path, pairs, row_group_size=None):
        rows = [pair if isinstance(pair, dict) else padded_row(n, *pair) for n, pair in enumerate(pairs)]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=PADDED), path, row_group_size=row_group_size)
        return str(path)

    return write


@pytest.fixture
def make_job(tmp_path, job_in):
    """A function that builds a toy job: 12 train, 5 validation and 3 test pairs unless told otherwise."""

    def make(name="job", splits=None, settings=None, **changes):
        return job_in(tmp_path, name, splits, settings, **changes)

    return make


@pytest.fixture(scope="session")
def job_in(write_pairs, tokenizer_directory, toy_directory):
    """As `make_job`, in a directory that is given first."""

    def make(tmp_path, name="job", splits=None, settings=None, **changes):
        splits = splits if splits is not None else default_splits()
        files = {
            split: [write_pairs(tmp_path / name / f"{split}.parquet", pairs)] if pairs else []
            for split, pairs in splits.items()
        }
        values = {
            "key": "key-of-the-job",
            "output_directory": str(tmp_path / name / "output"),
            "data_snapshot": "snapshot-1",
            "splits": files,
            "pad_token_id": PAD,
            "model": str(toy_directory),
            "model_revision": None,
            "toy": True,
            "vocab_size": VOCAB_SIZE,
            "tokenizer": str(tokenizer_directory),
            "chat_template": None,
            "settings": TrainingSettings(
                **({"learning_rate": 1e-2, "batch_pairs": 4, "micro_batch_tokens": 40} | (settings or {}))
            ),
        }
        return TrainingJob(**(values | changes))

    return make


@pytest.fixture
def metrics_of():
    """A function that reads a job's metrics.jsonl: the lines of steps, and those of validation."""

    def read(job):
        lines = [json.loads(line) for line in (Path(job.output_directory) / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if "loss" in line], [line for line in lines if "validation_loss" in line]

    return read
