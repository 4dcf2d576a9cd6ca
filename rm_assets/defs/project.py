"""The resource `project` of all assets: the settings, and the files they name, checked before any work."""

import contextlib
import enum
import functools
import json
import os
from dataclasses import dataclass
from datetime import date, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import dagster as dg
from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from rm_assets.data.chat.model_files import (
    ModelFiles,
    TokenizerFiles,
    find_base_model,
    find_tokenizer,
    named_model,
    toy_model,
)
from rm_assets.data.chat.tokenizer import load_chat_tokenizer
from rm_assets.data.sources.remote import require_reachable
from rm_assets.data.stages.identities import stage_identities
from rm_assets.data.storage.files import StorageError, is_remote, resolve_path
from rm_assets.data.storage.ownership import require_own_storage
from rm_assets.data.storage.snapshots import Snapshot, parent_snapshot, required_snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.display_text import as_code_cell, shorten
from rm_assets.settings import GROUPS, Settings, SettingsError
from rm_assets.settings_loading import PREFIX, load_settings, without_none


@dataclass(frozen=True, kw_only=True)
class Project:
    """The settings, with the tokenizer and the model they name."""

    settings: Settings
    tokenizer: TokenizerFiles
    model: ModelFiles
    warnings: tuple[str, ...] = ()

    @property
    def storage(self) -> Path:
        """The directory of all snapshots."""
        return resolve_path(self.settings.storage)

    def snapshot(self, stage: Stage) -> Snapshot:
        """A stage's newest snapshot; raises SnapshotError if it was made with other settings."""
        return required_snapshot(self.storage, stage, stage_identities(self.settings, self.tokenizer)[stage])

    def ancestor(self, snapshot: Snapshot, stage: Stage) -> Snapshot:
        """The snapshot of an earlier stage from which another one was made, by the inputs in each manifest."""
        stages = list(Stage)
        for earlier in reversed(stages[stages.index(stage) : stages.index(Stage(snapshot.manifest.asset))]):
            snapshot = parent_snapshot(self.storage, snapshot, earlier)
        return snapshot


class _ProjectResource(dg.ConfigurableResource):
    def settings(self) -> Settings:
        """The settings in force; raises SettingsError."""
        overrides = {name: _plain(value) for name, value in self.model_dump().items() if value is not None}
        return load_settings(overrides, os.environ)

    def ready(self) -> Project:
        """Settings, tokenizer and model; raises SettingsError if one of them cannot be used.

        The model comes first: a file that is wrong for both is named as the model's.
        """
        settings = self.settings()
        _require_packages(settings)
        base = find_base_model(settings)
        if base is not None:
            with named_model(str(settings.model)):
                _require_trainable(base, settings.max_length)
        tokenizer = find_tokenizer(settings)
        model = base or toy_model(tokenizer)
        warnings = _spare_ids(tokenizer, model.vocab_size)
        _require_usable(settings.storage)
        _require_token(settings)
        return Project(settings=settings, tokenizer=tokenizer, model=model, warnings=warnings)


def _require_packages(settings: Settings) -> None:
    """Raise SettingsError if a training job on this machine would lack a package that is installed by an extra."""
    training = settings.training
    if settings.launch.launcher != "local" or training.num_nodes > 1:
        return
    needed = {"lora_rank": ("peft", "lora"), "load_in_4bit": ("bitsandbytes", "4bit")}
    if training.tracking != "none":
        needed["tracking"] = (training.tracking, training.tracking)
    for name, (package, extra) in needed.items():
        if (value := getattr(training, name)) and find_spec(package) is None:
            raise SettingsError(
                f"{name} (or {PREFIX}{name.upper()}) is {value!r}, which needs {package}: pip install "
                f"'rm_assets[{extra}]'"
            )


@functools.lru_cache(maxsize=8)
def _require_trainable(base: ModelFiles, max_length: int) -> None:
    """Raise SettingsError if the model cannot become a reward model; its files, which are checked, are its identity."""
    from rm_assets.training.model.reward_model import check_base_model

    check_base_model(Path(base.directory), max_length)


def _spare_ids(files: TokenizerFiles, num_embeddings: int) -> tuple[str, ...]:
    """A warning if a tokenizer has more ids than the model has embeddings; no text may then have one of these ids.

    Raises SettingsError if every conversation would: the padding token, or one that the template writes, is among them.
    """
    if files.num_tokens <= num_embeddings:
        return ()
    chat = load_chat_tokenizer(files)
    ids = f"the tokenizer has ids up to {files.num_tokens - 1}, the model only {num_embeddings} embeddings"
    for what, numbers in (("the padding token", [chat.pad_token_id]), ("a token of the template", chat.template_ids)):
        if (number := max(numbers)) >= num_embeddings:
            token = chat.reference.convert_ids_to_tokens(number)
            raise SettingsError(
                f"{ids}, and {what}, {token!r}, has id {number}: set tokenizer (or RM_TOKENIZER) to the model's own, "
                "or resize the model's embeddings (resize_token_embeddings)"
            )
    return (f"{ids}: a pair with one of the ids beyond stops the training job",)


