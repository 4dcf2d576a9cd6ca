import json
import math

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.data.tables.schemas import PADDED, VALIDATED
from rm_assets.defs.results.column_meanings import MEANINGS
from rm_assets.defs.results.metadata import (
    MAX_ROWS,
    column_schema,
    excerpt,
    figures_table,
    numbers,
    pair_preview,
    percentiles,
    preview,
    table,
)


def records(value):
    return [dict(record.data) for record in value.records]


def types(value):
    return {column.name: column.type for column in value.schema.columns}


def strict_json(value):
    """Parses what Dagster stores, as a browser would: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(dg.serialize_value(value), parse_constant=refuse)


def test_column_types_read_like_types():
    names = {column.name: column.type for column in column_schema(PADDED).columns}
    assert names["chosen_input_ids"] == "list<int32>"
    assert names["chosen_attention_mask"] == "list<int8>"
    assert names["margin"] == "float32"
    assert names["line"] == "int64"
    messages = {column.name: column.type for column in column_schema(VALIDATED).columns}["prompt"]
    assert messages == "list<struct<role, content, … 4 more>>"


def test_a_column_has_the_description_of_its_name_or_of_its_place():
    schema = pa.schema([("line", pa.int64()), ("margin", pa.float64()), ("own", pa.string())])
    described = {column.name: column.description for column in column_schema(schema, margin="Here it is this.").columns}
    assert described == {"line": MEANINGS["line"], "margin": "Here it is this.", "own": None}


def test_a_struct_of_few_fields_names_them_all():
    few = pa.struct([("from", pa.string()), ("value", pa.string())])
    assert [column.type for column in column_schema(pa.schema([("a", few)])).columns] == ["struct<from, value>"]


def test_floats_are_named_by_their_size():
    schema = pa.schema([("half", pa.float16()), ("double", pa.float64()), ("large", pa.large_list(pa.float32()))])
    assert [column.type for column in column_schema(schema).columns] == [
        "float16",
        "float64",
        "list<float32>",
    ]


def test_columns_keep_whether_they_may_be_null():
    schema = pa.schema([pa.field("a", pa.string(), nullable=False), pa.field("b", pa.string())])
    assert [column.constraints.nullable for column in column_schema(schema).columns] == [False, True]


def test_a_table_of_rows_with_different_keys():
    value = table([{"a": 1}, {"b": "x", "a": 2.5}])
    assert records(value) == [{"a": 1, "b": None}, {"a": 2.5, "b": "x"}]
    assert types(value) == {"a": "float", "b": "string"}


def test_types_are_not_decided_by_the_first_row():
    value = table([{"a": None, "b": None, "c": 1}, {"a": True, "b": None, "c": "x"}, {"a": False, "b": None, "c": 2}])
    assert types(value) == {"a": "bool", "b": "string", "c": "string"}


def test_given_columns_fix_order_and_types_also_without_rows():
    assert types(table([], {"b": "int", "a": "string"})) == {"b": "int", "a": "string"}
    assert list(records(table([{"a": "x", "b": 1}], {"b": "int", "a": "string"}))[0]) == ["b", "a"]
    assert records(table([])) == []


def test_a_key_without_a_column_is_not_dropped_in_silence():
    with pytest.raises(AssertionError, match="'b'"):
        table([{"a": 1, "b": 2}], {"a": "int"})


def test_a_cut_table_says_how_much_is_missing():
    value = table([{"file": f"{index}.jsonl", "lines": index} for index in range(MAX_ROWS + 1234)])
    assert len(value.records) == MAX_ROWS + 1
    assert records(value)[MAX_ROWS - 1] == {"file": f"{MAX_ROWS - 1}.jsonl", "lines": MAX_ROWS - 1}
    assert records(value)[MAX_ROWS] == {"file": "… 1,234 more rows, not shown", "lines": None}
    assert types(value) == {"file": "string", "lines": "int"}
    assert len(table([{"a": 1}] * MAX_ROWS).records) == MAX_ROWS


def test_cells_become_what_dagster_and_json_can_hold():
    row = {"nan": math.nan, "inf": -math.inf, "numpy": np.int64(3), "flag": np.bool_(True), "other": (1, 2)}
    value = table([row])
    assert records(value) == [{"nan": None, "inf": "-inf", "numpy": 3, "flag": True, "other": "(1, 2)"}]
    assert type(records(value)[0]["numpy"]) is int
    strict_json(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("abcd", "abcd"),
        ("abcde", "abcd… 1 more characters"),
        ("one\ntwo", "one⏎… 3 more characters"),
        ("a\r\nb\r", "a⏎b⏎"),
        ("漢字漢字" + "漢" * 1000, "漢字漢字… 1,000 more characters"),
    ],
)
def test_shortened_text(text, expected):
    assert excerpt(text, limit=4) == expected


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\r\n\u2028\x85\v ab"))), st.integers(0, 30))
def test_shortened_text_is_one_line_and_accounts_for_every_character(text, limit):
    line = excerpt(text, limit)
    whole = excerpt(text, limit=10_000)
    assert len(line.splitlines()) <= 1
    assert len(whole) == len(text) - text.count("\r\n")
    if len(whole) <= limit:
        assert line == whole
    else:
        assert line == f"{whole[:limit]}… {len(whole) - limit} more characters"


def test_preview_of_ids_messages_and_text():
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.string())])
    rows = pa.table(
        {
            "ids": pa.array([list(range(1, 413)), [7, 8]], pa.list_(pa.int32())),
            "mask": pa.array([[1] * 4, []], pa.list_(pa.int8())),
            "prompt": pa.array(
                [
                    [{"role": "user", "content": "Hi\nthere"}, {"role": "assistant", "content": "x" * 70}],
                    [{"role": "assistant", "content": None, "tool_calls": '[{"name": "f"}]'}],
                ],
                pa.list_(message),
            ),
            "text": ["y" * 130, "short"],
            "margin": pa.array([0.5, math.nan], pa.float32()),
        }
    )
    value = preview(rows)
    assert records(value) == [
        {
            "ids": "[1, 2, 3, … 412 ids]",
            "mask": "[1, 1, 1, … 4 values]",
            "prompt": f"user: Hi⏎there | assistant: {'x' * 60}… 10 more characters",
            "text": "y" * 120 + "… 10 more characters",
            "margin": 0.5,
        },
        {
            "ids": "[7, 8]",
            "mask": "[]",
            "prompt": 'assistant: [{"name": "f"}]',
            "text": "short",
            "margin": None,
        },
    ]
    assert types(value)["ids"] == "list<int32>"


def test_the_preview_of_pairs_is_a_block_each_in_which_no_text_is_markdown():
    row = {"source": "a`b.jsonl", "line": 7, "prompt": [{"role": "user", "content": "Hi `*there*`\n# no"}]}
    for side in ("chosen", "rejected"):
        row[side] = [{"role": "assistant", "content": f"{side} {'x' * 900}"}]
    blocks = pair_preview(pa.Table.from_pylist([row] * 6)).value.split("\n\n---\n\n")
    assert len(blocks) == 5
    first, empty, *sides = blocks[0].split("\n")
    assert (first, empty) == ("``a`b.jsonl``, line 7", "")
    assert sides == [
        "- **prompt** ``user: Hi `*there*`⏎# no``",
        f"- **chosen** `assistant: chosen {'x' * 233}… 667 more characters`",
        f"- **rejected** `assistant: rejected {'x' * 231}… 669 more characters`",
    ]
    text = pa.Table.from_pylist([{"source": "a", "line": 1, "prompt": "p\nq", "chosen": "|", "rejected": "z" * 501}])
    shown = f"- **prompt** `p⏎q`\n- **chosen** `|`\n- **rejected** `{'z' * 500}… 1 more characters`"
    assert pair_preview(text).value == f"`a`, line 1\n\n{shown}"


def test_preview_takes_the_first_rows_also_of_an_empty_table():
    rows = pa.table({"line": pa.array(range(20), pa.int64())})
    assert [row["line"] for row in records(preview(rows))] == [0, 1, 2, 3, 4]
    assert preview(VALIDATED.empty_table()).records == []


def test_a_long_conversation_stays_one_short_cell():
    messages = [[{"role": "user", "content": "z" * 1000}] * 100]
    cell = records(preview(pa.table({"prompt": messages})))[0]["prompt"]
    assert cell.startswith(f"user: {'z' * 60}… 940 more characters | user: ")
    assert cell[240:].startswith("… ")
    assert cell.endswith(" more characters")


def test_a_table_of_figures_has_separators_and_units():
    figures = {
        "num_parameters": 487808,
        "share_of_padding": 0.012345678,
        "total_seconds": 123456.7,
        "evaluation/a|b": 3,
    }
    assert figures_table(figures).md_str.splitlines()[2:] == [
        "| `num_parameters` | 487,808 weights |",
        "| `share_of_padding` | 0.012346 of the computed tokens |",
        "| `total_seconds` | 123,457 s, with held-out pairs and saving |",
        r"| `evaluation/a\|b` | 3 |",
    ]


def test_percentiles_by_hand():
    # Between the sorted values 1 to 5 the 90th percentile lies at 0.9 * 4 = 3.6 steps, the 99th at 3.96.
    figures = percentiles(np.array([5, 1, 4, 2, 3], dtype=np.int32))
    assert figures == pytest.approx({"mean": 3, "p50": 3, "p90": 4.6, "p99": 4.96, "max": 5})
    assert all(type(value) is float for value in figures.values())
    assert percentiles(np.array([])) == {}


def test_numbers_have_five_significant_digits():
    figures = {"share": 0.123456789, "large": 1234567.0, "count": 1234567, "name": "x", "none": None}
    assert numbers(figures) == {"share": 0.12346, "large": 1234600.0, "count": 1234567}


def test_dagster_accepts_all_of_it():
    @dg.asset
    def stage():
        rows = VALIDATED.empty_table()
        metadata = {
            "dagster/column_schema": column_schema(VALIDATED),
            "files": table([{"file": "a", "lines": 1}, {"file": "b", "lines": None}]),
            "preview": preview(rows),
        }
        return dg.MaterializeResult(metadata=metadata | percentiles(np.array([1.0, 2.0])))

    result = dg.materialize([stage])
    (event,) = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert {"dagster/column_schema", "files", "preview", "p90"} <= set(metadata)
    strict_json(metadata["files"])
