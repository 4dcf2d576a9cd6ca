"""A stream of bytes cut into blocks of whole lines.

A line ends only at a line feed: U+2028 or a lone carriage return inside a string is data. One carriage return before
the line feed belongs to the line end. Blocks are cut greedily, so that appending to a file leaves its earlier blocks
unchanged. The end of a file, which appending changes, is cut into halves, quarters and eighths of a block: a line more
usually makes the last of these anew, and not up to a whole block. (Log-structured storage merges small runs into larger
ones in the same way, see O'Neil et al. 1996; here the sizes follow from the file alone.) Cutting and hashing find one
line end per block; only new blocks are read line by line.
"""

import functools
import hashlib
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from rm_assets.data.tables.reasons import Reason

MAX_LINES = 100_000
"""The most lines in a block: bounds memory where lines are short."""
LEAST_BYTES = 4 * 2**20
"""The end of a file is not cut into smaller parts: a shard costs as much as some hundred kilobytes of lines."""
_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")  # of UTF-16 and UTF-32
_FIRST_BYTES = 2**16
_SKIP_BYTES = 2**20
LINE_FEED = 10


@dataclass(frozen=True, kw_only=True)
class SkippedLine:
    """A line whose content is not kept: one that is too long, or a damaged row of a table."""

    num_bytes: int  # of the content
    end_bytes: int  # of its line feed; 0 where the file ends without one
    sha256: str  # of the content
    reason: Reason = Reason.LINE_TOO_LONG
    detail: str = ""


