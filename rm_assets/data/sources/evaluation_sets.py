"""Evaluation files: pairs that are scored but never trained on.

Their sources begin with `evaluation:<name>/`. Sources of annotation files never do (`discovery.source_name` escapes the
colon). The name of a set contains no slash.
"""

import dataclasses
from pathlib import Path

from rm_assets.data.sources.discovery import EVALUATION_PREFIX, SETTING, AnnotationFile, Annotations, find_annotations
from rm_assets.settings import SettingsError

FOLDER = "evaluation"
"""The folder of the evaluation sets in padded_pairs."""


def find_evaluation_files(evaluation_files: dict[str, str], storage: Path) -> list[AnnotationFile]:
    """The files of all evaluation sets, sources prefixed by the set's name; raises SettingsError."""
    return [
        dataclasses.replace(file, source=f"{EVALUATION_PREFIX}{name}/{file.source}")
        for name, setting in sorted(evaluation_files.items())
        for file in _find(name, setting, storage).files
    ]


def _find(name: str, path: str, storage: Path) -> Annotations:
    try:
        return find_annotations(path, storage)
    except SettingsError as error:
        setting = f"evaluation_files (or RM_EVALUATION_FILES), {name!r},"
        raise SettingsError(str(error).replace(SETTING, setting, 1)) from None


def evaluation_name(source: str) -> str:
    """The evaluation set that a source belongs to; empty for annotations."""
    is_marked = source.startswith(EVALUATION_PREFIX)
    return source.removeprefix(EVALUATION_PREFIX).split("/", 1)[0] if is_marked else ""


def evaluation_folder(source: str) -> str:
    """The folder of an evaluation set in padded_pairs; empty for annotations."""
    name = evaluation_name(source)
    return f"{FOLDER}/{name}" if name else ""
