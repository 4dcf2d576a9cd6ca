"""What the name of a file says of its content: lines of JSON, one JSON document or a table, and if it is compressed."""

import re
from collections.abc import Callable, Iterable
from enum import StrEnum

ARCHIVES = (".gz", ".zst")


class Kind(StrEnum):
    """How rows lie in a file."""

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
"""What the names of files that are read end in, before that of an archive."""
_ENDS = ", ".join(SUFFIXES)
_NOT_ROWS = frozenset({"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"})
"""What the datasets library writes beside the rows."""

_BESIDE_ROWS = re.compile(r"(readme|license|licence|notice|_success)(\..*)?|.*\.(md|py|sh|crc|sha256|lock)")
_TO_PARQUET = "with the datasets library: Dataset.from_file(NAME).to_parquet(NAME + '.parquet')"
_SPREADSHEET = "save it as CSV in UTF-8"
_UNPACK = "unpack it"
_WAYS_ON = {
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
    ".pq": "call it .parquet",
    ".txt": "if each line is a row in JSON, call it .jsonl",
}


def archive_suffix(name: str) -> str:
    """What the name ends in if it says that the bytes are compressed; else nothing."""
    return next((suffix for suffix in ARCHIVES if name.lower().endswith(suffix)), "")


def file_kind(name: str) -> Kind | None:
    """The kind of a file by its name; None where it is not read."""
    inner = name.lower().removesuffix(archive_suffix(name))
    kind = next((kind for suffix, kind in _KINDS.items() if inner.endswith(suffix)), None)
    is_read = inner not in _NOT_ROWS and not (kind is Kind.PARQUET and archive_suffix(name))
    return kind if is_read else None


def grows_by_lines(name: str) -> bool:
    """Whether what is appended to such a file leaves what it holds as it is."""
    return file_kind(name) is Kind.LINES and not archive_suffix(name)


def way_on(name: str) -> str:
    """How to have a file read that is not; empty where nothing is known."""
    if _is_directory_of_a_table(name):
        return "a directory that a link or a glob names is not searched; name it itself"
    path, query, _ = name.partition("?")
    if query and file_kind(path):
        return "leave out the ? and what follows, or download it"
    return next((way for suffix, way in _WAYS_ON.items() if name.lower().endswith(suffix)), "")


def _is_directory_of_a_table(name: str) -> bool:
    """Whether an entry is a directory that is called like a file, as Spark writes a table."""
    return name.endswith("/") and file_kind(name.rstrip("/")) is not None


def may_hold_rows(name: str) -> bool:
    """Whether somebody may miss an entry that is not read: no README, licence or the like, nor most directories."""
    if _is_directory_of_a_table(name):
        return True
    inner = name.lower().rsplit("/", 1)[-1]
    return bool(inner) and inner not in _NOT_ROWS and not _BESIDE_ROWS.fullmatch(inner)


def what_is_not_read(ignored: Iterable[str], shown: Callable[[str], str] = repr) -> str:
    """Which files are not read though they may hold rows, in a sentence; empty where there are none."""
    missed = [name for name in ignored if may_hold_rows(name)]
    if not missed:
        return ""
    named = next((name for name in missed if way_on(name)), missed[0])
    others = f" and {len(missed) - 1:,} more {'file' if len(missed) == 2 else 'files'} are"
    files = f"{shown(named)} is" if len(missed) == 1 else f"{shown(named)}{others}"
    return f"{files} not read: {way_on(named) or f'only files ending in {_ENDS} are'}"
