"""Which annotation files a path, directory or glob names, and their bytes cut into lines and shards.

A line ends at a line feed, and at nothing else: U+2028 or a lone carriage return inside a string is data. One carriage
return before the line feed belongs to the line end. Lines are cut into shards greedily, so that a shard's place
depends only on the bytes before it and appending to a file leaves its earlier shards alone.
"""

import gzip
import hashlib
import os
import re
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from rm_assets.data.records import Reason
from rm_assets.settings import SettingsError

SUFFIXES = (".jsonl", ".jsonl.gz")
_MAGIC = re.compile(r"[*?\[]")
_BOM = b"\xef\xbb\xbf"
_SKIP_BYTES = 2**20


class DamagedArchiveError(ValueError):
    """A compressed file that ends early or fails its checksum."""


@dataclass(frozen=True, kw_only=True)
class AnnotationFile:
    """A file to read; `source` is its path relative to the fixed part of the setting, with forward slashes."""

    path: Path
    source: str


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The files a setting names, in the order of `source`, and those in the directory that are not read."""

    files: tuple[AnnotationFile, ...]
    ignored: tuple[str, ...]


def find_annotations(setting: str, name: str = "annotations (or RM_ANNOTATIONS)") -> Annotations:
    """The annotation files of a path, a directory (searched in all depths) or a glob.

    Raises SettingsError where there is none, or where one cannot be read.
    """
    base, found = _candidates(setting, name)
    wanted = [path for path in found if path.name.endswith(SUFFIXES)]
    ignored = [path.relative_to(base).as_posix() for path in found if path not in set(wanted)]
    if not wanted:
        raise SettingsError(
            f"{name} is {setting!r}: no file ending in {' or '.join(SUFFIXES)} there"
            + (f", but {ignored[0]!r}; one JSON object a line is what is read" if ignored else "")
        )
    for path in wanted:
        _require_readable(path, setting, name)
    files = [AnnotationFile(path=path, source=path.relative_to(base).as_posix()) for path in wanted]
    return Annotations(files=tuple(sorted(files, key=lambda file: file.source)), ignored=tuple(sorted(ignored)))


def _candidates(setting: str, name: str) -> tuple[Path, list[Path]]:
    path = Path(setting).expanduser()
    if path.is_dir():
        return path, [found for found in path.rglob("*") if not found.is_dir() and not _is_hidden(found, path)]
    if path.exists() or path.is_symlink():
        return path.parent, [path]
    if not _MAGIC.search(setting):
        raise SettingsError(f"{name} is {setting!r}: there is no such file or directory")
    first_magic = next(i for i, part in enumerate(path.parts) if _MAGIC.search(part))
    base = Path(*path.parts[:first_magic])
    pattern = "/".join(path.parts[first_magic:])
    return base, [found for found in base.glob(pattern) if not found.is_dir()]


def _is_hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(base).parts)


def _require_readable(path: Path, setting: str, name: str) -> None:
    try:
        mode = path.stat().st_mode
        readable = stat.S_ISREG(mode) and os.access(path, os.R_OK)
    except OSError:
        readable = False
    if not readable:
        raise SettingsError(f"{name} is {setting!r}: {path.name!r} is not a regular file that may be read")


# --- lines ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end; `content` is None where it was longer than allowed and not kept."""

    content: bytes | None
    num_bytes: int  # of the content
    end_bytes: int  # of the line end: 0, 1 or 2
    sha256: str | None = None  # of a content that was not kept


def read_lines(stream: BinaryIO, max_line_bytes: int) -> Iterator[Line]:
    """The lines of a stream of bytes; a longer line is hashed in passing and never held whole."""
    while piece := stream.readline(max_line_bytes + 2):
        if piece.endswith(b"\n") or len(piece) <= max_line_bytes:
            content = piece.removesuffix(b"\n")
            content = content.removesuffix(b"\r") if len(content) < len(piece) else content
            if len(content) <= max_line_bytes:
                yield Line(content, len(content), len(piece) - len(content))
                continue
        yield _skipped_line(stream, piece)


