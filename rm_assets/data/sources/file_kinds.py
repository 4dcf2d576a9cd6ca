"""The kind of a file by its name: lines of JSON, one JSON document or a table, and whether it is compressed."""

import re
from collections.abc import Callable, Iterable
from enum import StrEnum

ARCHIVES = (".gz", ".zst")


class Kind(StrEnum):
    """How a file stores its rows."""

    LINES = "lines of JSON"
    JSON = "JSON"  # a list of rows, or lines
    PARQUET = "Parquet"
    CSV = "CSV"
    TSV = "TSV"


_KINDS = {
    ".jsonl": Kind.LINES,
    ".ndjson": Kind.LINES,
    ".jsonlines": Kind.LINES,
    ".json": Kind.JSON,
    ".parquet": Kind.PARQUET,
    ".csv": Kind.CSV,
    ".tsv": Kind.TSV,
}
SUFFIXES = tuple(_KINDS)
"""The endings of files that are read, before an ending such as .gz."""
_ENDS = ", ".join(SUFFIXES)
_NOT_ROWS = frozenset({"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"})
"""Files that the datasets library writes next to the rows."""

_BESIDE_ROWS = re.compile(r"(readme|license|licence|notice|_success)(\..*)?|.*\.(md|py|sh|crc|sha256|lock)")
_TO_PARQUET = "with the datasets library: Dataset.from_file(NAME).to_parquet(NAME + '.parquet')"
_SPREADSHEET = "save it as CSV in UTF-8"
_UNPACK = "unpack it"
_ADVICE = {
    ".arrow": _TO_PARQUET,
    ".xlsx": _SPREADSHEET,
    ".xls": _SPREADSHEET,
    ".ods": _SPREADSHEET,
    ".zip": _UNPACK,
    ".tar": _UNPACK,
    ".tgz": _UNPACK,
    ".tar.gz": _UNPACK,
    ".tar.zst": _UNPACK,
    ".7z": _UNPACK,
    ".bz2": _UNPACK,
    ".xz": _UNPACK,
    ".parquet.gz": _UNPACK,
    ".parquet.zst": _UNPACK,
    ".pq": "rename it to end in .parquet",
    ".txt": "if each line is a JSON object, rename it to end in .jsonl",
}


def archive_suffix(name: str) -> str:
    """The ending of a compressed file's name; empty for other files."""
    return suffix if (suffix := _suffix(name.lower())) in ARCHIVES else ""


def file_kind(name: str) -> Kind | None:
    """The kind of a file by its name; None if it is not read."""
    archive = archive_suffix(name)
    inner = name.lower().removesuffix(archive)
    kind = _KINDS.get(_suffix(inner))
    is_read = inner not in _NOT_ROWS and not (kind is Kind.PARQUET and archive)
    return kind if is_read else None


def _suffix(name: str) -> str:
    """The name from its last dot on, or its last character."""
    return name[name.rfind(".") :]


def grows_by_lines(name: str) -> bool:
    """Whether appending to such a file leaves its earlier rows unchanged."""
    return file_kind(name) is Kind.LINES and not archive_suffix(name)


def _advice(name: str) -> str:
    """How to make an unread file readable; empty if there is no advice."""
    if _is_directory_of_a_table(name):
        return "a directory found by a glob or a link is not searched; name it in the setting"
    path, query, _ = name.partition("?")
    if query and file_kind(path):
        return "omit the ? and what follows, or download it"
    return next((advice for suffix, advice in _ADVICE.items() if name.lower().endswith(suffix)), "")


def _is_directory_of_a_table(name: str) -> bool:
    """Whether an entry is a directory named like a file, as Spark writes tables."""
    return name.endswith("/") and file_kind(name.rstrip("/")) is not None


def _may_hold_rows(name: str) -> bool:
    """Whether an unread entry may hold rows: READMEs, licences and the like do not, nor do most directories."""
    if _is_directory_of_a_table(name):
        return True
    inner = name.lower().rsplit("/", 1)[-1]
    return bool(inner) and inner not in _NOT_ROWS and not _BESIDE_ROWS.fullmatch(inner)


def what_is_not_read(ignored: Iterable[str], shown: Callable[[str], str] = repr) -> str:
    """A sentence about files that are not read but may hold rows; empty if there are none."""
    missed = [name for name in ignored if _may_hold_rows(name)]
    if not missed:
        return ""
    named = next((name for name in missed if _advice(name)), missed[0])
    others = f" and {len(missed) - 1:,} more {'file' if len(missed) == 2 else 'files'} are"
    files = f"{shown(named)} is" if len(missed) == 1 else f"{shown(named)}{others}"
    return f"{files} not read: {_advice(named) or f'only files ending in {_ENDS} are'}"
