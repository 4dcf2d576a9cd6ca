"""The lines of a raw shard, file by file, and what to parse together: one line, or in two-line files two."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from rm_assets.data.formats.parsing import parse_line
from rm_assets.data.formats.preferences import ParsedLine, ParsingRules
from rm_assets.data.formats.two_lines import NumberedLine, pairs_of_lines, parse_two_lines
from rm_assets.data.storage.parquet import read_batches
from rm_assets.data.tables import schemas

Statement = tuple[list[NumberedLine], Callable[[], ParsedLine]]
"""One or two lines that are read together, and the function that parses them."""


def statements_by_source(
    path: Path | None, rejected: Path | None, rules: Mapping[str, ParsingRules]
) -> Iterator[list[tuple[str, Iterable[Statement], int]]]:
    """The statements of each row group, by file, each with its number of lines; `rules` are those of all files.

    In two-line files, those of all row groups at once: `rejected` has the lines that raw_preferences rejected.
    """
    if any(each.two_line_files for each in rules.values()):
        yield [
            (source, _two_lines(lines), sum(text is not None for _, text in lines))
            for source, lines in lines_by_source(path, rejected).items()
            if source in rules
        ]
        return
    for rows in read_batches(path, schemas.RAW):
        lines = zip(rows["line"].to_pylist(), _utf8(rows["text"]), strict=True)
        files = itertools.groupby(rows["source"].to_pylist())
        runs = [(source, list(itertools.islice(lines, sum(1 for _ in run)))) for source, run in files]
        # lines of any other file are left out, and counted as not read
        yield [(source, _single_lines(own, rules[source]), len(own)) for source, own in runs if source in rules]


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
