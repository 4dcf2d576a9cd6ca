"""What is measured on written shards finds the faults of shards that were written by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import plain_row, run_stages, write_lines

from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.formats.preferences import ParsingRules
from rm_assets.data.pairs.duplicates import DroppedRows
from rm_assets.data.stages import padding
from rm_assets.data.stages.flattening import FlatteningTask, measure_flattened
from rm_assets.data.stages.padding import PaddingTask, measure_padded
from rm_assets.data.stages.raw_parts import measure_raw
from rm_assets.data.stages.tokenization import TokenizationTask, measure_tokenized
from rm_assets.data.stages.validation import ValidationTask, measure_validated
from rm_assets.data.stages.written_tools import num_lines_with_other_tools
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.shards import SOURCES
from rm_assets.data.storage.snapshots import DATA, REJECTS, Snapshot
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

Row = dict[str, Any]


def written(path: Path, schema: pa.Schema, rows: Sequence[Row], rows_per_group: int = 2) -> Path:
    """A shard's file; columns that a row lacks are a text of one letter, 0 or []."""
    usual = {field.name: [] if pa.types.is_list(field.type) else 0 for field in schema}
    usual |= {field.name: "a" for field in schema if field.type == pa.string()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([usual | row for row in rows], schema), path, row_group_size=rows_per_group)
    return path


# --- raw_preferences -----------------------------------------------------------------------------------------


def test_rows_bytes_and_rejects_of_raw_texts_are_counted_by_file(tmp_path: Path) -> None:
    texts = [("a", "one"), ("a", ""), ("a", "Ångström"), ("b", "猫"), ("b", "b")]
    rows = [{"source": source, "text": text} for source, text in texts]
    paths = {DATA: written(tmp_path / "data", schemas.RAW, rows)}
    paths[REJECTS] = written(tmp_path / "rejects", schemas.REJECTS, [{"source": "b"}] * 3)
    found = measure_raw(["a", "b"], paths)
    assert found[SOURCES] == {
        "a": {"num_out": 3, "text_bytes": 3 + 0 + 10, "num_rejects": 0},
        "b": {"num_out": 2, "text_bytes": 3 + 1, "num_rejects": 3},
    }
    assert measure_raw(["a"], {}) == {"num_out": 0, "text_bytes": 0, "num_rejects": 0}


# --- validated_preferences -----------------------------------------------------------------------------------


def validation_task(source: str, *files: ValidationTask) -> ValidationTask:
    return ValidationTask(
        path=None,
        rejected=None,
        before=(None, None),
        source=source,
        held_back="",
        refused=(),
        key_without_verdict="",
        rules=ParsingRules(),
        files=files,
    )


def test_lines_with_pairs_and_pairs_of_equal_conversations_are_counted(tmp_path: Path) -> None:
    yes, no, ja = ({"role": "assistant", "content": text} for text in ("yes", "no", "ja!"))
    called = {"role": "assistant", "content": None, "tool_calls": "[]"}
    pairs = [
        ("a", 1, [yes], [yes]),
        ("a", 1, [yes], [no]),
        ("a", 2, [yes], [ja]),  # as many bytes
        ("a", 3, [yes, no], [no, yes]),
        ("b", 1, [yes], [yes | {"name": "Ann"}]),
        ("b", 1, [called], [called]),
        ("b", 7, [yes, no], [yes, no]),
        ("b", 8, [called], [called | {"tool_calls": '[""]'}]),
    ]
    rows = [{"source": a, "line": b, "chosen": c, "rejected": d, "tools": None} for a, b, c, d in pairs]
    task = validation_task("a", validation_task("a"), validation_task("b"))
    found = measure_validated(task, {DATA: written(tmp_path / "data", schemas.VALIDATED, rows, rows_per_group=3)})
    assert found["num_identical"] == 3
    assert found[SOURCES] == {
        "a": {"num_out": 4, "num_lines_with_pairs": 3, "num_rejects": 0},
        "b": {"num_out": 4, "num_lines_with_pairs": 3, "num_rejects": 0},
    }


TOOL, CALL = '{"name":"ferry"}', {"type": "function", "function": {"name": "ferry", "arguments": "{}"}}


