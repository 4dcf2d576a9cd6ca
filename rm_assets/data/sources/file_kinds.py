"""What the name of a file says of its content: lines of JSON, one JSON document or a table, and if it is compressed."""

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
_NOT_ROWS = frozenset({"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"})
"""What the datasets library writes beside the rows."""


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