def _skipped_line(stream: BinaryIO, piece: bytes) -> Line:
    digest, num_bytes = hashlib.sha256(), 0
    while not piece.endswith(b"\n") and (following := stream.readline(_SKIP_BYTES)):
        digest.update(piece)
        num_bytes += len(piece)
        piece = following
    content = piece.removesuffix(b"\n")
    digest.update(content)
    return Line(None, num_bytes + len(content), len(piece) - len(content), digest.hexdigest())


@dataclass
class ShardOfLines:
    """Consecutive lines of one file: sound ones with their text, and rejects; with the count of all their bytes."""

    first_line: int
    sha256: str = ""
    numbers: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rejects: list[tuple[int, Reason, str, str]] = field(default_factory=list)  # line, reason, detail, sha256
    num_lines: int = 0
    num_blank: int = 0
    num_bytes: int = 0
    text_bytes: int = 0
    end_bytes: int = 0
    bom_bytes: int = 0
    blank_bytes: int = 0
    reject_bytes: int = 0

    def add(self, line: Line) -> None:
        """Take the next line of the file."""
        number = self.first_line + self.num_lines
        self.num_lines += 1
        self.num_bytes += line.num_bytes + line.end_bytes
        self.end_bytes += line.end_bytes
        if line.content is None:
            assert line.sha256 is not None
            self._reject(number, Reason.LINE_TOO_LONG, f"{line.num_bytes} bytes", line.sha256, line.num_bytes)
        elif not line.content.strip():
            self.num_blank += 1
            self.blank_bytes += line.num_bytes
        else:
            self._add_text(number, line.content)

    def _add_text(self, number: int, content: bytes) -> None:
        try:
            self.texts.append(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            digest = hashlib.sha256(content).hexdigest()
            self._reject(number, Reason.NOT_UTF8, f"byte {error.start + 1} of the line", digest, len(content))
        else:
            self.numbers.append(number)
            self.text_bytes += len(content)

    def _reject(self, number: int, reason: Reason, detail: str, sha256: str, num_bytes: int) -> None:
        self.rejects.append((number, reason, detail, sha256))
        self.reject_bytes += num_bytes

    @property
    def bytes_unaccounted(self) -> int:
        """Zero by conservation: bytes = texts + line ends + BOM + blank lines + rejects."""
        parts = self.text_bytes + self.end_bytes + self.bom_bytes + self.blank_bytes + self.reject_bytes
        return self.num_bytes - parts


def shards_of_lines(path: Path, *, shard_bytes: int, max_line_bytes: int) -> Iterator[ShardOfLines]:
    """A file's lines in shards of at most `shard_bytes` (a longer line is a shard of its own).

    Raises DamagedArchiveError where a compressed file cannot be read to its end, possibly after some shards.
    """
    try:
        with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw as stream:
            yield from _cut(stream, shard_bytes, max_line_bytes)  # type: ignore[arg-type]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedArchiveError(type(error).__name__) from None


def _cut(stream: BinaryIO, shard_bytes: int, max_line_bytes: int) -> Iterator[ShardOfLines]:
    shard, digest = _new_shard(1, _skip_bom(stream))
    for line in read_lines(stream, max_line_bytes):
        if shard.num_lines and shard.num_bytes + line.num_bytes + line.end_bytes > shard_bytes:
            shard.sha256 = digest.hexdigest()
            yield shard
            shard, digest = _new_shard(shard.first_line + shard.num_lines)
        shard.add(line)
        digest.update(f"{line.sha256}".encode() if line.content is None else line.content)
        digest.update(b"\r\n"[2 - line.end_bytes :])
    if shard.num_bytes:
        shard.sha256 = digest.hexdigest()
        yield shard


def _new_shard(first_line: int, bom: bytes = b"") -> tuple[ShardOfLines, "hashlib._Hash"]:
    shard = ShardOfLines(first_line=first_line, num_bytes=len(bom), bom_bytes=len(bom))
    return shard, hashlib.sha256(bom)


def _skip_bom(stream: Any) -> bytes:
    """The byte order mark at the start of a file, read away; empty if there is none."""
    return stream.read(len(_BOM)) if stream.peek(len(_BOM)).startswith(_BOM) else b""
