"""The rows of a JSON list, `[{...}, {...}]`: its elements one by one, in constant memory, over any line breaks.

The text of an element is kept, except that its line feeds become carriage returns, which makes it one line. Between
values both are white space; inside a string neither is allowed, so an invalid element stays invalid.

A list that is truncated, lacks a comma or has text after its end raises RejectedFileError. Errors inside an element are
left to the parser of rows.
"""

import hashlib
import io
import re
from collections.abc import Iterator

from rm_assets.data.sources.blocks import Piece, SkippedLine
from rm_assets.data.sources.opened_file import RejectedFileError
from rm_assets.data.tables.reasons import Reason

_CHUNK_BYTES = 2**20
_QUOTE = ord('"')
_WRAPPERS = rb"annotations|data|examples|instances|items|records|results|rows|samples"
_BEGIN = re.compile(rb'(?:\xef\xbb\xbf)?\s*(\{\s*"(?:%s)"\s*:\s*)?\[' % _WRAPPERS)
# Possessive: linear in the length of any text. Text with whole strings in it, up to a bracket or a comma between two
# elements, or up to a bracket inside an element; and the rest of a string, with the quote that ends it.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_BETWEEN = re.compile(rb'[^",\[\]{}]*+(?:%s[^",\[\]{}]*+)*+' % _STRING, re.DOTALL)
_WITHIN = re.compile(rb'[^"\[\]{}]*+(?:%s[^"\[\]{}]*+)*+' % _STRING, re.DOTALL)
_REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)


def list_begin(head: bytes) -> re.Match[bytes] | None:
    """Match the start of a list of rows, up to its bracket, also in `{"data": [...]}` and the like."""
    return _BEGIN.match(head)


def list_rows(stream: io.BufferedReader, begin: re.Match[bytes], max_line_bytes: int) -> Iterator[Piece]:
    """The elements of the list at the start of a stream, each as one line; longer ones are skipped."""
    reading = _List(max_line_bytes, closing=b"}" if begin[1] else b"")
    reading.num_bytes = len(stream.read(begin.end()))
    held_back = b""
    while chunk := stream.read(_CHUNK_BYTES):
        chunk = held_back + chunk
        held_back = b"\\" if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2 else b""  # it escapes what comes next
        chunk = chunk[: len(chunk) - len(held_back)]
        yield from reading.rows(chunk)
        reading.num_bytes += len(chunk)
    reading.require_end(held_back)


class _List:
    """Parser of a list after its first bracket; `num_bytes` were read before the present chunk."""

    def __init__(self, max_line_bytes: int, closing: bytes) -> None:
        self.num_bytes = 0
        self._num_rows = 0
        self._depth = 1  # open brackets; 1 between elements
        self._in_string = False
        self._element = _Element(max_line_bytes)
        self._is_closed = False  # the element ended with its bracket
        self._max_line_bytes = max_line_bytes
        self._closing = closing  # what must still follow the list

    def rows(self, chunk: bytes) -> Iterator[Piece]:
        """The elements that end in the next bytes of the list."""
        begin = at = 0
        while at < len(chunk):
            at = self._next_mark(chunk, at)
            mark = chunk[at : at + 1]
            if self._depth > 1:
                self._depth += (mark in b"[{") - (mark in b"]}") if mark else 0
                at += 1
                if self._depth == 1:
                    self._element.add(chunk[begin:at])
                    begin, self._is_closed = at, True
                continue
            self._add_between(chunk[begin:at], at)
            if mark in (b"[", b"{"):
                self._open(at)
                begin = at
            elif mark:
                yield from self._ended_element(mark, at)
                begin = at + 1
            at += 1
        if self._depth > 1:
            self._element.add(chunk[begin:])

    def _next_mark(self, chunk: bytes, at: int) -> int:
        """The position of the next bracket, or comma between elements; the chunk's length if there is none."""
        while at < len(chunk):
            if self._in_string:
                found = _REST_OF_STRING.match(chunk, at)
                assert found
                at, self._in_string = found.end(), not found[1]
                continue
            skipped = (_WITHIN if self._depth > 1 else _BETWEEN).match(chunk, at)
            assert skipped
            at = skipped.end()
            if at == len(chunk) or chunk[at] != _QUOTE:
                break
            at, self._in_string = at + 1, True
        return at

    def _add_between(self, text: bytes, at: int) -> None:
        """Handle text outside the elements' brackets: white space, a value without brackets, or an error."""
        if self._depth == 0:
            rest = text.strip()
            if not self._closing.startswith(rest):
                raise self._damaged("text after the end of the list", at)
            self._closing = self._closing.removeprefix(rest)
        elif not self._is_closed:
            self._element.add(text if self._element.num_bytes else text.lstrip())
        elif text.strip():
            raise self._damaged("no comma between two rows", at)

    def _open(self, at: int) -> None:
        if self._depth == 0:
            raise self._damaged("text after the end of the list", at)
        if self._is_closed or self._element.num_bytes:
            raise self._damaged("no comma between two rows", at)
        self._depth = 2

    def _ended_element(self, mark: bytes, at: int) -> Iterator[Piece]:
        """The element before a comma, or before the bracket that ends the list."""
        if self._depth == 0:
            self._add_between(mark, at)
            return
        if mark == b"}":
            raise self._damaged("an unmatched closing bracket", at)
        if self._element.num_bytes:
            yield self._element.line()
            self._num_rows += 1
        elif mark == b"," or self._num_rows:
            raise self._damaged("a comma without a row", at)
        self._element, self._is_closed = _Element(self._max_line_bytes), False
        self._depth -= mark == b"]"

    def require_end(self, left: bytes) -> None:
        """Raise RejectedFileError unless the list and its wrapper have ended, with nothing after them."""
        if self._depth or self._closing or left:
            raise self._damaged("the list is not closed", 0)

    def _damaged(self, problem: str, at: int) -> RejectedFileError:
        position = f"row {self._num_rows + 1}, byte {self.num_bytes + at + 1:,}"
        return RejectedFileError(Reason.DAMAGED_FILE, f"{problem} ({position})")


class _Element:
    """An element as one line, collected in parts; only the hash of one that is too long."""

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._parts: list[bytes] = []
        self._digest = hashlib.sha256()
        self._max_bytes = max_bytes

    def add(self, text: bytes) -> None:
        self.num_bytes += len(text)
        self._parts.append(text.replace(b"\n", b"\r"))
        if self.num_bytes > self._max_bytes:
            self._digest.update(b"".join(self._parts))
            self._parts = []

    def line(self) -> Piece:
        if self.num_bytes <= self._max_bytes:
            return b"".join(self._parts).rstrip() + b"\n"
        return SkippedLine(num_bytes=self.num_bytes, end_bytes=1, sha256=self._digest.hexdigest())
