"""Tools and tool calls as lines state them, to check the validated ones: the order of members counts.

They are read independently of the formats, by Python's `json`: every object in a line is a candidate, as is every
object in a text of it that is JSON.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rm_assets.data.storage.parquet import read_batches, read_table
from rm_assets.data.tables import schemas
from rm_assets.data.tables.message_columns import single_chunk

CALLS = pa.list_(pa.field("element", pa.struct([schemas.MESSAGE.field("tool_calls")]), nullable=False))
"""A column of conversations of which only the tool calls are read."""
Objects = dict[tuple[str, ...], list[dict[str, Any]]]
"""Objects by the names of their members."""


Line = tuple[str, int]
"""An annotation file and a line of it."""


def tools_by_line(rows: pa.Table) -> Iterator[tuple[Line, set[str]]]:
    """The JSON texts of tools and calls in validated rows, by line; only of rows that have some."""
    found: dict[int, set[str]] = defaultdict(set)
    has_tools = np.flatnonzero(rows["tools"].is_valid().to_numpy())
    for row, text in zip(has_tools.tolist(), rows["tools"].take(pa.array(has_tools)).to_pylist(), strict=True):
        found[row].add(text)
    for side in ("prompt", "chosen", "rejected"):
        lists = single_chunk(rows[side])
        calls = lists.values.field("tool_calls")
        places = np.flatnonzero(calls.is_valid().to_numpy(zero_copy_only=False))
        owners = np.searchsorted(lists.offsets.to_numpy(), places, side="right") - 1
        for row, text in zip(owners.tolist(), calls.take(pa.array(places)).to_pylist(), strict=True):
            found[row].add(text)
    sources, lines = (rows[name].take(pa.array(list(found), pa.int64())).to_pylist() for name in ("source", "line"))
    return zip(zip(sources, lines, strict=True), found.values(), strict=True)


def num_lines_with_other_tools(raw: Path | None, tools: Mapping[Line, set[str]], *, two_line_files: bool) -> int:
    """How many lines lack objects that these texts list; in two-line files the following line counts as well."""
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

    return all(is_written(item) or _is_call_in_text(item, is_written) for text in texts for item in json.loads(text))


def _is_call_in_text(item: dict[str, Any], is_written: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether a call has the name and arguments that ShareGPT's `function_call` states."""
    call = item.get("function")
    if len(item) != 2 or not isinstance(call, dict) or list(call) != ["name", "arguments"]:
        return False
    return isinstance(call["arguments"], str) or is_written(call["arguments"])


def _objects(lines: list[str]) -> Objects:
    """All objects of lines; those outside of texts without their null members."""
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
            values += _inner(value)
    return found


def _inner(text: str) -> list[Any]:
    """The value of a text that is JSON: as written, and without null members."""
    try:
        value = json.loads(text)
        return [value, _without_nulls(value)]
    except (ValueError, RecursionError):
        return []


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(member) for name, member in value.items() if member is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
