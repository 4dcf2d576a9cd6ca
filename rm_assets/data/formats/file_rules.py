"""Which `columns` and `labels` of the settings apply to a file: those of a glob that matches it, else the others.

A matching glob replaces the general entries; of several globs the longest counts. A glob is matched against a file's
source, as rejects show it, and its `*` also matches `/`.
"""

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from rm_assets.data.formats.preferences import ParsingRules
from rm_assets.data.sources.evaluation_sets import evaluation_name
from rm_assets.json_settings import is_glob
from rm_assets.settings import Settings


def rules_of_file(settings: Settings, source: str) -> ParsingRules:
    """The settings that decide what a row of this file states; they are part of the keys of its shards."""
    columns, _ = _entries(settings.columns, source)
    labels, labels_are_own = _entries(settings.labels, source)
    return ParsingRules(
        columns={name: column for name, column in columns.items() if isinstance(column, str)},  # type: ignore[misc]
        labels={label: meaning for label, meaning in labels.items() if isinstance(meaning, str)},  # type: ignore[misc]
        labels_are_own=labels_are_own,
        column_labels={name: meanings for name, meanings in labels.items() if isinstance(meanings, dict)},
        annotators=settings.annotators,
        max_pairs_per_prompt=settings.max_pairs_per_prompt,
        two_line_files=settings.two_line_files,
        is_evaluation=bool(evaluation_name(source)) or msgspec.UNSET,
    )


def rules_of_row(row: Mapping[str, Any], rules: ParsingRules) -> ParsingRules:
    """The rules with those own columns that a row has. Where one is that of `label`, others have no flat labels."""
    columns = {name: column for name, column in rules.columns.items() if column in row}
    is_another = "label" in rules.columns and "label" not in columns
    return msgspec.structs.replace(rules, columns=columns, labels={} if is_another else rules.labels)


def globs_without_files(settings: Settings, sources: Collection[str]) -> list[str]:
    """The globs in `columns` and `labels` that name no file, such as `labels 'shp/*'`."""
    return [
        f"{name} {glob!r}"
        for name, setting in (("columns", settings.columns), ("labels", settings.labels))
        for glob in sorted(_globs(setting))
        if not any(fnmatchcase(source, glob) for source in sources)
    ]


def _entries(setting: Mapping[str, Any], source: str) -> tuple[Mapping[str, Any], bool]:
    """The entries of a setting for a file, and whether they come from a glob."""
    globs = _globs(setting)
    if matching := [glob for glob in globs if fnmatchcase(source, glob)]:
        return setting[max(matching, key=lambda glob: (len(glob), glob))], True
    return {name: value for name, value in setting.items() if name not in globs}, False


def _globs(setting: Mapping[str, Any]) -> set[str]:
    return {name for name, value in setting.items() if isinstance(value, dict) and is_glob(name)}