Piece = bytes | SkippedLine


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive whole lines of a file, as bytes or skipped; usually one piece of bytes."""

    first_line: int
    num_lines: int  # blank ones too
    pieces: tuple[Piece, ...]
    bom_bytes: int = 0
    is_utf8: bool = True  # False where the file begins with the byte order mark of UTF-16 or UTF-32

    @property
    def num_bytes(self) -> int:
        """Bytes that the block takes in the file."""
        return self.bom_bytes + sum(map(num_piece_bytes, self.pieces))

    @functools.cached_property
    def sha256(self) -> str:
        """A hash of everything that determines the rows read from the block."""
        digest = _digest(self.bom_bytes, self.is_utf8)
        for piece in self.pieces:
            if isinstance(piece, SkippedLine):
                why = f" {piece.reason} {piece.detail}" if piece.detail else ""
                digest.update(f"\nskipped {piece.num_bytes} {piece.end_bytes} {piece.sha256}{why}".encode())
            else:
                _add(digest, [piece], len(piece))
        return digest.hexdigest()


def plain_block_sha256(parts: Iterable[bytes], num_bytes: int) -> str:
    """The `Block.sha256` of a block of one piece without a byte order mark, from its `num_bytes` bytes in parts."""
    digest = _digest(bom_bytes=0, is_utf8=True)
    _add(digest, parts, num_bytes)
    return digest.hexdigest()


def _digest(bom_bytes: int, is_utf8: bool) -> "hashlib._Hash":
    return hashlib.sha256(f"{bom_bytes} {is_utf8}".encode())


def _add(digest: "hashlib._Hash", parts: Iterable[bytes], num_bytes: int) -> None:
    digest.update(f"\nbytes {num_bytes}\n".encode())
    for part in parts:
        digest.update(part)


def _num_lines(content: bytes) -> int:
    view = memoryview(content)
    line_feeds = sum(_num_line_feeds(view[at : at + _SKIP_BYTES]) for at in range(0, len(view), _SKIP_BYTES))
    return line_feeds + (not content.endswith(b"\n"))


def _num_line_feeds(view: memoryview) -> int:
    """Five times as fast as `bytes.count`, and releases the GIL."""
    return int(np.count_nonzero(np.frombuffer(view, np.uint8) == LINE_FEED))


def num_piece_bytes(piece: Piece) -> int:
    """Bytes of a piece, line ends included."""
    return len(piece) if isinstance(piece, bytes) else piece.num_bytes + piece.end_bytes


def without_end(line: bytes) -> bytes:
    """A line without its line feed and one carriage return before it."""
    return line.removesuffix(b"\n").removesuffix(b"\r")


# --- cutting -------------------------------------------------------------------------------------------------


def blocks_of_lines(
    stream: io.BufferedReader,
    *,
    block_bytes: int,
    max_line_bytes: int,
    whole_lines: bool = False,
    in_twos: bool = False,
    first_line: int = 1,
) -> Iterator[Block]:
    """A file's lines in blocks of at most `block_limit` bytes (a longer line is a block of its own) and `MAX_LINES`.

    With `whole_lines`, a last line without a line feed is left out, as it is still being written. With `in_twos`, no
    block ends between the two lines of a pair, and the end of the file is not cut smaller. Where a block ends depends
    only on its content, the line after it and the number of bytes from its start: a stream that starts at a later
    block, numbered `first_line`, yields the same blocks from there on.
    """
    bom, is_utf8 = b"", True
    if first_line == 1:
        is_utf8 = not stream.peek(4).startswith(_OTHER_BOMS)
        bom = stream.read(len(_BOM)) if stream.peek(len(_BOM)).startswith(_BOM) else b""
    cut = _cut_in_twos if in_twos else _cut
    bom_bytes = len(bom)
    for pieces in cut(stream, block_bytes, max_line_bytes, bom_bytes):
        kept = _without_open_line(pieces) if whole_lines else pieces
        if kept:
            block = _block(kept, first_line, bom_bytes, is_utf8=is_utf8)
            yield block
            first_line, bom_bytes = first_line + block.num_lines, 0
    if bom_bytes:
        yield _block((), first_line, bom_bytes)


def blocks_of_rows(rows: Iterable[Piece], *, block_bytes: int) -> Iterator[Block]:
    """Rows, each a line or a skipped one, in blocks of the same limits; a row is never cut."""
    first_line = 1
    for pieces in _group(rows, block_bytes):
        block = _block(pieces, first_line)
        yield block
        first_line += block.num_lines


def _block(pieces: tuple[Piece, ...], first_line: int, bom_bytes: int = 0, *, is_utf8: bool = True) -> Block:
    num_lines = sum(1 if isinstance(piece, SkippedLine) else _num_lines(piece) for piece in pieces)
    return Block(first_line=first_line, num_lines=num_lines, pieces=pieces, bom_bytes=bom_bytes, is_utf8=is_utf8)


def _without_open_line(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """The pieces up to the last line feed."""
    last = pieces[-1]
    if isinstance(last, SkippedLine):
        return pieces if last.end_bytes else pieces[:-1]
    whole = last[: last.rfind(b"\n") + 1]
    return (*pieces[:-1], whole) if whole else pieces[:-1]


def block_limit(rest_bytes: int, block_bytes: int) -> int:
    """The size of the next block where a file has so many bytes left: the largest half, quarter, ... that they fill.

    With blocks of 32 MiB, the 23 MiB at the end of a file become 16, 4 and 3 MiB.
    """
    while block_bytes > rest_bytes and block_bytes >= 2 * LEAST_BYTES:
        block_bytes //= 2
    return block_bytes


def _cut(stream: BinaryIO, block_bytes: int, max_line_bytes: int, bom_bytes: int) -> Iterator[tuple[Piece, ...]]:
    """Pieces that end at the last line end within the limit; the first piece's limit includes the byte order mark."""
    limit = max(block_bytes - bom_bytes, 1)
    buffer = bytearray()
    begin = end = 0  # buffer[begin:end] was read and is not yet part of a piece
    while True:
        rest = buffer[begin:end]
        buffer[: len(rest)] = rest
        # one byte beyond the limit shows if anything follows
        if not (end := _fill(buffer, len(rest), limit + 1, stream)):
            return
        if end <= limit:
            limit = block_limit(end, limit)
        line_end = end if end <= limit else buffer.rfind(b"\n", 0, limit) + 1
        if begin := _end_of_lines(buffer, 0, min(end, limit), MAX_LINES) or line_end:
            yield (bytes(memoryview(buffer)[:begin]),)
        else:
            piece, after = _long_line(stream, bytes(memoryview(buffer)[:end]), max_line_bytes)
            yield (piece,)
            buffer[: len(after)] = after  # it may be more than the buffer held
            begin, end = 0, len(after)
        limit = block_bytes


