"""Dagster metadata from Arrow schemas, tables and plain dicts.

A Dagster table admits only str, int, float, bool and None, and the same columns in each row. Metadata is stored as
JSON, which has neither NaN nor infinities: here NaN becomes None, and an infinity the text 'inf' or '-inf'.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa

from rm_assets.defs.results.column_meanings import MEANINGS, UNITS
from rm_assets.display_text import as_code, as_code_cell, shorten

MAX_ROWS = 100
NUM_PREVIEW_ROWS = 5
NUM_SHOWN_VALUES = 3
NUM_SHOWN_FIELDS = 2
MESSAGE_CHARACTERS = 60
CELL_CHARACTERS = 500
CONVERSATION_CHARACTERS = 240
Cell = str | int | float | bool | None

# The line ends of str.splitlines.
_LINE_BREAK = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_FLOATS = {pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64"}


def schema_metadata(schema: pa.Schema, **meanings: str) -> dict[str, Any]:
    """An asset's static column schema; `meanings` as for `column_schema`."""
    return {"dagster/column_schema": column_schema(schema, **meanings)}


def location_metadata(directory: Path) -> dict[str, Any]:
    """Where an asset's files are, as the link and the path that the UI shows."""
    return {"dagster/uri": directory.resolve().as_uri(), "path": dg.MetadataValue.path(str(directory))}


def numbers(metrics: Mapping[str, Any]) -> dict[str, int | float]:
    """Only the figures that are numbers, which Dagster plots over time; floats with five significant digits."""
    found = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in found.items()}


def figures_table(figures: Mapping[str, int | float]) -> dg.MarkdownMetadataValue:
    """Figures as a Markdown table with units: as plots, they would hide those that people follow."""
    rows = [
        f"| {as_code_cell(name)} | {_readable(value)} {UNITS.get(name, '')}".rstrip() + " |"
        for name, value in figures.items()
    ]
    return dg.MetadataValue.md("\n".join(["| figure | value |", "|---|---|", *rows]))


def _readable(value: int | float) -> str:
    return f"{value:,.5g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"


def column_schema(schema: pa.Schema, **meanings: str) -> dg.TableSchema:
    """An Arrow schema for Dagster's column view, types written like `list<struct<role, content, … 4 more>>`.

    `meanings` describes columns whose meaning differs from the usual one.
    """
    known = MEANINGS | meanings
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=field.name,
                type=_type_name(field.type),
                description=known.get(field.name),
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in schema
        ]
    )


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None) -> dg.TableMetadataValue:
    """A table of plain dicts, where a missing key is None.

    `columns` gives names and types in order, and must have every key; by default both are inferred from the rows.
    At most MAX_ROWS rows are shown, and then one that says how many are not.
    """
    kept = [{name: _cell(value) for name, value in row.items()} for row in rows[:MAX_ROWS]]
    columns = _inferred_columns(kept) if columns is None else columns
    unknown = {name for row in kept for name in row} - set(columns)
    assert not unknown, f"rows have columns that the table lacks: {sorted(unknown)!r}"
    if len(rows) > MAX_ROWS:
        kept.append({next(iter(columns)): f"… {len(rows) - MAX_ROWS:,} more rows, not shown"})
    return dg.TableMetadataValue(
        records=[dg.TableRecord({name: row.get(name) for name in columns}) for row in kept],
        schema=dg.TableSchema.from_name_type_dict(columns),
    )


def excerpt(text: str, limit: int = 120) -> str:
    """The first `limit` characters of a text, on one line (line breaks as ⏎), and how many were omitted.

    With limit 4, "one\\ntwo" is "one⏎… 3 more characters".
    """
    line = _LINE_BREAK.sub("⏎", text)
    num_omitted = len(line) - limit
    return line if num_omitted <= 0 else f"{line[:limit]}… {num_omitted:,} more characters"


def preview(rows: pa.Table) -> dg.TableMetadataValue:
    """The first rows of an Arrow table, each cell shortened.

    A list of numbers shows its first values and its full length, `[1, 2, 3, … 412 ids]` for int32 and
    `values` for other types; a list of messages shows as `user: … | assistant: …`.
    """
    schema = rows.schema
    shown = [
        {field.name: _shown(row[field.name], field.type) for field in schema}
        for row in rows.slice(0, NUM_PREVIEW_ROWS).to_pylist()
    ]
    return table(shown, {field.name: _type_name(field.type) for field in schema})


