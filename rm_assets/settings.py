"""Every setting of the project, declared once: its type, its default, and what it means.

One class per group, in the order in which data flows; `rm_assets/SETTINGS.md` is generated from them. Names are unique
over all groups, so `RM_EPOCHS` needs no prefix. `rm_assets.settings_loading` finds their values.
"""

from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from pydantic.fields import FieldInfo

from rm_assets.json_settings import COLUMNS, DATE, FOLDERS, HUB_NAME, LABELS, LIST, MAPPING, OWNERS, UTF8

SAMPLE = Path(__file__).parent / "sample"
PLAIN_TEMPLATE = "plain"
_TOO_LARGE = 2**63

Annotators = Literal["majority", "each"]
"""How the votes of several annotators on one row become pairs."""

ReportCheck = Literal[
    "accuracy_is_above_chance", "model_beats_length", "model_needs_the_prompt", "scores_do_not_follow_length"
]
"""The checks of a model's report."""

Fraction = Annotated[float, Field(ge=0, le=1)]
ProperFraction = Annotated[float, Field(ge=0, lt=1)]


class SettingsError(ValueError):
    """A setting that cannot be used. The message names the setting and says what to do."""


class _Group(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _fits_into_int64(cls, value: Any) -> Any:
        if isinstance(value, int) and value >= _TOO_LARGE:
            raise ValueError("it must be below 2**63")
        return value


class AnnotationSettings(_Group):
    """Which files are read, and how."""

    annotations: str | None = None
    """File, directory, glob or URI (s3://bucket/prefix, hf://datasets/owner/name) of .jsonl, .ndjson, .jsonlines,
    .json, .parquet, .csv or .tsv files, optionally with .gz or .zst. Unset: the built-in sample."""

    columns: Annotated[dict[str, str | dict[str, str]], MAPPING, COLUMNS] = {}
    """Your column names, as JSON: {"prompt": "query", "chosen": "winner"}; for the files that a glob matches:
    {"shp/*": {"prompt": "history"}}."""

    labels: Annotated[dict[str, str | dict[str, Any]], MAPPING, LABELS] = {}
    """Meaning of your labels, as JSON: {"0": "first", "1": "second", "2": "tie"}; for one column:
    {"winner": {"0": "first"}}; for the files that a glob matches: {"shp/*": {"0": "first"}}."""

    annotators: Annotators = "majority"
    """Rows with several annotators. majority: one pair, as more than half of them judged (otherwise a tie); each: one
    pair per annotator."""

    max_pairs_per_prompt: PositiveInt = 10
    """Maximum number of pairs taken from one ranking, chosen by hash; the rest are only counted."""

    two_line_files: bool = False
    """Read all files in NeMo-Aligner's format: one text per line, chosen and rejected alternating."""

    max_malformed_fraction: Fraction = 0.10
    """A file with a larger share of malformed lines (blank lines do not count) is held back as a whole."""

    max_line_bytes: PositiveInt = 16 * 2**20
    """Maximum length of a line, in bytes; longer lines are rejects."""

    max_expansion: PositiveInt = 200
    """A compressed file or table that expands to more than 64 MiB and more than this many times its size is rejected
    as a whole."""

    @property
    def uses_sample_annotations(self) -> bool:
        """Whether the built-in annotations are read."""
        return self.annotations is None

    @property
    def annotations_path(self) -> str:
        """The path, directory or glob to read."""
        return self.annotations if self.annotations is not None else str(SAMPLE / "annotations")


class ModelSettings(_Group):
    """The base model, its tokenizer and chat template, and which pairs they can take."""

    model: str | None = None
    """Model directory or Hub name; its tokenizer is used, too. Unset: a tiny model with random weights."""

    tokenizer: str | None = None
    """Tokenizer directory or Hub name. Unset: the model's."""

    chat_template: str | None = None
    """Path of a Jinja chat template, or 'plain' (prompt, empty line, reply; single-turn pairs only). Unset: the
    tokenizer's."""

    template_date: Annotated[date, DATE] = date(2025, 1, 1)
    """The date that strftime_now returns in chat templates; fixed, because snapshots must not depend on the day."""

    control_tokens: Literal["reject", "allow"] = "reject"
    """Texts that contain a control token of the tokenizer. reject: the pair is a reject; allow: leave the text
    unchanged."""

    max_length: int = Field(1024, ge=2)
    """Maximum length of either side of a pair, in tokens."""

    over_long: Literal["reject", "drop_turns"] = "reject"
    """Pairs longer than max_length. reject: they are rejects; drop_turns: the oldest turns of the prompt are dropped
    until they fit (they stay in the split of the whole prompt)."""


class EvaluationSettings(_Group):
    """Which pairs are held out, how the model is judged, and which model is promoted."""

    conflicts: Literal["drop", "majority", "keep"] = "drop"
    """Pairs that also occur with flipped labels. drop: use none of them; majority: use the more frequent direction
    (none on a draw); keep: use all."""

    evaluation_files: Annotated[dict[str, str], MAPPING, FOLDERS] = {}
    """Named evaluation sets, scored and never trained on, as JSON: name to file, directory or glob. Training prompts
    that overlap them are rejects."""

    validation_fraction: ProperFraction = 0.05
    """Share of the prompts held out to monitor training. 0: none, and no temperature is fitted."""

    test_fraction: ProperFraction = 0.10
    """Share of the prompts held out for the report. 0: none, and report, promotion and fail_below_accuracy judge by all
    pairs of evaluation_files."""

    split_seed: Annotated[str, UTF8] = "rm_assets"
    """Key of the hash that assigns prompts to splits."""

    fail_below_accuracy: float | None = Field(None, ge=0, le=1)
    """The run fails if accuracy on the test pairs is below this. Unset: an accuracy not above chance is a warning."""

    max_length_correlation: Fraction = 0.5
    """Warn if the Spearman correlation between score differences and length differences within pairs exceeds this."""

    max_rescored_pairs: PositiveInt = 2000
    """Maximum number of pairs of each held-out set, chosen by hash, that are scored again: for the report's prompt
    baselines, and by the promoted model for comparison."""

    promotion_level: float = Field(0.05, gt=0, le=1)
    """A new model is not promoted if it is less accurate than the promoted one on the same pairs and the exact
    one-sided paired test gives a p-value of at most this. 1: whenever it is less accurate."""

    promotion_requires: Annotated[list[ReportCheck], LIST] = ["accuracy_is_above_chance"]
    """Checks of the report that a model must pass to be promoted, as JSON; [] for none. accuracy_is_above_chance
    includes fail_below_accuracy."""

    promoted_model: str | None = None
    """Snapshot of reward_model to promote by hand; it stays promoted until this is unset."""

    suspect_folds: NonNegativeInt = 0
    """Number of models trained to find suspect labels; each judges prompts it was not trained on. 0: off; otherwise at
    least 2."""

    @field_validator("test_fraction")
    @classmethod
    def _leaves_pairs_to_train_on(cls, value: float, info: Any) -> float:
        if value + info.data.get("validation_fraction", 0.0) >= 1:
            raise ValueError("validation_fraction and test_fraction together must stay below 1")
        if value == 0 and not info.data.get("evaluation_files"):
            raise ValueError("without test pairs the model cannot be judged: set evaluation_files, or make it larger")
        return value

    @field_validator("suspect_folds")
    @classmethod
    def _none_or_several(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one fold would leave nothing to train on: set at least 2, or 0 for none")
        return value


class StorageSettings(_Group):
    """Where snapshots are stored, and how unchanged data is recognised."""

    storage: str = "./rm_storage"
    """Directory of all snapshots, or a URI such as s3://bucket/prefix."""

    keep_snapshots: PositiveInt = 3
    """Snapshots kept of each asset."""

    verify: Literal["stamps", "full"] = "stamps"
    """How unchanged files are recognised. stamps: annotations by size, times and inode, finished shards by file size;
    full: all by content, and damaged shards are computed again."""

    shard_bytes: PositiveInt = 32 * 2**20
    """Maximum size of a shard's text, in bytes after decompression."""

    @field_validator("storage")
    @classmethod
    def _with_the_home_directory(cls, value: str) -> str:
        return value if "://" in value else str(Path(value).expanduser())


class RunSettings(_Group):
    """How the data stages run, what the UI shows, and when runs start automatically."""

    engine: Literal["local", "ray"] = "local"
    """Where shards are computed. local: processes of this machine; ray: the Ray cluster at RAY_ADDRESS."""

    num_workers: NonNegativeInt = 0
    """Processes that compute shards. 0: one per core."""

    previews: bool | None = None
    """Show shortened text of a few rows in the UI. Unset: only for the built-in sample."""

    arrival_seconds: PositiveInt = 30
    """Interval of the sensor, in seconds; also how long a file must be unchanged before it is read."""

    refresh_attempts: PositiveInt = 3
    """How often the sensor requests a refresh of the same contents if runs fail."""

    freshness_hours: int | None = Field(None, gt=0)
    """padded_pairs and promoted_reward_model are marked in the UI if they have not been materialized for this many
    hours. Read when the definitions are loaded, so not from run config. Unset: never."""

    owners: Annotated[list[str], LIST, OWNERS] = []
    """Owners of all assets in the UI, as JSON: ["team:alignment", "ann@example.com"]. Read when the definitions are
    loaded, so not from run config."""

    train_after_pairs: PositiveInt = 100
    """Nightly training starts if at least this many pairs were added or removed since the newest model."""


class TrainingSettings(_Group):
    """The training job; changing these does not recompute data."""

    epochs: PositiveInt = 1
    """Passes over the training pairs."""

    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of AdamW, after linear warm-up and before cosine decay to zero. Unset: by model size, falling
    from 1e-4 at 10 million weights or fewer through 1e-5 at 500 million to 2e-6 at 8 billion or more; with LoRA ten
    times that, and at least 1e-4."""

    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the optimizer steps spent on linear warm-up, rounded up: at least one step, unless it is 0."""

    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay, applied to matrices only."""

    batch_pairs: PositiveInt = 64
    """Pairs per optimizer step, over all processes."""

    micro_batch_tokens: int | None = Field(None, gt=0)
    """Tokens per forward pass of one process; bounds memory and changes results only by rounding. Unset: 2048 on a
    CPU, 8192 on a GPU. Lowered automatically on a GPU with too little memory."""

    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this global L2 norm."""

    loss: Literal["plain", "margin", "scaled"] = "plain"
    """How a pair's margin enters the loss. plain: it is ignored; margin: it is subtracted from the difference of the
    scores; scaled: the loss is multiplied by it (by 1 where the annotation has none). The margin is that of
    padded_pairs: the annotation's own or, without one, the difference of its scores, which may be too large."""

    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed share of wrong labels: mixes in the flipped pair's loss with this weight."""

    center_rewards: float = Field(0.01, ge=0)
    """Weight of mean((r_chosen + r_rejected)^2), which keeps scores near zero. 0: off."""

    lora_rank: NonNegativeInt = 0
    """Rank of LoRA adapters on all linear layers, trained together with the head. 0: train all weights."""

    lora_alpha: PositiveInt = 32
    """LoRA adapters are scaled by lora_alpha / lora_rank."""

    load_in_4bit: bool = False
    """Keep the frozen base in 4 bits (NF4) under LoRA adapters while training (QLoRA): a quarter of bfloat16's memory.
    The adapters are merged into the checkpoint's own weights, and all scores of the report are those of the result."""

    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, a third more compute."""

    compile: bool | None = None
    """Compile each layer with torch.compile, which takes minutes at the start. Unset: on a GPU, if Triton and a C
    compiler are available."""

    saved_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the saved model's body; its head is always float32. bfloat16: half the size, and the precision in
    which servers then run it; all scores of the report are those of the rounded weights."""

    checkpoint_every_steps: NonNegativeInt = 0
    """Optimizer steps between checkpoints. 0: only by checkpoint_minutes."""

    checkpoint_minutes: PositiveFloat = 10.0
    """Minutes between checkpoints, from which interrupted training resumes."""

    seed: NonNegativeInt = 0
    """Seed of the head's initial weights and of the order of the pairs."""

    num_processes: PositiveInt = 1
    """Processes of the training job on each machine (torchrun), one per GPU."""

    num_nodes: PositiveInt = 1
    """Machines that train together, num_processes on each. With more than one, the run stops and names the torchrun
    command to start on each machine."""

    tracking: Literal["none", "tensorboard", "wandb"] = "none"
    """Where training curves are also written while training runs. none: nowhere else; tensorboard: event files beside
    the model; wandb: Weights & Biases."""

    @field_validator("load_in_4bit")
    @classmethod
    def _under_adapters(cls, value: bool, info: Any) -> bool:
        if value and not info.data.get("lora_rank"):
            raise ValueError("weights in 4 bits are frozen, and LoRA adapters trained over them: set lora_rank")
        return value

    def decisive(self) -> dict[str, Any]:
        """The settings that change the trained model by more than rounding, which a model's key hashes."""
        unset = {name for name in ADDED_LATER if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(exclude={*ROUNDING, *unset, "checkpoint_every_steps", "checkpoint_minutes", "tracking"})

    def rounding(self) -> dict[str, Any]:
        """The settings that change how a step is computed, and its result only by rounding."""
        return {name: getattr(self, name) for name in ROUNDING}


ROUNDING = ("micro_batch_tokens", "gradient_checkpointing", "compile", "num_processes", "num_nodes")
"""Training settings that are not part of a model's key: a finished model is not trained again because of them, and an
interrupted training continues under others."""


ADDED_LATER = ("load_in_4bit",)
"""Training settings that earlier models' keys lack. At their defaults they are left out, so that an upgrade trains
nothing again."""


class LaunchSettings(_Group):
    """Where training and scoring jobs run; nothing here changes their results."""

    launcher: Literal["local", "kubernetes", "ray"] = "local"
    """Where training jobs run. local: processes of this machine; kubernetes: a pod of the kubeconfig's cluster; ray: a
    job of the Ray cluster at RAY_API_SERVER_ADDRESS."""

    shared_storage: bool = False
    """Pods and Ray nodes see the storage directory under the same path as this machine; not needed for a storage at a
    URI."""

    num_gpus: int | None = Field(None, ge=0)
    """GPUs requested for each pod or Ray node. Unset: one per process."""

    image: str | None = None
    """Container image of the pod, with this package installed, unless pod_spec names one."""

    namespace: str | None = None
    """Kubernetes namespace of the pod. Unset: that of the pod Dagster runs in, otherwise default."""

    pod_spec: str | None = None
    """YAML file with the Kubernetes pod spec to start from: volumes, secrets, limits, node selectors."""


class PublishingSettings(_Group):
    """What is pushed to the Hugging Face Hub. The token is `HF_TOKEN`, or that of `hf auth login`."""

    publish_model_to: Annotated[str | None, HUB_NAME] = None
    """Model repository (owner/name) that gets each promoted model. Unset: none."""

    publish_data_to: Annotated[str | None, HUB_NAME] = None
    """Dataset repository (owner/name) that gets the validated_preferences of the promoted model, without the evaluation
    sets. Unset: none."""

    publish_private: bool = True
    """Repositories must be private, and new ones are created private. false: new ones are created public, existing ones
    stay as they are."""

    publish_license: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9.+-]*$")
    """License that the cards state, as the Hub spells it: apache-2.0, cc-by-4.0, other. Unset: none."""


class Settings(AnnotationSettings, ModelSettings, EvaluationSettings, StorageSettings, RunSettings, PublishingSettings):
    """All settings; those of jobs are in `training` and `launch`."""

    training: TrainingSettings = TrainingSettings()
    launch: LaunchSettings = LaunchSettings()

    @property
    def publishes(self) -> bool:
        """Whether anything is pushed to the Hub."""
        return bool(self.publish_model_to or self.publish_data_to)

    @property
    def shows_previews(self) -> bool:
        """Whether shortened text of rows may appear in the UI."""
        return self.uses_sample_annotations if self.previews is None else self.previews


GROUPS: Mapping[str, type[BaseModel]] = {
    "Annotations": AnnotationSettings,
    "Model": ModelSettings,
    "Evaluation": EvaluationSettings,
    "Storage": StorageSettings,
    "Running": RunSettings,
    "Training": TrainingSettings,
    "Launching": LaunchSettings,
    "Publishing": PublishingSettings,
}
"""Title of each group of settings, in reading order."""


def setting_fields() -> Iterator[tuple[str, FieldInfo]]:
    """Every setting's name and declaration, in the order of this file."""
    for group in GROUPS.values():
        yield from group.model_fields.items()
