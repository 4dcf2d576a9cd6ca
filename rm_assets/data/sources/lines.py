"""A block of a file read line by line: the texts of valid lines, rejects, and counts that account for every byte."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rm_assets.data.sources.blocks import LINE_FEED, Block, Piece, SkippedLine, without_end
from rm_assets.data.tables.reasons import Reason

_WHITE_SPACE = np.array([bytes([byte]).isspace() for byte in range(256)])


@dataclass(kw_only=True)
class Lines:
    """Some lines of a block: numbers and texts of the valid ones, rejects, and counts that account for every byte."""

    numbers: NDArray[np.int64]
    texts: pa.Array
    rejects: list[tuple[int, Reason, str, str]] = field(default_factory=list)  # line, reason, detail, sha256
    num_lines: int = 0
    num_blank: int = 0
    end_bytes: int = 0
    blank_bytes: int = 0
    reject_bytes: int = 0


def read_block(block: Block, *, max_line_bytes: int, part_bytes: int) -> Iterator[Lines]:
    """A block's lines in parts of about `part_bytes`."""
    number = block.first_line
    for piece in block.pieces:
        for part in [piece] if isinstance(piece, SkippedLine) else _parts(piece, part_bytes):
            lines = _read(part, number, max_line_bytes, is_utf8=block.is_utf8)
            yield lines
            number += lines.num_lines


def _read(part: Piece, number: int, max_line_bytes: int, *, is_utf8: bool) -> Lines:
    if isinstance(part, SkippedLine):
        return _skipped(part, number)
    lines = _valid_lines(part, number, max_line_bytes) if is_utf8 else None
    return lines or _lines_one_by_one(part, number, max_line_bytes, is_utf8=is_utf8)


def _parts(content: bytes, part_bytes: int) -> Iterator[bytes]:
    start = 0
    while start < len(content):
        end = len(content)
        if end - start > part_bytes:
            end = content.rfind(b"\n", start, start + part_bytes) + 1 or content.find(b"\n", start) + 1 or end
        yield content[start:end] if end - start < len(content) else content
        start = end


def _skipped(line: SkippedLine, number: int) -> Lines:
    reject = (number, line.reason, line.detail or f"{line.num_bytes} bytes", line.sha256)
    return Lines(
        numbers=np.empty(0, np.int64),
        texts=pa.array([], pa.string()),
        rejects=[reject],
        num_lines=1,
        end_bytes=line.end_bytes,
        reject_bytes=line.num_bytes,
    )


def _valid_lines(content: bytes, first: int, max_line_bytes: int) -> Lines | None:
    """The lines if each is a valid text, the usual case; None if one is blank, too long or not UTF-8.

    Makes no Python object per line: the bytes between the line feeds become the buffer of the Arrow array.
    """
    num_bytes = len(content)
    if b"\r" in content:  # searching for one byte is many times as fast as for two
        content = content.replace(b"\r\n", b"\n")
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == LINE_FEED)
    values = content.replace(b"\n", b"")
    offsets = np.empty(len(ends) + (not content.endswith(b"\n")) + 1, np.int32)
    offsets[0], offsets[-1] = 0, len(values)
    offsets[1 : len(ends) + 1] = ends - np.arange(len(ends))
    lengths = np.diff(offsets)
    if not lengths.all() or lengths.max() > max_line_bytes or _begins_blank(values, offsets[:-1]):
        return None
    try:
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
        texts = pa.BinaryArray.from_buffers(pa.binary(), len(lengths), buffers).cast(pa.string())
    except pa.ArrowInvalid:
        return None
    numbers = np.arange(first, first + len(lengths), dtype=np.int64)
    return Lines(numbers=numbers, texts=texts, num_lines=len(lengths), end_bytes=num_bytes - len(values))


def _begins_blank(values: bytes, starts: NDArray[np.int32]) -> bool:
    """Whether some line begins with white space, and so may be blank; rows of valid files do not."""
    return bool(_WHITE_SPACE[np.frombuffer(values, np.uint8)[starts]].any())


def _lines_one_by_one(content: bytes, first: int, max_line_bytes: int, *, is_utf8: bool) -> Lines:
    numbers, texts = [], []
    lines = Lines(numbers=np.empty(0, np.int64), texts=None)
    for number, whole in enumerate(io.BytesIO(content), start=first):
        line = without_end(whole) if whole.endswith(b"\n") else whole
        lines.num_lines += 1
        lines.end_bytes += len(whole) - len(line)
        if len(line) <= max_line_bytes and not line.strip():
            lines.num_blank += 1
            lines.blank_bytes += len(line)
        elif problem := _problem(line, max_line_bytes, is_utf8=is_utf8):
            lines.rejects.append((number, *problem, hashlib.sha256(line).hexdigest()))
            lines.reject_bytes += len(line)
        else:
            numbers.append(number)
            texts.append(line)
    lines.numbers = np.array(numbers, dtype=np.int64)
    lines.texts = pa.array(texts, pa.binary()).cast(pa.string())
    return lines


def _problem(line: bytes, max_line_bytes: int, *, is_utf8: bool) -> tuple[Reason, str] | None:
    if len(line) > max_line_bytes:
        return Reason.LINE_TOO_LONG, f"{len(line)} bytes"
    if not is_utf8:
        return Reason.NOT_UTF8, "the file is UTF-16 or UTF-32: save it as UTF-8"
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return Reason.NOT_UTF8, f"byte {error.start + 1} of the line is not UTF-8: save the file as UTF-8"
    return None