def pair_preview(rows: pa.Table) -> dg.MarkdownMetadataValue:
    """The first pairs of a table with the columns source, line, prompt, chosen and rejected, a block each.

    The texts are shortened, and shown as code: nothing in them is read as Markdown.
    """
    blocks = []
    for row in rows.slice(0, NUM_PREVIEW_ROWS).to_pylist():
        sides = [
            f"- **{name}** {as_code(_shown_side(row[name]), 2 * CELL_CHARACTERS)}"
            for name in ("prompt", "chosen", "rejected")
        ]
        blocks.append("\n".join([f"{as_code(row['source'])}, line {row['line']}", "", *sides]))
    return dg.MetadataValue.md("\n\n---\n\n".join(blocks))


def percentiles(values: np.ndarray) -> dict[str, float]:
    """Mean, median, two high percentiles and largest value; percentiles are linear between neighbours.

    Empty for no values: a stage that rejected every row still shows its metadata.
    """
    if len(values) == 0:
        return {}
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    figures = {"mean": np.mean(values), "p50": p50, "p90": p90, "p99": p99, "max": np.max(values)}
    return {name: float(value) for name, value in figures.items()}


def _type_name(dtype: pa.DataType) -> str:
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return f"list<{_type_name(dtype.value_type)}>"
    if pa.types.is_struct(dtype):
        return f"struct<{', '.join(_shown_names([field.name for field in dtype.fields]))}>"
    return _FLOATS.get(dtype, str(dtype))  # Arrow itself writes "float" and "double"


def _shown_names(names: Sequence[str]) -> list[str]:
    """The names of a struct's fields; only the first few, because the page cuts off long types."""
    num_omitted = len(names) - NUM_SHOWN_FIELDS
    return [*names[:NUM_SHOWN_FIELDS], f"… {num_omitted} more"] if num_omitted > 0 else list(names)


def _inferred_columns(rows: Sequence[Mapping[str, Cell]]) -> dict[str, str]:
    """Names in the order of first appearance, each with the type of its values; `string` if these differ."""
    types: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            seen = types.setdefault(name, set())
            if value is not None:
                seen.add(dg.TableMetadataValue.infer_column_type(value))
    return {name: _common_type(seen) for name, seen in types.items()}


def _common_type(types: set[str]) -> str:
    if types == {"int", "float"}:
        return "float"
    return types.pop() if len(types) == 1 else "string"


def _cell(value: Any) -> Cell:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value if isinstance(value, int | float | None) else shorten(str(value), CELL_CHARACTERS)


def _shown(value: Any, dtype: pa.DataType) -> Cell:
    if isinstance(value, str):
        return excerpt(value)
    if not isinstance(value, list):
        return _cell(value)
    if pa.types.is_struct(dtype.value_type) and dtype.value_type.get_field_index("role") >= 0:
        return excerpt(" | ".join(map(_shown_message, value)), CONVERSATION_CHARACTERS)
    return _shown_list(value, "ids" if pa.types.is_int32(dtype.value_type) else "values")


def _shown_list(values: Sequence[Any], noun: str) -> str:
    first = [excerpt(str(value)) for value in values[:NUM_SHOWN_VALUES]]
    if len(values) > NUM_SHOWN_VALUES:
        first.append(f"… {len(values):,} {noun}")
    return f"[{', '.join(first)}]"


def _shown_side(value: str | list[Mapping[str, Any]]) -> str:
    """A text or messages, as an excerpt that is longer than that in a table's cell."""
    whole = (
        value if isinstance(value, str) else " | ".join(_shown_message(one, CONVERSATION_CHARACTERS) for one in value)
    )
    return excerpt(whole, CELL_CHARACTERS)


def _shown_message(message: Mapping[str, Any], limit: int = MESSAGE_CHARACTERS) -> str:
    text = message.get("content") or message.get("tool_calls") or ""
    return f"{message['role']}: {excerpt(text, limit)}"
