"""The invariants count what is missing or too many, on manifests written by hand."""

from typing import Any

import pytest

from rm_assets.data.stages.invariants import INVARIANTS
from rm_assets.data.storage.snapshots import Manifest, Shard, ShardFile
from rm_assets.data.tables.schemas import Stage


def shard(source: str, rows: int, rejects: int = 0, sources: dict[str, Any] | None = None, **stats: int) -> Shard:
    """A shard whose files hold so many rows, with these figures about them."""
    held = {"data": rows, "rejects": rejects}
    files = tuple(
        ShardFile(path=f"{folder}/{source}.parquet", sha256="", num_rows=number, num_bytes=1)
        for folder, number in held.items()
        if number
    )
    return Shard(name=source, source=source, key=source, files=files, stats=stats, sources=sources or {})


def manifest(*shards: Shard, **facts: int) -> Manifest:
    return Manifest(asset="a", snapshot="s", identity="i", inputs={}, facts=facts, shards=shards)


def violations(stage: Stage, *shards: Shard, parent: Manifest | None = None, **facts: int) -> dict[str, int]:
    """What the stage's invariants count, without the zeros."""
    made = manifest(*shards, **facts)
    found = [rule.violations(made, parent) for rule in INVARIANTS[stage]]
    return {name: number for counts in found for name, number in counts.items() if number}


# 5 lines: one blank, one reject, three texts of 30 bytes, with line ends and the reject 12 bytes more.
READ = {"num_bytes": 42, "text_bytes": 30, "other_bytes": 12, "num_lines": 5, "num_blank": 1}
READ |= {"num_out": 3, "num_rejects": 1}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {}),
        ({"num_bytes": 40}, {"bytes unaccounted": 2}),
        ({"text_bytes": 29}, {"bytes unaccounted": 1}),
        ({"other_bytes": 15}, {"bytes unaccounted": 3}),
        ({"num_lines": 7}, {"lines unaccounted": 2}),
        ({"num_blank": 2}, {"lines unaccounted": 1}),
        # the files hold three rows and one reject: those figures differ from the lines and from the files
        ({"num_out": 4}, {"lines unaccounted": 1 + 1}),
        ({"num_rejects": 0}, {"lines unaccounted": 1 + 1}),
        # an unreadable file is a reject without a line
        ({"num_lines": 4, "num_rejected_files": 1}, {}),
        ({"num_rejected_files": 1}, {"lines unaccounted": 1}),
    ],
)
def test_bytes_and_lines_that_are_read_are_conserved(changed: dict[str, int], expected: dict[str, int]) -> None:
    assert violations(Stage.RAW, shard("a", 3, 1, **(READ | changed))) == expected


# 8 rows read: five lines with seven pairs (two of them completed by a second line each), one reject.
VALID = {"num_in": 8, "num_second_lines": 2, "num_lines_with_pairs": 5, "num_stated": 7, "num_out": 7, "num_rejects": 1}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {}),
        ({"num_in": 9}, {"lines not read": 1, "lines unaccounted": 1}),
        ({"num_second_lines": 0}, {"lines unaccounted": 2}),
        ({"num_lines_with_pairs": 6}, {"lines unaccounted": 1}),
        ({"num_rejects": 2}, {"lines unaccounted": 1, "pairs unaccounted": 1}),
        ({"num_stated": 8}, {"pairs unaccounted": 1}),
        ({"num_out": 5, "num_stated": 5}, {"pairs unaccounted": 2}),
        ({"num_identical": 3}, {"pairs with equal sides": 3}),
        ({"num_other_tools": 4}, {"lines with other tools or calls": 4}),
    ],
)
def test_lines_are_conserved_and_give_the_pairs_that_they_state(
    changed: dict[str, int], expected: dict[str, int]
) -> None:
    parent = manifest(shard("a", 8))
    assert violations(Stage.VALIDATED, shard("a", 7, 1, **(VALID | changed)), parent=parent) == expected


@pytest.mark.parametrize("stage", [Stage.FLATTENED, Stage.TOKENIZED, Stage.PADDED])
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {}),
        ({"num_in": 4}, {"pairs not read": 1, "pairs unaccounted": 1}),
        ({"num_rejects": 3}, {"pairs unaccounted": 1 + 1}),
        ({"num_out": 1, "num_rejects": 4}, {"pairs unaccounted": 2 + 2}),  # the sum is right, not the parts
    ],
)
def test_pairs_are_conserved(stage: Stage, changed: dict[str, int], expected: dict[str, int]) -> None:
    figures = {"num_in": 5, "num_out": 3, "num_rejects": 2} | changed
    parent = manifest(shard("a", 5))
    assert violations(stage, shard("a", 3, 2, **figures), parent=parent, num_prompts_in_two_splits=0) == expected


def test_a_surplus_of_one_file_does_not_hide_the_loss_of_another() -> None:
    parent = manifest(shard("a", 5), shard("b", 5))
    shards = shard("a", 4, num_in=5, num_out=4), shard("b", 6, num_in=5, num_out=6)
    assert violations(Stage.FLATTENED, *shards, parent=parent) == {"pairs unaccounted": 2}
    shards = shard("a", 4, num_in=4, num_out=4), shard("b", 6, num_in=6, num_out=6)
    assert violations(Stage.FLATTENED, *shards, parent=parent) == {"pairs not read": 2}


def test_files_that_share_a_shard_are_counted_each_by_itself() -> None:
    def packed(**num_in: int) -> Shard:
        sources = {source: {"num_in": number, "num_out": 5} for source, number in num_in.items()}
        return shard("pack", 10, sources=sources, num_in=10, num_out=10)

    parent = manifest(packed(a=5, b=5))
    assert violations(Stage.FLATTENED, packed(a=5, b=5), parent=parent) == {}
    assert violations(Stage.FLATTENED, packed(a=4, b=6), parent=parent) == {
        "pairs not read": 2,
        "pairs unaccounted": 2,
    }


def test_a_file_without_rows_in_a_shared_shard_has_no_figures() -> None:
    shared = shard("pack", 5, sources={"a": {"num_in": 5, "num_out": 5}, "empty": {}}, num_in=5, num_out=5)
    assert violations(Stage.FLATTENED, shared, parent=manifest(shared)) == {}


def test_what_is_measured_on_written_shards_is_added_up() -> None:
    figures = {"num_in": 1, "num_out": 1}
    kinds = {
        (Stage.FLATTENED, "num_identical"): "pairs with equal sides",
        (Stage.TOKENIZED, "num_identical"): "pairs with equal sides",
        (Stage.TOKENIZED, "num_inexact"): "sampled pairs with other ids",
        (Stage.PADDED, "num_unequal"): "pairs of unequal length",
        (Stage.PADDED, "num_wrong_masks"): "files with a wrong mask",
        (Stage.PADDED, "num_containing_padding"): "sides that contain the padding token",
    }
    parent = manifest(shard("a", 1), shard("b", 1))
    for (stage, figure), label in kinds.items():
        shards = shard("a", 1, **figures, **{figure: 2}), shard("b", 1, **figures, **{figure: 3})
        assert violations(stage, *shards, parent=parent, num_prompts_in_two_splits=0) == {label: 5}


def test_prompts_in_two_splits_are_a_violation() -> None:
    found = violations(Stage.PADDED, parent=manifest(), num_prompts_in_two_splits=2)
    assert found == {"prompts in two splits": 2}