def num_other_tools(
    directory: Path, tools: dict[tuple[str, int], set[str]], *, two_line_files: bool, first: str = "{}"
) -> int:
    """Of a shard with two files: `a` has `first` in its line 1 and TOOL in its line 2, `b` has TOOL in its line 1."""
    texts = [("a", 1, first), ("a", 2, TOOL), ("a", 3, "{}"), ("b", 1, f"[{TOOL}]"), ("b", 2, "{}")]
    rows = [{"source": source, "line": line, "text": text} for source, line, text in texts]
    raw = written(directory / "raw", schemas.RAW, rows, rows_per_group=1 if two_line_files else 5)
    return num_lines_with_other_tools(raw, tools, two_line_files=two_line_files)


@pytest.mark.parametrize(
    ("line", "in_one_line", "in_two_lines"),
    [(("a", 1), 1, 0), (("a", 2), 0, 0), (("a", 3), 1, 1), (("b", 1), 0, 0), (("b", 2), 1, 1)],
)
def test_tools_are_looked_for_in_their_line_or_in_two_lines_of_one_file(
    tmp_path: Path, line: tuple[str, int], in_one_line: int, in_two_lines: int
) -> None:
    tools = {line: {f"[{TOOL}]"}}
    assert num_other_tools(tmp_path, tools, two_line_files=False) == in_one_line
    assert num_other_tools(tmp_path, tools, two_line_files=True) == in_two_lines


@pytest.mark.parametrize("two_line_files", [False, True])
def test_tools_of_lines_that_are_not_there_are_other_tools(*, two_line_files: bool) -> None:
    tools = {("a", 1): {f"[{TOOL}]"}, ("a", 2): {"[]"}}
    assert num_lines_with_other_tools(None, tools, two_line_files=two_line_files) == 2
    assert num_lines_with_other_tools(None, {}, two_line_files=two_line_files) == 0


@pytest.mark.parametrize(
    ("item", "is_other"),
    [
        (CALL, 0),
        (CALL | {"id": "x"}, 1),
        (CALL | {"function": {"name": "bus", "arguments": "{}"}}, 1),
        (CALL | {"function": {"name": "ferry", "arguments": '{"to": "Moss"}'}}, 1),
        (CALL | {"function": {"name": "ferry", "arguments": {}}}, 1),
        (CALL | {"function": {"name": "bus", "arguments": {"at": 9, "to": "Moss"}}}, 0),
        (CALL | {"function": {"name": "bus", "arguments": {"to": "Moss", "at": 9}}}, 1),
        (CALL | {"function": {"arguments": "{}", "name": "ferry"}}, 1),
        (CALL | {"function": 5}, 1),
        ({"function": CALL["function"]}, 1),
    ],
)
def test_a_call_in_a_text_has_the_name_and_the_arguments_of_the_text(tmp_path: Path, item: Row, is_other: int) -> None:
    value = [{"arguments": "{}", "name": "ferry", "id": 7}, {"name": "bus", "arguments": {"at": 9, "to": "Moss"}}]
    line = json.dumps({"from": "function_call", "value": json.dumps(value)})
    tools = {("a", 1): {json.dumps([item])}}
    assert num_other_tools(tmp_path, tools, two_line_files=False, first=line) == is_other


# --- flattened_conversations ---------------------------------------------------------------------------------


def test_equal_texts_and_characters_are_counted(tmp_path: Path) -> None:
    texts = [("Q", "a", "a"), ("猫", "yes", "no"), ("Q", "", ""), ("Q", "A", "a")]
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in texts]
    task = FlatteningTask(path=None, sources=("a",), tokenizer=find_tokenizer(Settings()), allow_control_tokens=False)
    found = measure_flattened(task, {DATA: written(tmp_path / "data", schemas.FLATTENED, rows)})
    assert found == {"num_out": 4, "num_rejects": 0, "num_identical": 2, "num_characters": 3 + 6 + 1 + 3}


# --- tokenized_pairs -----------------------------------------------------------------------------------------

