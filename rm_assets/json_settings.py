"""Parsing of settings given as JSON, and validation of their values."""

import functools
import json
import re
from collections.abc import Mapping
from datetime import date
from typing import Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator

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
"""The fields of flat rows, which `columns` may rename."""

Label = Literal["first", "second", "tie"]
"""What the label of a comparison can mean."""

_FILE = re.compile(r"[*?\[/]|\.(?:jsonl?|ndjson|jsonlines|csv|tsv|parquet)(?:\.\w+)?$", re.IGNORECASE)
_OWNER = re.compile(r"team:.+|[A-Za-z0-9._+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}")


def is_glob(name: str) -> bool:
    """Whether a name in `columns` or `labels` is a glob of files: it has `*`, `?`, `[` or `/`, or a file's suffix."""
    return _FILE.search(name) is not None


def _mapping_from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=_unique_dict)
    except json.JSONDecodeError:
        raise ValueError('a JSON object is needed, such as {"name": "value"}') from None


def _list_from_json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        raise ValueError('a JSON list is needed, such as ["value"]') from None


MAPPING, LIST = BeforeValidator(_mapping_from_json), BeforeValidator(_list_from_json)
"""Parse JSON text from environment variables; mappings and lists from Dagster config are left as they are."""


def _utf8(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("it must be UTF-8 text") from None
    return value


def _date(value: Any) -> date:
    """A date by its ISO 8601 name; pydantic would take a number such as 20250131 for seconds since 1970."""
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        raise ValueError("it must be a date such as 2025-01-31") from None


def _owners(value: list[str]) -> list[str]:
    for owner in value:
        if not _OWNER.fullmatch(owner):
            raise ValueError(f"{owner!r} must be an email address, or a team such as 'team:alignment'")
    return value


def _hub_name(value: str | None) -> str | None:
    if value is not None:
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        validate_repo_id(value)
        if "/" not in value:
            raise ValueError("it must be the name of a repository with its owner, owner/name")
    return value


DATE = BeforeValidator(_date)
UTF8, OWNERS, HUB_NAME = AfterValidator(_utf8), AfterValidator(_owners), AfterValidator(_hub_name)
"""A date; text without lone surrogates; owners of assets as Dagster takes them; a repository of the Hub."""


def _unique_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; raises ValueError if a name has two different values."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if found.setdefault(name, value) != value:
            raise ValueError(f"{name!r} is given twice, with different values: keep one of them")
    return found


def _folder_names(names: dict[str, Any]) -> dict[str, Any]:
    """Raise ValueError unless each name can be that of a folder, on a system that ignores case, too."""
    known: dict[str, str] = {}
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?", name):
            raise ValueError(
                f"the name {name!r} must be at most 100 letters, digits, '.', '_' and '-', the first a letter or "
                "digit and the last not '.'"
            )
        if (other := known.setdefault(name.lower(), name)) != name:
            raise ValueError(f"the names {other!r} and {name!r} differ only in case: rename one of these sets")
    return names


def _file_columns(value: dict[str, Any]) -> dict[str, Any]:
    """Raise ValueError unless this maps fields to columns, and globs of files to such mappings."""
    of_files = {name: columns for name, columns in value.items() if is_glob(name)}
    others = {name: column for name, column in value.items() if name not in of_files}
    for columns in (others, *of_files.values()):
        require_columns(columns)
    return value


def require_columns(columns: Any) -> None:
    """Raise ValueError unless this maps fields to columns, each column used once."""
    if not isinstance(columns, dict):
        raise ValueError('a glob of files needs a mapping of its own: {"shp/*": {"prompt": "history"}}')
    known = get_args(Column)
    for name, column in columns.items():
        if name not in known:
            fields = ", ".join(map(repr, known))
            raise ValueError(
                f"Input should be {fields} or, at the top level, a glob of files such as 'shp/*', not {name!r}"
            )
        if not isinstance(column, str):
            raise ValueError(f"{name!r} needs the name of a column: only a glob of files can have a mapping")
    if "" in columns.values() or len(set(columns.values())) < len(columns):
        raise ValueError("each field needs a column of its own")


def read_labels(labels: Mapping[Any, Any], level: Literal["labels", "glob", "column"]) -> dict[str, Any]:
    """Strip and lower-case labels, also inside columns and globs; raises ValueError for an unknown meaning.

    The setting holds labels, columns and globs; a glob holds labels and columns; a column holds labels.
    """
    found: list[tuple[str, Any]] = []
    for name, meaning in labels.items():
        if isinstance(meaning, Mapping):
            inner: Literal["glob", "column"] = "glob" if is_glob(name) else "column"
            if level == "column" or inner == level:
                raise ValueError(f"{name!r} is a mapping inside a {level}: globs hold columns, and columns hold labels")
            found.append((name, read_labels(meaning, inner)))
        elif meaning in get_args(Label):
            found.append((str(name).strip().lower(), meaning))
        else:
            raise ValueError(f"{name!r}: Input should be 'first', 'second' or 'tie', or a mapping of a column or glob")
    return _unique_dict(found)


COLUMNS, LABELS, FOLDERS = (
    AfterValidator(check) for check in (_file_columns, functools.partial(read_labels, level="labels"), _folder_names)
)
"""Columns by field, each used once; labels, normalized for comparison; names of folders."""
