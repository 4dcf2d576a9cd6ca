"""Checks that validated tools and tool calls are those of their lines, with the same order of members.

Lines are read independently of the formats, by Python's `json`: a tool or call may equal any object of its line, also
one in a string that is JSON.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rm_assets.data.storage.parquet import read_batches, read_table
from rm_assets.data.tables import schemas
from rm_assets.data.tables.message_columns import single_chunk

CALLS = pa.list_(pa.field("element", pa.struct([schemas.MESSAGE.field("tool_calls")]), nullable=False))
"""A column of conversations, of which only the tool calls are read."""

Objects = dict[tuple[str, ...], list[dict[str, Any]]]
"""Objects by the names of their members, in order."""

Line = tuple[str, int]
"""An annotation file and a line of it."""


def tools_by_line(rows: pa.Table) -> Iterator[tuple[Line, set[str]]]:
    """The JSON texts of the tools and calls of each line with validated rows that have any."""
    found: dict[int, set[str]] = defaultdict(set)
    has_tools = np.flatnonzero(rows["tools"].is_valid().to_numpy())
    for row, text in zip(has_tools.tolist(), rows["tools"].take(pa.array(has_tools)).to_pylist(), strict=True):
        found[row].add(text)
    for side in ("prompt", "chosen", "rejected"):
        lists = single_chunk(rows[side])
        calls = lists.values.field("tool_calls")
        with_calls = np.flatnonzero(calls.is_valid().to_numpy(zero_copy_only=False))
        row_of_each = np.searchsorted(lists.offsets.to_numpy(), with_calls, side="right") - 1
        for row, text in zip(row_of_each.tolist(), calls.take(pa.array(with_calls)).to_pylist(), strict=True):
            found[row].add(text)
    sources, lines = (rows[name].take(pa.array(list(found), pa.int64())).to_pylist() for name in ("source", "line"))
    return zip(zip(sources, lines, strict=True), found.values(), strict=True)


def num_lines_with_other_tools(raw: Path | None, tools: Mapping[Line, set[str]], *, two_line_files: bool) -> int:
    """How many lines lack a tool or call of these texts; in two-line files, it may be in the following line."""
    if not tools or raw is None:
        return len(tools)
    wanted, num_valid = pa.array({line for _, line in tools}, pa.int64()), 0
    columns = ["source", "line", "text"]
    # the two lines of a pair may be in two row groups
    batches = [read_table([raw], schemas.RAW, columns)] if two_line_files else read_batches(raw, schemas.RAW, columns)
    for rows in batches:
        for row in np.flatnonzero(pc.is_in(rows["line"], wanted).to_numpy()).tolist():
            own, *following = rows.slice(row, 1 + two_line_files).to_pylist()
            texts = [own["text"], *(each["text"] for each in following if each["source"] == own["source"])]
            if (line := (own["source"], own["line"])) in tools:  # several files may have a line of this number
                num_valid += _are_as_written(texts, tools[line])
    return len(tools) - num_valid


def _are_as_written(lines: list[str], texts: set[str]) -> bool:
    written = _objects(lines)
    known: dict[tuple[str, ...], set[str]] = {}

    def is_written(item: dict[str, Any]) -> bool:
        names = tuple(item)
        if names not in known:
            known[names] = set(map(json.dumps, written.get(names, ())))
        return json.dumps(item) in known[names]

    others = [item for text in texts for item in json.loads(text) if not is_written(item)]
    return not others or set(map(_name_and_arguments, others)) <= _calls_in_texts(written)


def _name_and_arguments(item: dict[str, Any]) -> str:
    """A call as `function_call_text` writes it, compared by its name and arguments; empty for any other object."""
    call = item.get("function")
    is_call = len(item) == 2 and isinstance(call, dict) and list(call) == ["name", "arguments"]
    return json.dumps([call["name"], call["arguments"]]) if is_call and call else ""


def _calls_in_texts(written: Objects) -> set[str]:
    """The names and arguments that a `function_call` of ShareGPT may hold, in any order and with other members."""
    return {
        json.dumps([call["name"], call["arguments"]])
        for names, objects in written.items()
        if "name" in names and "arguments" in names
        for call in objects
    }


def _objects(lines: list[str]) -> Objects:
    """All objects of lines, those in strings included; outside of strings without null members."""
    found: Objects = {}
    values = [_without_nulls(json.loads(line)) for line in lines]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            found.setdefault(tuple(value), []).append(value)
            values += value.values()
        elif isinstance(value, list):
            values += value
        elif isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            values += _parse_inner(value)
    return found


def _parse_inner(text: str) -> list[Any]:
    """The value of a string that is JSON, as written and without null members; empty for other strings."""
    try:
        value = json.loads(text)
        return [value, _without_nulls(value)]
    except (ValueError, RecursionError):
        return []


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(member) for name, member in value.items() if member is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