NUM_PAIRS, NUM_SAMPLED = 40, 32


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[Stage, Snapshot]:
    directory = tmp_path_factory.mktemp("measured")
    annotations = write_lines(directory / "a.jsonl", [plain_row(number) for number in range(NUM_PAIRS)])
    paths = {"annotations": str(annotations), "storage": str(directory / "storage"), "num_workers": 1}
    return run_stages(Settings(**paths))


def tokenized_figures(stages: dict[Stage, Snapshot], path: Path, rows: Sequence[Row]) -> Row:
    [validated] = stages[Stage.VALIDATED].paths(DATA)
    task = TokenizationTask(
        path=None,
        validated=validated,
        sources=("a.jsonl",),
        tokenizer=find_tokenizer(Settings()),
        max_length=512,
        drop_turns=False,
        allow_control_tokens=False,
        self_tests=path,
    )
    return measure_tokenized(task, {DATA: written(path / "data", schemas.TOKENIZED, rows, rows_per_group=7)})


def test_ids_that_differ_from_the_templates_are_counted_among_the_smallest_pair_ids(
    stages: dict[Stage, Snapshot], tmp_path: Path
) -> None:
    rows = read_table(stages[Stage.TOKENIZED].paths(DATA), schemas.TOKENIZED).to_pylist()
    found = tokenized_figures(stages, tmp_path, rows)
    lengths = [len(row[f"{side}_ids"]) for row in rows for side in ("chosen", "rejected")]
    assert found == {
        "num_out": NUM_PAIRS,
        "num_rejects": 0,
        "num_identical": 0,
        "num_tokens": sum(lengths),
        "num_shared_tokens": sum(row["prefix_length"] for row in rows),
        "max_length": max(lengths),
        "num_sampled": NUM_SAMPLED,
        "num_inexact": 0,
    }
    ordered = sorted(row["pair_id"] for row in rows)
    for side in ("chosen_ids", "rejected_ids"):
        for changed, number in ((ordered[:3], 3), (ordered[NUM_SAMPLED - 1 :], 1), (ordered[NUM_SAMPLED:], 0)):
            damaged = [row | {side: [*row[side][:-1], 0]} if row["pair_id"] in changed else row for row in rows]
            assert tokenized_figures(stages, tmp_path, damaged)["num_inexact"] == number
    without_a_prompt = [row | {"num_dropped_turns": 1} if row["pair_id"] == ordered[0] else row for row in rows]
    assert tokenized_figures(stages, tmp_path, without_a_prompt)["num_inexact"] == 1


def test_equal_sides_of_ids_are_counted_and_longer_ones_on_either_side(
    stages: dict[Stage, Snapshot], tmp_path: Path
) -> None:
    rows = read_table(stages[Stage.TOKENIZED].paths(DATA), schemas.TOKENIZED).to_pylist()
    equal = [
        row | {"rejected_ids": row["chosen_ids"]} if number in (0, 8, 39) else row for number, row in enumerate(rows)
    ]
    assert tokenized_figures(stages, tmp_path, equal)["num_identical"] == 3
    for side in ("chosen_ids", "rejected_ids"):
        longer = [row | {side: [1] * 99} if number == 2 else row for number, row in enumerate(rows)]
        assert tokenized_figures(stages, tmp_path, longer)["max_length"] == 99


def test_pairs_that_occur_twice_are_sampled_once(stages: dict[Stage, Snapshot], tmp_path: Path) -> None:
    rows = read_table(stages[Stage.TOKENIZED].paths(DATA), schemas.TOKENIZED).to_pylist()[:5]
    found = tokenized_figures(stages, tmp_path, rows * 2)
    assert (found["num_out"], found["num_sampled"], found["num_inexact"]) == (10, 5, 0)


# --- padded_pairs --------------------------------------------------------------------------------------------

PAD = 0


def side(name: str, ids: Sequence[int], mask: Sequence[int], length: int) -> Row:
    return {f"{name}_input_ids": ids, f"{name}_attention_mask": mask, f"{name}_length": length}


SHORT, LONG = ([5, 6, PAD], [1, 1, 0], 2), ([7, 8, 9], [1, 1, 1], 3)
SOUND = side("chosen", *LONG) | side("rejected", *SHORT)


