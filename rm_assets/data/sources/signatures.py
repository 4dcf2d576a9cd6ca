"""Recognizes files whose first bytes do not match their name."""

import re

from rm_assets.data.sources.file_kinds import Kind, archive_suffix, file_kind
from rm_assets.data.sources.opened_file import OpenedFile, RejectedFileError
from rm_assets.data.tables.reasons import Reason

NUM_BYTES = 64
"""Bytes inspected at the start of a file."""
_SPREADSHEET = "a spreadsheet: save it as CSV in UTF-8"
_WEB_PAGE = "a web page, perhaps an error page: download the file again"
_SIGNATURES = {
    rb"PAR1(?=[^ -~\t\r\n])": "Parquet: rename it to end in .parquet",  # no CSV column name continues like this
    rb"\x1f\x8b": "compressed with gzip: rename it to end in .gz",
    rb"\x28\xb5\x2f\xfd": "compressed with Zstandard: rename it to end in .zst",
    rb"BZh[1-9]1AY&SY": "compressed with bzip2: unpack it",
    rb"\xfd7zXZ\x00": "compressed with xz: unpack it",
    rb"PK\x03\x04": f"a ZIP archive, to be unpacked, or {_SPREADSHEET}",
    rb"\xd0\xcf\x11\xe0": _SPREADSHEET,
    rb"version https://git-lfs": "a Git LFS pointer: run `git lfs pull` to get the file itself",
    rb"\s*<(?i:!doctype html|html)\b": _WEB_PAGE,
}
_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*(\[\s*)?\{\s*"')


def require_signature_of_name(file: OpenedFile) -> None:
    """Raise RejectedFileError if the content of a file of any kind but Parquet does not match its name."""
    with file.random_access() as stream:
        head = stream.peek(NUM_BYTES)[:NUM_BYTES]
    archive = archive_suffix(file.path.name)
    if archive and head.startswith(_MAGIC[archive]):
        return
    found = describe_signature(head)
    if file_kind(file.path.name) in (Kind.CSV, Kind.TSV) and (match := _JSON.match(head)):
        found = f"JSON: rename it to end in {'.json' if match[1] else '.jsonl'}"
    if found:
        raise RejectedFileError(Reason.DAMAGED_FILE, f"it is {found}")


def describe_signature(head: bytes) -> str:
    """The kind of a file by its first bytes, and advice on it; empty if they are not known."""
    return next((kind for pattern, kind in _SIGNATURES.items() if re.match(pattern, head)), "")