def _require_token(settings: Settings) -> None:
    """Raise SettingsError if something is to be pushed to the Hub, and this machine has no token."""
    if settings.publishes:
        from huggingface_hub import get_token

        if not get_token():
            name = "publish_model_to" if settings.publish_model_to else "publish_data_to"
            raise SettingsError(
                f"{name} (or {PREFIX}{name.upper()}) is set, but there is no Hugging Face token: set HF_TOKEN "
                "to one with write access, or log in with `hf auth login`"
            )


def _require_usable(setting: str) -> None:
    """Raise SettingsError unless the storage can be reached and written, and holds no foreign files."""
    try:
        storage = resolve_path(setting)
        if is_remote(storage):
            require_reachable(storage)
        else:
            _require_writable(storage)
        require_own_storage(storage)
    except (StorageError, OSError) as error:
        raise SettingsError(f"storage (or RM_STORAGE): {error}") from None


def _require_writable(storage: Path) -> None:
    existing = next(path for path in (storage.absolute(), *storage.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise SettingsError(
            f"storage (or RM_STORAGE) is {str(storage)!r}: {str(existing)!r} is not a writable directory"
        )


def _plain(value: Any) -> Any:
    """A value of Dagster config as the settings take it."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, enum.Enum) else value


def _config_type(name: str, annotation: Any) -> Any:
    """A setting's type in Dagster config: choices are enums, which the launchpad lists, and dates are strings."""
    annotation = without_none(annotation)
    if get_origin(annotation) is dict and annotation != dict[str, str]:
        return dict[str, Any]  # whose values may be mappings
    if get_origin(annotation) is list:
        return list[_config_type(name, get_args(annotation)[0])]  # type: ignore[misc]
    if get_origin(annotation) is Literal:
        return enum.Enum(f"{name}_choices", {choice: choice for choice in get_args(annotation)})
    return str if annotation is date else annotation


def owners() -> list[str] | None:
    """The owners of all assets, by the environment; None without any."""
    return _IN_FORCE.get("owners") or None


def freshness_policy() -> dg.FreshnessPolicy | None:
    """The policy of assets that should never be old; None unless the environment sets freshness_hours."""
    hours = _IN_FORCE.get("freshness_hours")
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=hours)) if hours else None


def _values_in_force() -> dict[str, Any]:
    """The value of each setting in the environment of this process; none if that is not valid, which runs report."""
    with contextlib.suppress(SettingsError):
        settings = load_settings({}, os.environ)
        return dict(settings) | dict(settings.training) | dict(settings.launch)
    return {}


def _description(group: str, name: str, field: FieldInfo) -> str:
    """A setting's group, meaning and default, and its value where it is not given, if that is another.

    The launchpad sorts all settings by name, so the group is named here.
    """
    text = f"[{group}] {' '.join((field.description or '').split())}"
    text += f" Environment variable: {PREFIX}{name.upper()}. Default: {_shown(field.default)}."
    value = _IN_FORCE.get(name, field.default)
    return text if value == field.default else f"{text} Now: {_shown(value)}."


def _overview() -> str:
    """The page of the resource: the value of each setting where the launchpad gives none, by group, as Markdown."""
    lines = ["Every setting, with the value that runs use unless the launchpad or `--config` gives another one."]
    for group, settings in GROUPS.items():
        lines += ["", f"**{group}**: {_lower_first(settings.__doc__ or '')}", "", "| setting | value | default |"]
        lines += ["|---|---|---|"]
        for name, field in settings.model_fields.items():
            value, default = (as_code_cell(_shown(v)) for v in (_IN_FORCE.get(name, field.default), field.default))
            lines.append(f"| {name} | {value if value == default else f'**{value}**'} | {default} |")
    return "\n".join(lines)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _shown(value: Any) -> str:
    """A value as it is written in YAML."""
    if value is None:
        return "unset"
    return shorten(json.dumps(value, ensure_ascii=False) if isinstance(value, bool | dict | list) else str(value))


_IN_FORCE = _values_in_force()


# Each setting is declared once, in rm_assets.settings; this makes typed Dagster config of the declarations.
ProjectResource: Any = create_model(  # type: ignore[call-overload]
    "ProjectResource",
    __base__=_ProjectResource,
    __module__=__name__,
    __doc__=_overview(),
    **{
        name: (
            _config_type(name, field.annotation) | None,
            Field(default=None, description=_description(group, name, field)),
        )
        for group, settings in GROUPS.items()
        for name, field in settings.model_fields.items()
    },
)
