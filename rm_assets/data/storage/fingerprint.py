"""Content hashes, by which inputs, settings and files are compared."""

import hashlib
import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any


def fingerprint(*values: Any) -> str:
    """A 64-digit hash of plain values: strings, numbers, booleans, None, dates, and lists or dicts of them.

    Raises TypeError for anything else, because a value of unknown identity must not count as unchanged.
    """
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"cannot fingerprint a value of type {type(value).__name__!r}")


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_fingerprint(paths: Iterable[Path]) -> str:
    """A hash of several files' names and bytes, independent of their directory."""
    return fingerprint([[path.name, file_sha256(path)] for path in sorted(paths)])


def short_hash(*parts: str | bytes | memoryview) -> str:
    """A 32-digit hash of texts or their UTF-8 bytes; `("ab", "c")` and `("a", "bc")` differ."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8") if isinstance(part, str) else part
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()
