"""A stream of bytes cut into lines, and the lines into shards.

A line ends at a line feed, and at nothing else: U+2028 or a lone carriage return inside a string is data. One carriage
return before the line feed belongs to the line end. Lines are cut into shards greedily, so that a shard's place
depends only on the bytes before it and appending to a file leaves its earlier shards alone.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from rm_assets.data.records import Reason

MAX_ROWS = 100_000
"""Rows and rejects of one shard: bounds memory where lines are a few bytes long, which no preference is."""
_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")  # of UTF-16 and UTF-32
_SKIP_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end; `content` is None where it was longer than allowed and not kept."""

    content: bytes | None
    num_bytes: int  # of the content
    end_bytes: int  # of the line end: 0, 1 or 2
    sha256: str = ""  # of a content that was not kept


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
    is_utf8: bool = True  # False where the file begins with the mark of another encoding
    sha256: str = ""
    numbers: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rejects: list[tuple[int, Reason, str, str]] = field(default_factory=list)  # line, reason, detail, sha256
    num_lines: int = 0
    num_blank: int = 0
    num_bytes: int = 0
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
            self._reject(number, Reason.LINE_TOO_LONG, f"{line.num_bytes} bytes", line.sha256, line.num_bytes)
        elif not line.content.strip():
            self.num_blank += 1
            self.blank_bytes += line.num_bytes
        else:
            self._add_text(number, line.content)

    def reject_file(self, reason: Reason, detail: str, sha256: str, num_bytes: int) -> None:
        """Reject the whole file, at line 0; its bytes are those that were read of it as it is stored."""
        self.num_bytes += num_bytes
        self._reject(0, reason, detail, sha256, num_bytes)

    def _add_text(self, number: int, content: bytes) -> None:
        problem = "" if self.is_utf8 else "the file is UTF-16 or UTF-32"
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = problem or f"byte {error.start + 1} of the line"
        if problem:
            self._reject(number, Reason.NOT_UTF8, problem, hashlib.sha256(content).hexdigest(), len(content))
        else:
            self.texts.append(text)
            self.numbers.append(number)

    def _reject(self, number: int, reason: Reason, detail: str, sha256: str, num_bytes: int) -> None:
        self.rejects.append((number, reason, detail, sha256))
        self.reject_bytes += num_bytes

    @property
    def num_rejected_lines(self) -> int:
        """The rejects that are lines; the other kind is a whole file."""
        return sum(line > 0 for line, *_ in self.rejects)

    def has_room(self, line: Line, shard_bytes: int) -> bool:
        """Whether the line still belongs to this shard."""
        if not self.num_lines:
            return True
        fits = self.num_bytes + line.num_bytes + line.end_bytes <= shard_bytes
        return fits and len(self.texts) + len(self.rejects) < MAX_ROWS


def shards_of_lines(
    stream: io.BufferedReader,
    *,
    shard_bytes: int,
    max_line_bytes: int,
    whole_lines: bool = False,
    in_twos: bool = False,
) -> Iterator[ShardOfLines]:
    """A file's lines in shards of at most `shard_bytes` (a longer line is a shard of its own) and `MAX_ROWS`.

    With `whole_lines`, a last line without a line feed is left out: somebody is still writing it. With `in_twos`, no
    shard ends between the two lines of a pair.
    """
    is_utf8 = not stream.peek(4).startswith(_OTHER_BOMS)
    bom = stream.read(len(_BOM)) if stream.peek(len(_BOM)).startswith(_BOM) else b""
    shard, digest = _new_shard(1, is_utf8, bom)
    for line in read_lines(stream, max_line_bytes):
        if whole_lines and not line.end_bytes:
            break
        is_between = in_twos and (shard.num_lines - shard.num_blank) % 2 == 1
        if not is_between and not shard.has_room(line, shard_bytes):
            shard.sha256 = digest.hexdigest()
            yield shard
            shard, digest = _new_shard(shard.first_line + shard.num_lines, is_utf8)
        shard.add(line)
        # A line feed can begin no content, so that a kept line never hashes like one that was not kept.
        digest.update(f"\n{line.num_bytes} {line.sha256}".encode() if line.content is None else line.content)
        digest.update(b"\r\n"[2 - line.end_bytes :])
    if shard.num_bytes:
        shard.sha256 = digest.hexdigest()
        yield shard


def _new_shard(first_line: int, is_utf8: bool, bom: bytes = b"") -> tuple[ShardOfLines, "hashlib._Hash"]:
    shard = ShardOfLines(first_line=first_line, is_utf8=is_utf8, num_bytes=len(bom), bom_bytes=len(bom))
    return shard, hashlib.sha256(bom if is_utf8 else b"\nnot UTF-8\n")
