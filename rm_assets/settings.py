"""Every knob of the project, declared once with its unit and meaning.

Names are unique over all classes, so that `RM_EPOCHS` needs no prefix of its group. Where their values come from stands
in `rm_assets.settings_loading`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

SAMPLE = Path(__file__).parent / "sample"
PLAIN_TEMPLATE = "plain"
_TOO_LARGE = 2**63


Column = Literal[
    "prompt",
    "system",
    "chosen",
    "rejected",
    "margin",
    "score_chosen",
    "score_rejected",
    "subset",
    "tools",
    "response_a",
    "response_b",
    "label",
    "preference_strength",
    "responses",
    "scores",
    "ranks",
]
"""The fields of flat files, which may have other names there."""

Label = Literal["first", "second", "tie"]
"""What a label of a comparison can mean."""

Annotators = Literal["majority", "each"]
"""What several annotators of one row state: one pair, or a pair each."""


ReportCheck = Literal[
    "accuracy_is_above_chance", "model_beats_length", "model_needs_the_prompt", "scores_do_not_follow_length"
]
"""The checks of a model's report."""


class SettingsError(ValueError):
    """A setting that cannot be used. The message names the setting and says what to do."""


def _below_the_largest(value: Any) -> Any:
    """What libraries count with: no setting needs more."""
    if isinstance(value, int) and value >= _TOO_LARGE:
        raise ValueError("it must be below 2**63")
    return value


class TrainingSettings(BaseModel):
    """What only the training job reads: a change of these costs no data work."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    epochs: int = Field(1, ge=1, description="Passes over the training pairs.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate of AdamW, reached after the warm-up; a cosine takes it to zero. Unset: by the "
        "model's size, from 1e-4 below 100 million weights to 2e-6 from 5 billion on, and ten times that with LoRA.",
    )
    warmup_fraction: float = Field(
        0.05, ge=0, lt=1, description="Share of the optimizer steps spent on linear warm-up."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay, on matrices only.")
    batch_pairs: int = Field(64, ge=1, description="Pairs per optimizer step, over all processes.")
    micro_batch_tokens: int = Field(
        8192,
        ge=1,
        description="Tokens per forward pass of one process; bounds memory, not results. A GPU with too little memory "
        "takes fewer.",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this global L2 norm.")
    loss: Literal["margin", "plain", "scaled"] = Field(
        "margin",
        description="What a pair's margin does: the scores must differ by more than it, nothing, or the pair's loss is "
        "multiplied by it (by 1 where the annotation gives none).",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Share of the labels taken to be wrong: this much of each loss is that of the pair turned round.",
    )
    center_rewards: float = Field(
        0.01,
        ge=0,
        description="Weight of mean((r_chosen + r_rejected)^2), which keeps scores near zero; 0 turns it off.",
    )
    lora_rank: int = Field(
        0, ge=0, description="Rank of LoRA adapters on all linear layers, trained with the head; 0 trains all weights."
    )
    lora_alpha: int = Field(32, ge=1, description="Adapters are scaled by this over their rank.")
    gradient_checkpointing: bool = Field(
        False, description="Compute each layer again in the backward pass: less memory, a third more work."
    )
    compile: bool | None = Field(
        None,
        description="Compile each layer (torch.compile), which takes minutes at the start; unset: on a GPU, where "
        "Triton and a C compiler are.",
    )
    checkpoint_every_steps: int = Field(
        0, ge=0, description="Optimizer steps between two checkpoints; 0: by checkpoint_minutes alone."
    )
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="Minutes between two checkpoints, from which a stopped training goes on."
    )
    seed: int = Field(0, ge=0, description="Seed of the head's initial weights and of the order of the pairs.")
    num_processes: int = Field(
        1, ge=1, description="Processes of the training job on each machine (torchrun); one per GPU."
    )
    num_nodes: int = Field(
        1,
        ge=1,
        description="Machines that train together, each with num_processes; with several, the run stops and names the "
        "torchrun command to start on each.",
    )
    tracking: Literal["none", "tensorboard", "wandb"] = Field(
        "none", description="Where the curves of a training also go while it runs."
    )

    _of_bounded_size = field_validator("*")(_below_the_largest)

    def decisive(self) -> dict[str, Any]:
        """The settings that change the trained model, if only by rounding: all but those of saving and showing.

        One node, the default, goes unnamed: models had no nodes before, and theirs keep their keys. So do those whose
        layers were compiled only where that was asked for: unset is named as that.
        """
        decisive = self.model_dump(exclude={"checkpoint_every_steps", "checkpoint_minutes", "tracking"})
        decisive["compile"] = bool(self.compile)
        if self.num_nodes == 1:
            del decisive["num_nodes"]
        return decisive


class LaunchSettings(BaseModel):
    """Where the jobs of training and scoring run: nothing here changes what they make."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    launcher: Literal["local", "kubernetes", "ray"] = Field(
        "local",
        description="Where training jobs run: processes of this machine, a pod of the kubeconfig's cluster, or a job "
        "of the Ray cluster of RAY_API_SERVER_ADDRESS.",
    )
    shared_storage: bool = Field(
        False,
        description="Says that pods and Ray nodes see the storage directory under the path that it has here; a storage "
        "at a URI needs no saying.",
    )
    num_gpus: int | None = Field(None, ge=0, description="GPUs asked of each pod or Ray node; unset: one per process.")
    image: str | None = Field(
        None, description="Container image of the pod, with this package, where pod_spec names none."
    )
    namespace: str | None = Field(
        None, description="Kubernetes namespace of the pod; unset: that of this pod, else default."
    )
    pod_spec: str | None = Field(
        None,
        description="YAML file of a Kubernetes pod spec that the pod is made from: volumes, secrets, limits, node "
        "selectors.",
    )

    _of_bounded_size = field_validator("*")(_below_the_largest)


