"""The data stages and the Arrow schemas of all datasets."""

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pyarrow as pa


class Stage(StrEnum):
    """The data stages, in pipeline order; each value is the name of the stage's asset."""

    RAW = "raw_preferences"
    VALIDATED = "validated_preferences"
    FLATTENED = "flattened_conversations"
    TOKENIZED = "tokenized_pairs"
    PADDED = "padded_pairs"


def _schema(*groups: list[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema([pa.field(name, dtype, name in _MAY_BE_NULL) for group in groups for name, dtype in group])


_MAY_BE_NULL = {"tools"}
"""Null without tools, as TRL expects: it parses any text as JSON."""
_LINE = [("source", pa.string()), ("line", pa.int64())]
# `chosen_key` and `rejected_key` hash the normalized conversations, to find equal and flipped pairs.
_PAIR = [
    *_LINE,
    ("pair_id", pa.string()),
    ("prompt_key", pa.string()),
    ("chosen_key", pa.string()),
    ("rejected_key", pa.string()),
]
MESSAGE = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("content", pa.string()),
        pa.field("name", pa.string()),
        pa.field("reasoning_content", pa.string()),
        pa.field("tool_calls", pa.string()),  # JSON
        pa.field("tool_call_id", pa.string()),
    ]
)
PAIR_COLUMNS = tuple(name for name, _ in _PAIR)
"""The columns that every row has from validation on."""
_MESSAGES = pa.list_(pa.field("element", MESSAGE, nullable=False))
_IDS = pa.list_(pa.field("element", pa.int32(), nullable=False))
_MASK = pa.list_(pa.field("element", pa.int8(), nullable=False))

RAW = _schema(_LINE, [("text", pa.string())])
VALIDATED = _schema(
    _PAIR,
    [
        ("prompt", _MESSAGES),
        ("chosen", _MESSAGES),
        ("rejected", _MESSAGES),
        ("tools", pa.string()),  # JSON
        ("margin", pa.float32()),
        ("format", pa.string()),
        ("num_turns", pa.int32()),
        ("subset", pa.string()),
        ("num_annotators", pa.int32()),  # 0 if unknown
        ("num_agreeing", pa.int32()),
    ],
)
FLATTENED = _schema(
    _PAIR,
    [
        *[("prompt", pa.string()), ("chosen", pa.string()), ("rejected", pa.string()), ("margin", pa.float32())],
        # control tokens written by the template: if the token ids contain more, a text forged one
        *[("chosen_control_tokens", pa.int32()), ("rejected_control_tokens", pa.int32())],
    ],
)
TOKENIZED = _schema(
    _PAIR,
    [
        ("chosen_ids", _IDS),
        ("rejected_ids", _IDS),
        ("prefix_length", pa.int32()),
        ("num_dropped_turns", pa.int32()),
        ("margin", pa.float32()),
    ],
)
PADDED = _schema(
    _PAIR,
    [
        ("chosen_input_ids", _IDS),
        ("chosen_attention_mask", _MASK),
        ("rejected_input_ids", _IDS),
        ("rejected_attention_mask", _MASK),
        ("chosen_length", pa.int32()),
        ("rejected_length", pa.int32()),
        ("prefix_length", pa.int32()),
        ("margin", pa.float32()),
    ],
)
REJECTS = _schema(
    _LINE,
    [("stage", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("line_sha256", pa.string())],
)


def build_table(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """A table of these columns, by name. Arrow arrays are used as they are, other sequences converted."""
    given = [columns[field.name] for field in schema]
    arrays = [
        array if isinstance(array, pa.Array | pa.ChunkedArray) else pa.array(array, field.type)
        for array, field in zip(given, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def num_rows_by_source(rows: pa.Table) -> Counter[str]:
    """How many rows come from each annotation file."""
    return Counter({each["values"]: each["counts"] for each in rows["source"].value_counts().to_pylist()})


def _nullable(names: list[str], dtype: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, dtype) for name in names]


# Benchmark rules only have an accuracy; the prompt baselines only exist for rescored pairs.
REPORT = pa.schema(
    [
        *_schema([("slice", pa.string()), ("value", pa.string())]),
        *_schema([("num_pairs", pa.int64()), ("num_prompts", pa.int64())]),
        *_schema([(name, pa.float64()) for name in ("accuracy", "accuracy_low", "accuracy_high")]),
        *_nullable(["log_loss", "expected_calibration_error"], pa.float64()),
        *_nullable(["mean_chosen_score", "std_chosen_score"], pa.float64()),
        *_nullable(["mean_rejected_score", "std_rejected_score"], pa.float64()),
        *_nullable(["longer_wins", "shorter_wins", "without_prompt", "other_prompt"], pa.float64()),
    ]
)
REPORT_PAIRS = pa.schema(
    [
        *_schema([*_LINE, ("pair_id", pa.string()), ("prompt_key", pa.string()), ("split", pa.string())]),
        *_schema([("format", pa.string()), ("num_turns", pa.int32()), ("script", pa.string())]),
        *_schema([("length_difference", pa.string()), ("margin", pa.string()), ("subset", pa.string())]),
        *_schema([("agreement", pa.string())]),
        *_schema([(name, pa.float64()) for name in ("chosen_score", "rejected_score", "difference", "correct")]),
        *_schema([("chosen_length", pa.int32()), ("rejected_length", pa.int32())]),
        *_nullable(["without_prompt", "other_prompt"], pa.float64()),
    ]
)
"""The pairs that a report counts. `correct` and the baselines are 1, 0.5 for a tie, or 0."""

CALIBRATION = pa.schema(
    [
        *_schema([("bin_low", pa.float64()), ("bin_high", pa.float64()), ("num_pairs", pa.int64())]),
        *_nullable(["confidence", "frequency", "frequency_low", "frequency_high"], pa.float64()),
    ]
)
SCORES = _schema(
    [*_LINE, ("pair_id", pa.string()), ("prompt_key", pa.string()), ("split", pa.string())],
    [("chosen_score", pa.float32()), ("rejected_score", pa.float32())],
    [("chosen_length", pa.int32()), ("rejected_length", pa.int32()), ("margin", pa.float32())],
)
"""A model's scores of held-out pairs, a row each; lengths in tokens."""

PROMOTED = _schema([("model", pa.string()), ("file", pa.string()), ("sha256", pa.string())])
"""The promoted model's files, relative to `reward_model/<model>`."""

PUBLISHED = _schema([(name, pa.string()) for name in ("repository", "commit", "file", "sha256")])
"""The files pushed to each repository of the Hub, and the commit with them."""

SUSPECTS = _schema(
    [*_LINE, ("pair_id", pa.string()), ("prompt_key", pa.string()), ("fold", pa.int64())],
    [(name, pa.float64()) for name in ("chosen_score", "rejected_score", "margin", "suspicion")],
)
