"""Finds the value of every setting, and explains values that cannot be used.

The first of these wins: Dagster config, the environment variable `RM_<NAME>`, the sample's own training settings (only
while annotations, model and tokenizer are the built-in ones), the default.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, get_args

from pydantic import ValidationError

from rm_assets.addresses import SERVERS, mask_credentials, require_no_credentials
from rm_assets.settings import SAMPLE, LaunchSettings, Settings, SettingsError, TrainingSettings, setting_fields

PREFIX = "RM_"


def load_settings(overrides: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Load all settings. `overrides` (flat, by name) take precedence over the environment; None there means not given.

    Raises SettingsError for an unknown or empty `RM_*` variable, an unknown name, a value out of range, or an address
    with credentials in it.
    """
    given = _from_environment(environment)
    given |= {name: value for name, value in overrides.items() if value is not None}
    _require_known(given, "setting {!r}")
    for name, value in given.items():
        if isinstance(value, str) and not value.strip():
            raise SettingsError(f"{name} is set but empty: unset {PREFIX}{name.upper()}, or give it a value")
        if isinstance(value, str) and "\0" in value:
            raise SettingsError(f"{name} (or {PREFIX}{name.upper()}) holds a null character: remove it")
        require_no_credentials(f"{name} (or {PREFIX}{name.upper()})", _with_parsed_json(value))
    for name in SERVERS:
        require_no_credentials(name, environment.get(name))
    if given.get("annotations") is None and given.get("model") is None and given.get("tokenizer") is None:
        given = json.loads((SAMPLE / "training.json").read_text()) | given
    training = {name: given.pop(name) for name in list(given) if name in TrainingSettings.model_fields}
    launch = {name: given.pop(name) for name in list(given) if name in LaunchSettings.model_fields}
    try:
        settings = Settings(**given, training=TrainingSettings(**training), launch=LaunchSettings(**launch))
    except ValidationError as error:
        raise SettingsError("; ".join(_describe_problems(error, given | training | launch))) from None
    _refuse_jobs_out_of_reach(settings)
    return settings


def without_none(annotation: Any) -> Any:
    """The type of a setting's values, without None where that means unset."""
    is_union = isinstance(annotation, UnionType)
    return next(part for part in get_args(annotation) if part is not NoneType) if is_union else annotation


def _with_parsed_json(value: Any) -> Any:
    """A value, together with the mapping or list that it encodes as JSON: an escape in JSON could hide an address."""
    try:
        return [value, json.loads(value)] if isinstance(value, str) and value.lstrip().startswith(("{", "[")) else value
    except (ValueError, RecursionError):
        return [value, re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), value).replace("\\/", "/")]


def _refuse_jobs_out_of_reach(settings: Settings) -> None:
    """Raise SettingsError where the launcher's machines could not read the storage, or could not train together."""
    launch, num_nodes, is_uri = settings.launch, settings.training.num_nodes, "://" in settings.storage
    where = f"launcher (or {PREFIX}LAUNCHER) is {launch.launcher!r}"
    if is_uri and num_nodes > 1:
        raise SettingsError(
            f"num_nodes is {num_nodes!r}, storage is {settings.storage!r}: nodes write a checkpoint together, into a "
            "directory that all of them see"
        )
    if launch.launcher == "local":
        return
    if not is_uri and not launch.shared_storage:
        raise SettingsError(
            f"{where}, storage is {settings.storage!r}, a directory of this machine: give a URI such as "
            f"s3://bucket/prefix, or set shared_storage (or {PREFIX}SHARED_STORAGE) where its machines see this path"
        )
    if launch.launcher == "kubernetes" and not launch.image and not launch.pod_spec:
        raise SettingsError(f"{where}: image (or {PREFIX}IMAGE) must name a container image with this package in it")


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    given = {name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
    _require_known(given, "environment variable " + PREFIX + "{}", str.upper)
    return given


def _require_known(given: Mapping[str, Any], what: str, spelled: Any = str) -> None:
    names = [name for name, _ in setting_fields()]
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {what.format(spelled(close[0]))}?" if close else f"known are {', '.join(names)}"
            raise SettingsError(f"unknown {what.format(spelled(name))}: {hint}")


def _describe_problems(error: ValidationError, given: Mapping[str, Any]) -> Iterator[str]:
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else "settings"
        what = problem["msg"].removeprefix("Value error, ")  # pydantic's, before the text of a validator
        yield f"{name} (or {PREFIX}{name.upper()}) is {mask_credentials(repr(given.get(name)))}: {what}"
