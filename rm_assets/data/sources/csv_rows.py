"""The rows of a CSV or TSV file, each as one line of JSON: names from the header, all values strings, empty ones null.

Row numbers start after the header and include blank rows, as in a spreadsheet. A row with more or fewer fields than the
header is a reject. A quote that is never closed, or is closed inside a field, would make one field swallow the rows
that follow: such a file is rejected whole, with the line in the error. A TSV file may contain quotes as plain text; a
row where two of them enclose line ends, and a field thus holds the rows between, is a reject.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator

import msgspec

from rm_assets.data.sources.blocks import Piece, SkippedLine
from rm_assets.data.sources.opened_file import RejectedFileError
from rm_assets.data.tables.reasons import Reason

_DELIMITERS = (",", ";", "\t", "|")
_QUOTED = re.compile('"[^"]*"')
_DECLARED = re.compile("sep=(.)\\s*$")  # a first line that Excel understands
_LONGEST_NAME = 200
_HEADER_LINES = 100
_QUOTE_RULE = 'write a quote inside a quoted field as ""'
_MOST_CHARACTERS = 2**40
_ENCODER = msgspec.json.Encoder()


def csv_rows(stream: io.BufferedReader, delimiter: str, max_line_bytes: int) -> Iterator[Piece]:
    """The rows after the header, in order; raises RejectedFileError where the file cannot be split into rows."""
    head = stream.peek(1)
    line_end = "\r" if b"\r" in head and b"\n" not in head else "\n"  # a lone return ends rows everywhere or nowhere
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=line_end)
    lines = _Lines(text, min(2 * max_line_bytes, _MOST_CHARACTERS) + _LONGEST_NAME)
    header, is_declared = lines.header(), delimiter == "\t"
    if declared := _DECLARED.match(header):
        next(iter(lines))
        delimiter, header, is_declared = declared[1], lines.header(), True
    header = _QUOTED.sub("", header)
    if not (is_declared and delimiter in header):
        delimiter = max((delimiter, *_DELIMITERS), key=header.count)
    # _Lines bounds the length of a field; the csv module's own limit applies to the whole process
    csv.field_size_limit(max(csv.field_size_limit(), lines.most_characters))
    reader = csv.reader(lines, strict=True, delimiter=delimiter, skipinitialspace=_has_spaces(header, delimiter))
    try:
        names = _names(next(reader, []))
        lines.begin_row()
        for fields in reader:
            if delimiter == "\t" and any(_holds_rows(field, at, len(names)) for at, field in enumerate(fields)):
                detail = 'a quoted field contains whole rows: write a quote inside a field as "", and quote that field'
                yield _rejected(fields, Reason.MALFORMED_ROW, detail)
            else:
                yield _line(fields, names)
            lines.begin_row()
    except csv.Error as error:
        detail, row = str(error).partition(" - ")[0], f"the row that begins on line {lines.row_begin}"
        problem = f"{row} has an unbalanced quote or a similar error: {detail} (line {lines.number}); {_QUOTE_RULE}"
        raise RejectedFileError(Reason.DAMAGED_FILE, problem) from None


class _Lines:
    """The lines of a text; a row of more than `most_characters` raises RejectedFileError."""

    def __init__(self, text: io.TextIOWrapper, most_characters: int) -> None:
        self.most_characters = most_characters
        self.num_characters = 0  # of this row
        self.number = 0
        self.row_begin = 1
        self._text = text
        self._waiting: list[str] = []  # read ahead for the header

    def __iter__(self) -> Iterator[str]:
        while line := self._next():
            yield line

    def _next(self) -> str:
        line = self._waiting.pop(0) if self._waiting else self._text.readline(self.most_characters + 1)
        self.number += bool(line)
        self.num_characters += len(line)
        if self.num_characters > self.most_characters:
            problem = f"has more than {self.most_characters:,} characters, perhaps because a quote is never closed"
            raise RejectedFileError(Reason.DAMAGED_FILE, f"the row that begins on line {self.row_begin} {problem}")
        return line

    def begin_row(self) -> None:
        """Note that the next line starts a row."""
        self.num_characters, self.row_begin = 0, self.number + 1

    def header(self) -> str:
        """The first row that is not blank, without consuming it; raises RejectedFileError if there is none.

        It spans several lines where a quoted name does.
        """
        while line := self._next():
            if line.strip():
                return self._header_from(line)
            self.begin_row()
        raise RejectedFileError(Reason.DAMAGED_FILE, "it has no header")

    def _header_from(self, line: str) -> str:
        read, is_open = [line], line.count('"') % 2
        while is_open and len(read) < _HEADER_LINES and (line := self._next()):
            read.append(line)
            is_open ^= line.count('"') % 2
        self._waiting, self.number = read, self.number - len(read)
        self.begin_row()
        return read[0] if is_open else "".join(read)


def _has_spaces(header: str, delimiter: str) -> bool:
    """Whether a space follows each delimiter; before a quote it would make the quote part of the text."""
    _, *names = header.split(delimiter)
    return bool(names) and all(name.startswith(" ") for name in names)


def _names(header: list[str]) -> list[bytes]:
    """The names of the columns as JSON; that of an index written by pandas is empty."""
    longest = max(map(len, header))
    if longest > _LONGEST_NAME:
        raise RejectedFileError(
            Reason.DAMAGED_FILE,
            f"its first row is not a header, of names with at most {_LONGEST_NAME} characters: one has {longest:,}",
        )
    if any("\0" in name for name in header):
        raise RejectedFileError(Reason.NOT_UTF8, "its header contains NUL bytes: save it as UTF-8")
    try:
        return [_ENCODER.encode(name.strip()) + b":" for name in header]
    except UnicodeEncodeError:
        raise RejectedFileError(Reason.NOT_UTF8, "its header is not valid UTF-8: save it as UTF-8") from None


def _holds_rows(field: str, column: int, num_columns: int) -> bool:
    """Whether a field of a TSV file consists of the end of a row, whole rows, and the beginning of another one.

    Lines that begin with a tab are taken for indented code, since few rows do.
    """
    if "\t" not in field or "\n" not in field:
        return False
    lines = field.split("\n")
    widths = [num_columns - 1 - column, *[num_columns - 1] * (len(lines) - 2), column]
    return [line.count("\t") for line in lines] == widths and not any(line.startswith("\t") for line in lines)


def _line(fields: list[str], names: list[bytes]) -> Piece:
    if not any(fields) or (len(fields) == 1 and not fields[0].strip()):
        return b"\n"
    if "\0" in "".join(fields):
        detail = "the row contains NUL bytes, as an interrupted write or copy leaves them: deliver the file again"
        return _rejected(fields, Reason.MALFORMED_ROW, detail)
    if len(fields) != len(names):
        return _rejected(fields, Reason.MALFORMED_ROW, f"{len(fields)} instead of {len(names)} fields")
    try:
        values = [_ENCODER.encode(field) if field else b"null" for field in fields]
    except UnicodeEncodeError:
        return _rejected(fields, Reason.NOT_UTF8, "a field is not valid UTF-8: save the file as UTF-8")
    return b"{%s}\n" % b",".join(map(bytes.__add__, names, values))


def _rejected(fields: list[str], reason: Reason, detail: str) -> SkippedLine:
    content = json.dumps(fields).encode()
    sha256 = hashlib.sha256(content).hexdigest()
    return SkippedLine(num_bytes=len(content), end_bytes=1, sha256=sha256, reason=reason, detail=detail)