def _fill(buffer: bytearray, begin: int, end: int, stream: BinaryIO) -> int:
    """Read into buffer[begin:end], growing the buffer; returns where the data ends, before `end` if the stream ends."""
    while begin < end:
        if begin >= len(buffer):
            buffer += bytes(min(max(len(buffer), _FIRST_BYTES), end - len(buffer)))
        num_read = stream.readinto(memoryview(buffer)[begin:end])  # type: ignore[attr-defined]
        if not num_read:
            break
        begin += num_read
    return begin


def _end_of_lines(buffer: bytearray, begin: int, end: int, num_lines: int) -> int:
    """The end of the first `num_lines` lines of buffer[begin:end]; 0 if it has fewer."""
    while end - begin >= num_lines:
        stop = min(begin + _SKIP_BYTES, end)
        if (count := _num_line_feeds(memoryview(buffer)[begin:stop])) >= num_lines:
            line_feeds = np.frombuffer(buffer, np.uint8, stop - begin, begin) == LINE_FEED
            return begin + int(np.flatnonzero(line_feeds)[num_lines - 1]) + 1
        begin, num_lines = stop, num_lines - count
    return 0


def _long_line(stream: BinaryIO, buffer: bytes, max_line_bytes: int) -> tuple[Piece, bytes]:
    """The line at the start of `buffer`, which is longer than a block, and the bytes read after it."""
    pieces = [buffer]
    num_bytes, end = len(buffer), buffer.find(b"\n") + 1
    while not end and num_bytes < max_line_bytes + 2 and (more := stream.read(_SKIP_BYTES)):
        pieces.append(more)
        end = num_bytes + found if (found := more.find(b"\n") + 1) else 0
        num_bytes += len(more)
    buffer = b"".join(pieces)
    if end or num_bytes < max_line_bytes + 2:
        end = end or num_bytes
        return buffer[:end], buffer[end:]
    return _skipped_line(stream, buffer), b""


def _skipped_line(stream: BinaryIO, piece: bytes) -> SkippedLine:
    """Read the rest of a line, keeping only its hash; `piece` is the start of the line."""
    digest, num_bytes = hashlib.sha256(), 0
    while not piece.endswith(b"\n") and (following := stream.readline(_SKIP_BYTES)):
        digest.update(piece)
        num_bytes += len(piece)
        piece = following
    content = piece.removesuffix(b"\n")
    digest.update(content)
    return SkippedLine(
        num_bytes=num_bytes + len(content), end_bytes=len(piece) - len(content), sha256=digest.hexdigest()
    )


def _cut_in_twos(
    stream: BinaryIO, block_bytes: int, max_line_bytes: int, bom_bytes: int
) -> Iterator[tuple[Piece, ...]]:
    """As `_cut`, line by line: a block ends only after an even number of lines that are not blank."""

    def lines() -> Iterator[Piece]:
        while line := stream.readline(max_line_bytes + 2):
            is_kept = line.endswith(b"\n") or len(line) < max_line_bytes + 2
            yield line if is_kept else _skipped_line(stream, line)

    def is_text(line: Piece) -> bool:
        # a blank line that is too long is a reject, and so one of the two
        return isinstance(line, SkippedLine) or bool(line.strip()) or len(without_end(line)) > max_line_bytes

    return _group(lines(), block_bytes, bom_bytes, is_text)


def _group(
    lines: Iterable[Piece], block_bytes: int, num_bytes: int = 0, is_text: Callable[[Piece], bool] | None = None
) -> Iterator[tuple[Piece, ...]]:
    """Lines in groups of at most `block_bytes` and `MAX_LINES`; with `is_text`, of an even number of texts each."""
    group: list[Piece] = []
    num_texts = 0
    for line in lines:
        is_full = num_bytes + num_piece_bytes(line) > block_bytes or len(group) >= MAX_LINES
        if group and is_full and num_texts % 2 == 0:
            yield _joined(group)
            group, num_bytes = [], 0
        group.append(line)
        num_bytes += num_piece_bytes(line)
        num_texts += bool(is_text and is_text(line))
    if group:
        yield _joined(group)


def _joined(lines: list[Piece]) -> tuple[Piece, ...]:
    """Lines with each run of bytes joined into one piece."""
    pieces: list[Piece] = []
    for _, group in itertools.groupby(lines, type):
        run = list(group)
        pieces += [b"".join(run)] if isinstance(run[0], bytes) else run  # type: ignore[arg-type]
    return tuple(pieces)