def padded_figures(directory: Path, **folders: Sequence[Row]) -> Row:
    """What is measured on a shard with these rows by folder, of file `a`, without the zeros."""
    paths = {name.replace("__", "/"): written(directory / name, schemas.PADDED, rows) for name, rows in folders.items()}
    task = PaddingTask(
        path=None,
        validated=None,
        sources=("a",),
        folder="",
        grams={},
        dropped=DroppedRows.none(),
        pad_token_id=PAD,
        seed="",
        validation_fraction=0.1,
        test_fraction=0.1,
    )
    return {name: number for name, number in measure_padded(task, paths).items() if number}


def test_rows_are_counted_by_folder_with_their_tokens_and_padding(tmp_path: Path) -> None:
    found = padded_figures(tmp_path, train=[SOUND] * 3, test=[SOUND], evaluation__bench=[SOUND] * 2)
    assert found == {
        "num_out": 6, "num_train": 3, "num_test": 1, "num_evaluation": 2, "num_tokens": 6 * 5, "num_padding": 6
    }  # fmt: skip
    assert padded_figures(tmp_path, validation=[SOUND])["num_validation"] == 1


@pytest.mark.parametrize("name", ["chosen", "rejected"])
@pytest.mark.parametrize(
    "wrong",
    [
        ([5, 6, PAD], [1, 1, 1], 2),
        ([5, 6, PAD], [1, 0, 0], 2),
        ([5, 6, PAD], [0, 1, 1], 2),
        ([5, 6, PAD], [1, 1], 2),
        ([5, 6, PAD], [1, 1, 0, 0], 2),
        ([5, 6, PAD], [1, 1, 0], 1),
    ],
)
def test_a_mask_that_does_not_follow_from_the_length_is_found_on_either_side(
    tmp_path: Path, name: str, wrong: tuple[list[int], list[int], int]
) -> None:
    found = padded_figures(tmp_path, train=[SOUND, SOUND | side(name, *wrong)], test=[SOUND])
    assert found["num_wrong_masks"] == 1
    assert padded_figures(tmp_path, train=[SOUND | side(name, *wrong)] * 3)["num_wrong_masks"] == 2  # row groups


def test_masks_that_are_right_only_as_a_whole_are_wrong(tmp_path: Path) -> None:
    # the masks of both rows, one after the other, are those of [1, 1, 0] and [1, 1, 1]
    wrong = [SOUND | side("rejected", SHORT[0], [1, 1], 2), SOUND | side("rejected", LONG[0], [0, 1, 1, 1], 3)]
    assert padded_figures(tmp_path, train=wrong)["num_wrong_masks"] == 1


def test_padding_within_conversations_is_found_but_not_behind_them(tmp_path: Path) -> None:
    inside = side("chosen", [7, PAD, 9], [1, 1, 1], 3) | side("rejected", [PAD, PAD, PAD], [1, 1, 0], 2)
    found = padded_figures(tmp_path, train=[SOUND, inside, SOUND, inside | side("chosen", *LONG)])
    assert found["num_containing_padding"] == 3  # sides
    assert "num_wrong_masks" not in found


def test_sides_of_unequal_length_are_counted(tmp_path: Path) -> None:
    wider = side("chosen", [7, 8, 9, PAD], [1, 1, 1, 0], 3)
    assert padded_figures(tmp_path, train=[SOUND, SOUND | wider, SOUND | wider])["num_unequal"] == 2


def test_prompts_in_more_than_one_split_are_counted_once(tmp_path: Path) -> None:
    keys = {"train": "abcd", "validation": "ade", "test": "f0ac"}  # a in all three, c and d in two
    paths = {
        split: written(tmp_path / split, schemas.PADDED, [{"prompt_key": name * 32} for name in names])
        for split, names in keys.items()
    }
    shards: list[Any] = [paths, {}]
    publisher: Any = SimpleNamespace(path=lambda shard, split: shard.get(split))
    assert padding._num_prompts_in_two_splits(publisher, shards) == 3
    # equal digests of keys that differ are no prompt in two splits
    paths["test"] = written(tmp_path / "other", schemas.PADDED, [{"prompt_key": "a" * 31 + "b"}])
    assert padding._num_prompts_in_two_splits(publisher, shards) == 2
