"""The lines of a raw shard, file by file, and what to parse together: one line, or in two-line files two."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rm_assets.data.formats.message_batches import parse_messages
from rm_assets.data.formats.parsing import parse_line
from rm_assets.data.formats.preferences import ParsedLine, ParsingRules
from rm_assets.data.formats.two_lines import NumberedLine, pairs_of_lines, parse_two_lines
from rm_assets.data.storage.parquet import read_batches
from rm_assets.data.tables import schemas
from rm_assets.data.tables.message_columns import single_chunk

Statement = tuple[list[NumberedLine], Callable[[], ParsedLine]]
"""One or two lines that are read together, and the function that parses them."""


class ParsedLines(NamedTuple):
    """The lines that Arrow parsed, int64 [pairs], and their conversations, a column of lists for each side."""

    lines: NDArray[np.int64]
    sides: tuple[pa.ListArray, ...]


class Batch(NamedTuple):
    """The statements of a row group by file, each with its number of lines; `parsed` has the lines that need none."""

    files: Sequence[tuple[str, Iterable[Statement], int]]
    parsed: ParsedLines | None = None


def statements_by_source(
    path: Path | None, rejected: Path | None, rules: Mapping[str, ParsingRules], *, may_skip_parsing: bool
) -> Iterator[Batch]:
    """The statements of each row group; `rules` are those of all files.

    In two-line files, those of all row groups at once: `rejected` has the lines that raw_preferences rejected. With
    `may_skip_parsing`, sound lines of messages alone are parsed together.
    """
    if any(each.two_line_files for each in rules.values()):
        yield Batch(
            [
                (source, _two_lines(lines), sum(text is not None for _, text in lines))
                for source, lines in lines_by_source(path, rejected).items()
                if source in rules
            ]
        )
        return
    for rows in read_batches(path, schemas.RAW):
        parsed, rows = _parsed(rows, rules) if may_skip_parsing else (None, rows)
        lines = zip(rows["line"].to_pylist(), _utf8(rows["text"]), strict=True)
        by_source = itertools.groupby(rows["source"].to_pylist())
        runs = [(source, list(itertools.islice(lines, sum(1 for _ in run)))) for source, run in by_source]
        # lines of any other file are left out, and counted as not read
        files = [(source, _single_lines(own, rules[source]), len(own)) for source, own in runs if source in rules]
        yield Batch(files, parsed)


def _parsed(rows: pa.Table, rules: Mapping[str, ParsingRules]) -> tuple[ParsedLines | None, pa.Table]:
    """The lines of the only file that are parsed together, and the other rows."""
    if rows["source"].unique().to_pylist() != [*rules]:
        return None, rows
    found = parse_messages(single_chunk(rows["text"]))
    if found is None:
        return None, rows
    lines = rows["line"].to_numpy()[found.is_parsed]
    return ParsedLines(lines, found.sides), rows.filter(pa.array(~found.is_parsed))


def lines_by_source(path: Path | None, rejected: Path | None) -> dict[str, list[NumberedLine]]:
    """All lines of a shard, by file; rejected ones without their text."""
    found: dict[str, list[NumberedLine]] = {}
    for rows in read_batches(path, schemas.RAW):
        numbered = zip(rows["line"].to_pylist(), _utf8(rows["text"]), strict=True)
        for source, line in zip(rows["source"].to_pylist(), numbered, strict=True):
            found.setdefault(source, []).append(line)
    for rejects in read_batches(rejected, schemas.REJECTS, ["source", "line"]):
        for source, line in zip(rejects["source"].to_pylist(), rejects["line"].to_pylist(), strict=True):
            if line:
                found.setdefault(source, []).append((line, None))
    return found


def _two_lines(lines: list[NumberedLine]) -> Iterator[Statement]:
    for first, second in pairs_of_lines(lines):
        yield [first, *([second] if second else [])], functools.partial(parse_two_lines, first, second)


def _single_lines(lines: list[tuple[int, bytes]], rules: ParsingRules) -> Iterator[Statement]:
    for line, text in lines:
        yield [(line, text)], functools.partial(parse_line, text, rules)


def _utf8(texts: pa.ChunkedArray) -> list[bytes]:
    """Texts as bytes, as the JSON parser takes them."""
    return list(texts.cast(pa.binary()).to_pylist())
