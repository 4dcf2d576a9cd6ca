"""The job file of a training: everything it reads, and where it writes. No torch here."""

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from rm_assets.settings import TrainingSettings

SPLITS = ("train", "validation", "test")
EVALUATION = "evaluation/"
"""Prefix of the names of further splits, which are scored and never trained on."""


class TrainingError(RuntimeError):
    """A job that cannot be trained, or whose training had to stop. One line with the reason and what to do."""


def memory_advice(settings: TrainingSettings) -> str:
    """The settings to change if training runs out of memory; first those with which it can resume."""
    ways = [f"lower micro_batch_tokens ({settings.micro_batch_tokens or 'by default 2048 on a CPU, 8192 on a GPU'})"]
    if not settings.gradient_checkpointing:
        ways.append("set gradient_checkpointing")
    ways.append(f"train on more GPUs (num_processes is {settings.num_processes})")
    unset = [name for name in ("lora_rank", "load_in_4bit") if not getattr(settings, name)]
    other = f"; or set {unset[0]}, which starts another training" if unset else ""
    return f"{', or '.join(ways)}, and materialize again, which resumes from the latest checkpoint{other}"


class TrainingJob(BaseModel):
    """Written as JSON by the launcher, read by `python -m rm_assets.training JOB.json`.

    `splits` maps "train", "validation", "test" and any "evaluation/<name>" to Parquet files with the schema
    `schemas.PADDED`, `sha256` each file to its hash; files without one are verified by page checksums only. `model`
    is a directory or Hub name with weights (`model_revision` pins a Hub commit); if `toy` is true it is a
    directory with only a `config.json`, and the model has random weights and `vocab_size` embeddings.
    `chat_template` is the template's text, or None for the tokenizer's own. `lineage` names the first base of `model`
    and the snapshots since; empty: it is read from the model's card. The job writes into `output_directory`,
    `manifest.json` last.
    `weights_key` is a hash of everything that the weights depend on. If `trained` names the directory of a published
    model with the same one, its weights are taken, and the job only scores the held-out pairs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    key: str
    output_directory: str
    data_snapshot: str
    splits: dict[str, list[str]]
    sha256: dict[str, str] = {}
    pad_token_id: int
    model: str
    model_revision: str | None
    lineage: list[str] = []
    toy: bool
    vocab_size: int
    tokenizer: str
    chat_template: str | None
    settings: TrainingSettings
    weights_key: str = ""
    trained: str | None = None

    @property
    def num_processes(self) -> int:
        return self.settings.num_processes

    def with_paths(self, read: Callable[[str], str], output_directory: str) -> "TrainingJob":
        """The same job with the paths it reads replaced by `read(path)`, and another output directory."""
        changes = {
            "output_directory": output_directory,
            "splits": {split: [read(path) for path in paths] for split, paths in self.splits.items()},
            "sha256": {read(path): sha256 for path, sha256 in self.sha256.items()},
            "model": read(self.model),
            "tokenizer": read(self.tokenizer),
            "trained": self.trained and read(self.trained),
        }
        return self.model_copy(update=changes)