class Settings(BaseModel):
    """What to read, with which tokenizer and model, where to store, and where each stage draws its line."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    annotations: str | None = Field(
        None,
        description="File, directory or glob of lines of JSON (.jsonl, .ndjson, .jsonlines, .json) or JSON lists of "
        "rows (.json), of Parquet, CSV or TSV files, also as .gz or .zst and at a URI such as s3://bucket/prefix; "
        "unset: the built-in sample.",
    )
    storage: str = Field("./rm_storage", description="Directory of all snapshots, or a URI such as s3://bucket/prefix.")
    model: str | None = Field(
        None,
        description="Model directory or Hub name, with its own tokenizer; unset: a tiny one with random weights.",
    )
    tokenizer: str | None = Field(None, description="Tokenizer directory or Hub name; unset: the model's.")
    chat_template: str | None = Field(
        None,
        description="Path of a Jinja chat template, or 'plain' (prompt, empty line, reply; single-turn pairs only). "
        "Unset: the tokenizer's.",
    )
    template_date: date = Field(
        date(2025, 1, 1),
        description="What strftime_now tells a chat template, so that a rendering never depends on the day.",
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="Where shards are computed: processes of this machine, or the Ray cluster of RAY_ADDRESS."
    )
    num_workers: int = Field(0, ge=0, description="Processes that compute shards; 0: one per core.")
    shard_bytes: int = Field(
        32 * 2**20, ge=1, description="Largest text of a shard, in bytes of the decompressed file."
    )
    verify: Literal["stamps", "full"] = Field(
        "stamps",
        description="How unchanged files are known. stamps: annotations by size, times and inode, finished shards by "
        "the sizes of their files; full: all by their content, and shards that are damaged are computed again.",
    )
    max_line_bytes: int = Field(
        16 * 2**20,
        ge=1,
        description="Longer lines, in bytes, are rejects; if longer than a shard, too, never held whole.",
    )
    max_expansion: int = Field(
        200,
        ge=1,
        description="A compressed file or table that expands to more than 64 MiB and more than this many times its "
        "size is rejected whole.",
    )
    max_malformed_fraction: float = Field(
        0.10,
        ge=0,
        le=1,
        description="A file with a larger share of malformed non-blank lines is held back whole.",
    )
    columns: dict[str, str | dict[str, str]] = Field(
        {},
        description='Own names of fields, in JSON: {"prompt": "query", "chosen": "winner"} reads these columns; '
        '{"shp/*": {"prompt": "history"}} those of the files that a glob names.',
    )
    labels: dict[str, str | dict[str, Any]] = Field(
        {},
        description='What own labels of comparisons mean, in JSON: {"0": "first", "1": "second", "2": "tie"}; of one '
        'column {"winner": {"0": "first"}}, of the files that a glob names {"shp/*": {"0": "first"}}.',
    )
    annotators: Annotators = Field(
        "majority",
        description="Rows that several annotators judged: one pair by more than half of them (else a tie), or a pair "
        "of each of them.",
    )
    max_pairs_per_prompt: int = Field(
        10, ge=1, description="Pairs taken of one ranking, drawn by hash; the others are counted."
    )
    control_tokens: Literal["reject", "allow"] = Field(
        "reject",
        description="Text that contains one of the tokenizer's control tokens: a reject, or left as it is.",
    )
    max_length: int = Field(1024, ge=2, description="Longest side of a pair, in tokens.")
    over_long: Literal["reject", "drop_turns"] = Field(
        "reject",
        description="Over-long pairs: rejects, or shortened by the oldest turns of the prompt; they stay in the "
        "split of the whole prompt.",
    )
    conflicts: Literal["drop", "majority", "keep"] = Field(
        "drop",
        description="Pairs that also stand with the labels the other way round: take none of them, those of the "
        "majority (none if there are as many of each), or all.",
    )
    two_line_files: bool = Field(
        False,
        description="Read all files as NeMo-Aligner's: one text a line, the chosen and the rejected side in turns.",
    )
    evaluation_files: dict[str, str] = Field(
        {},
        description="Named sets of pairs that are scored and never trained on, name to path, directory or glob, in "
        "JSON; training prompts that overlap them are rejects.",
    )
    validation_fraction: float = Field(0.05, gt=0, lt=1, description="Share of the prompts held out to watch training.")
    test_fraction: float = Field(0.10, gt=0, lt=1, description="Share of the prompts held out for the report.")
    split_seed: str = Field("rm_assets", description="Key of the hash that assigns prompts to splits.")
    previews: bool | None = Field(
        None, description="Show shortened text of a few rows in the UI; unset: only for the built-in sample."
    )
    keep_snapshots: int = Field(3, ge=1, description="Snapshots kept of each asset.")
    arrival_seconds: int = Field(
        30,
        ge=1,
        description="Seconds between two looks of the sensor, and for which an annotation file must have stood still.",
    )
    refresh_attempts: int = Field(
        3, ge=1, description="How often the sensor asks for a refresh of the same contents, where runs of it fail."
    )
    train_after_pairs: int = Field(
        100, ge=1, description="Pairs that must have changed since the newest model for the nightly training to start."
    )
    fail_below_accuracy: float | None = Field(
        None, ge=0, le=1, description="Held-out accuracy below this fails the run; unset: it only warns."
    )
    max_length_correlation: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Warn where scores follow length: largest Spearman correlation of their differences within pairs.",
    )
    max_rescored_pairs: int = Field(
        2000,
        ge=1,
        description="Pairs of each held-out set, drawn by hash, that are scored anew: for the report's prompt "
        "baselines, and by the promoted model.",
    )
    promotion_level: float = Field(
        0.05,
        gt=0,
        le=1,
        description="A new model is not promoted where it is right less often than the promoted one on the same pairs, "
        "with a p-value of the exact paired test of at most this; 1: wherever it is right less often.",
    )
    promotion_requires: list[ReportCheck] = Field(
        ["accuracy_is_above_chance"],
        description="Checks of the report without which no model is promoted, in JSON; [] for none. "
        "accuracy_is_above_chance includes fail_below_accuracy.",
    )
    promoted_model: str | None = Field(
        None, description="Snapshot of reward_model that is promoted by hand, whatever a newer one gives."
    )
    suspect_folds: int = Field(
        0,
        ge=0,
        description="Models trained to find suspect labels, each without the prompts that it judges; 0: off, else two "
        "or more.",
    )
    training: TrainingSettings = TrainingSettings()
    launch: LaunchSettings = LaunchSettings()

    _of_bounded_size = field_validator("*")(_below_the_largest)

    @field_validator("split_seed")
    @classmethod
    def _can_be_hashed(cls, value: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("it must be UTF-8 text") from None
        return value

    @field_validator("evaluation_files")
    @classmethod
    def _names_that_can_be_folders(cls, value: dict[str, str]) -> dict[str, str]:
        known: dict[str, str] = {}
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?", name):
                raise ValueError(
                    f"the name {name!r} must be at most 100 letters, digits, '.', '_' and '-', the first a letter or "
                    "digit and the last not '.'"
                )
            if (other := known.setdefault(name.lower(), name)) != name:
                raise ValueError(f"the names {other!r} and {name!r} differ in case alone: rename one of these sets")
        return value

    @field_validator("suspect_folds")
    @classmethod
    def _none_or_several(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one fold would leave nothing to train on: 0 is off, else at least 2")
        return value

    @field_validator("storage")
    @classmethod
    def _home_of_the_user(cls, value: str) -> str:
        return value if "://" in value else str(Path(value).expanduser())

    @field_validator("test_fraction")
    @classmethod
    def _leaves_pairs_to_train_on(cls, value: float, info: Any) -> float:
        if value + info.data.get("validation_fraction", 0.0) >= 1:
            raise ValueError("validation_fraction and test_fraction together must stay below 1")
        return value

    @field_validator("promotion_requires", mode="before")
    @classmethod
    def _list_from_json(cls, value: Any) -> Any:
        """The environment gives a list as JSON text."""
        try:
            return json.loads(value) if isinstance(value, str) else value
        except json.JSONDecodeError:
            raise ValueError('a JSON list is needed, such as ["accuracy_is_above_chance"]') from None

    @field_validator("columns", "labels", "evaluation_files", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        """The environment gives a mapping as JSON text."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value, object_pairs_hook=_object_of)
        except json.JSONDecodeError:
            raise ValueError('a JSON object is needed, such as {"name": "value"}') from None

    @field_validator("columns")
    @classmethod
    def _names_each_column_once(cls, value: dict[str, str | dict[str, str]]) -> dict[str, str | dict[str, str]]:
        of_files = {name: columns for name, columns in value.items() if is_glob(name)}
        others = {name: column for name, column in value.items() if name not in of_files}
        for columns in (others, *of_files.values()):
            _require_columns(columns)
        return value

    @field_validator("labels")
    @classmethod
    def _as_labels_are_compared(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _read_labels(value, "labels")

    @property
    def uses_sample_annotations(self) -> bool:
        """Whether the built-in annotations are read."""
        return self.annotations is None

    @property
    def annotations_path(self) -> str:
        """The path, directory or glob to read."""
        return self.annotations if self.annotations is not None else str(SAMPLE / "annotations")

    @property
    def shows_previews(self) -> bool:
        """Whether shortened text of rows may appear in the UI."""
        return self.uses_sample_annotations if self.previews is None else self.previews


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; raises ValueError where one name would lose its value to another."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if found.setdefault(name, value) != value:
            raise ValueError(f"{name!r} is given twice, with different values: keep one of them")
    return found


_FILE = re.compile(r"[*?\[/]|\.(?:jsonl?|ndjson|jsonlines|csv|tsv|parquet)(?:\.\w+)?$", re.IGNORECASE)


def is_glob(name: str) -> bool:
    """Whether a name in `columns` or `labels` is a glob of files: it has `*`, `?`, `[` or `/`, or a file's suffix."""
    return _FILE.search(name) is not None


def _require_columns(columns: Any) -> None:
    """Raise ValueError unless this is a flat mapping of fields to columns, each of them once."""
    if not isinstance(columns, dict):
        raise ValueError('a glob of files needs a mapping of its own: {"shp/*": {"prompt": "history"}}')
    known = get_args(Column)
    for name, column in columns.items():
        if name not in known:
            fields = ", ".join(map(repr, known))
            raise ValueError(f"Input should be {fields} or, outermost, a glob of files such as 'shp/*', not {name!r}")
        if not isinstance(column, str):
            raise ValueError(f"{name!r} needs the name of a column: only a glob of files has a mapping")
    if "" in columns.values() or len(set(columns.values())) < len(columns):
        raise ValueError("each field needs a column of its own")


def _read_labels(labels: Mapping[Any, Any], place: Literal["labels", "glob", "column"]) -> dict[str, Any]:
    """Labels as they are compared, those of columns and globs too; raises ValueError where one has no meaning.

    Columns stand outermost or in a glob, globs outermost alone.
    """
    found: list[tuple[str, Any]] = []
    for name, meaning in labels.items():
        if isinstance(meaning, Mapping):
            inner: Literal["glob", "column"] = "glob" if is_glob(name) else "column"
            if place == "column" or inner == place:
                raise ValueError(f"{name!r} is a mapping inside a {place}: globs hold columns, and columns hold labels")
            found.append((name, _read_labels(meaning, inner)))
        elif meaning in get_args(Label):
            found.append((str(name).strip().lower(), meaning))
        else:
            raise ValueError(f"{name!r}: Input should be 'first', 'second' or 'tie', or a mapping of a column or glob")
    return _object_of(found)


def setting_fields() -> Iterator[tuple[str, FieldInfo]]:
    """Every setting with its declaration, flat, in the order of this file."""
    for model in (Settings, TrainingSettings, LaunchSettings):
        for name, field in model.model_fields.items():
            if name not in ("training", "launch"):
                yield name, field
