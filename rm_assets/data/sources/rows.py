"""The rows of a JSON list or a table, each as one line of JSON, in the order of the file."""

import io
from collections.abc import Iterable, Iterator

import msgspec

from rm_assets.data.sources.blocks import Piece, num_piece_bytes
from rm_assets.data.sources.csv_rows import csv_rows
from rm_assets.data.sources.file_kinds import Kind, file_kind
from rm_assets.data.sources.json_lists import list_begin, list_rows
from rm_assets.data.sources.opened_file import BEYOND_LIMIT, EXPANSION_ALLOWANCE, OpenedFile, RejectedFileError
from rm_assets.data.sources.parquet_rows import parquet_rows
from rm_assets.data.sources.signatures import require_signature_of_name
from rm_assets.data.tables.reasons import Reason

_BOM = b"\xef\xbb\xbf"
_ENCODED_OTHERWISE = "it is UTF-16 or UTF-32: save it as UTF-8"


def file_rows(file: OpenedFile, *, max_expansion: int, max_line_bytes: int) -> Iterator[Piece] | None:
    """The rows of a JSON list or a table; None for lines of JSON, which are read as they are.

    Raises RejectedFileError, possibly after some rows.
    """
    kind = file_kind(file.path.name)
    most_bytes = max(EXPANSION_ALLOWANCE, max_expansion * file.num_bytes)
    rows: Iterator[Piece] | None = None
    if kind is not Kind.PARQUET:  # its reader checks this itself
        require_signature_of_name(file)
    match kind:
        case Kind.JSON:
            rows = _json_rows(file.stream(max_expansion), max_line_bytes)
        case Kind.PARQUET:
            rows = parquet_rows(file.random_access(), max_line_bytes, most_bytes)
        case Kind.CSV | Kind.TSV:
            stream = file.stream(max_expansion)
            _require_utf8(stream.peek(4))
            rows = csv_rows(stream, "\t" if kind is Kind.TSV else ",", max_line_bytes)
    return rows and _bounded(rows, most_bytes)


def _bounded(rows: Iterable[Piece], num_left: int) -> Iterator[Piece]:
    """The rows, up to a number of bytes: a table stores column names and dictionary values only once."""
    for row in rows:
        num_left -= num_piece_bytes(row)
        if num_left < 0:
            raise RejectedFileError(Reason.DECOMPRESSION_BOMB, BEYOND_LIMIT)
        yield row


def _require_utf8(head: bytes) -> None:
    """Raise RejectedFileError where a text file begins like UTF-16 or UTF-32."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head[:4]:
        raise RejectedFileError(Reason.NOT_UTF8, _ENCODED_OTHERWISE)


def _json_rows(stream: io.BufferedReader, max_line_bytes: int) -> Iterator[Piece] | None:
    head = stream.peek(4)
    _require_utf8(head)
    if begin := list_begin(head):
        return list_rows(stream, begin, max_line_bytes)
    if _is_object_over_lines(head.removeprefix(_BOM).lstrip()):
        raise RejectedFileError(
            Reason.DAMAGED_FILE,
            'one object over several lines, instead of a list of rows, {"data": [...]} or one row per line: '
            "convert it with `jq -c .`",
        )
    return None


def _is_object_over_lines(head: bytes) -> bool:
    """Whether a file begins with an object that continues after its first line, where no other object begins."""
    line, line_end, following = head.partition(b"\n")
    if not (line.startswith(b"{") and line_end) or following.lstrip().startswith(b"{"):
        return False
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return True
    return False
