"""The checks about whole files: what is held back, not read, gone or ignored, with the reasons of each file."""

import gzip
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from support import plain_row, run_stages, silent, write_lines

from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.storage.snapshots import Snapshot, latest_snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.results.file_checks import delivery_problems, rejects_by_file
from rm_assets.defs.results.stages import check_results, nothing_left, rejects_result
from rm_assets.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(annotations=str(tmp_path / "in"), storage=str(tmp_path / "storage"), num_workers=1)


def rows_of(value: Any) -> list[dict[str, Any]]:
    value = getattr(value, "value", value)
    return [record.data for record in value.records]


def raw_checks(settings: Settings) -> dict[str | None, dg.AssetCheckResult]:
    """The checks of raw_preferences after a refresh."""
    before = latest_snapshot(Path(settings.storage), Stage.RAW)
    snapshot = publish_raw(settings, silent)
    return {check.check_name: check for check in check_results(Stage.RAW, snapshot, None, settings, before)}


def damaged_file(path: Path, num_valid: int, num_broken: int) -> None:
    """Sound lines, then lines that are not JSON."""
    write_lines(path, [*(plain_row(n) for n in range(num_valid)), *([b"{"] * num_broken)])


def read(settings: Settings) -> tuple[Snapshot, Snapshot]:
    raw = publish_raw(settings, silent)
    return raw, publish_validated(settings, raw, silent)


def test_a_damaged_file_is_named_with_its_reason(settings: Settings, tmp_path: Path) -> None:
    write_lines(tmp_path / "in" / "a.jsonl", [plain_row(1)])
    assert raw_checks(settings)["every_file_is_read"].passed
    (tmp_path / "in" / "b.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 1000)[:-9])
    check = raw_checks(settings)["every_file_is_read"]
    assert not check.passed and check.severity == dg.AssetCheckSeverity.WARN
    assert check.description == "Not read: `b.jsonl.gz` (damaged_archive); the other files are used."
    [row] = rows_of(check.metadata["unread_files"])
    assert (row["file"], row["reason"]) == ("b.jsonl.gz", "damaged_archive") and row["detail"]


def test_files_and_rows_that_are_gone_are_counted_once(settings: Settings, tmp_path: Path) -> None:
    for name, number in (("a", 5), ("b", 7), ("c", 2)):
        write_lines(tmp_path / "in" / f"{name}.jsonl", [plain_row(n) for n in range(number)])
    assert raw_checks(settings)["no_file_disappeared"].passed  # the first snapshot
    write_lines(tmp_path / "in" / "a.jsonl", [plain_row(n) for n in range(3)])
    (tmp_path / "in" / "b.jsonl").rename(tmp_path / "in" / "d.jsonl")
    check = raw_checks(settings)["no_file_disappeared"]
    assert not check.passed and check.severity == dg.AssetCheckSeverity.WARN
    assert check.description == (
        "Disappeared since the previous snapshot: 9 of 14 rows, in `b.jsonl` (7 rows before, 0 now), "
        "`a.jsonl` (5 rows before, 3 now); new: 1 files with 7 rows"
    )
    assert rows_of(check.metadata["gone_files"]) == [
        {"file": "b.jsonl", "rows_before": 7, "rows_now": 0},
        {"file": "a.jsonl", "rows_before": 5, "rows_now": 3},
    ]
    assert raw_checks(settings)["no_file_disappeared"].passed  # nothing is gone since then


@pytest.mark.parametrize(("number", "more"), [(3, ""), (4, ", 1 more files"), (5, ", 2 more files")])
def test_three_files_are_named_and_the_others_counted(
    settings: Settings, tmp_path: Path, number: int, more: str
) -> None:
    names = [f"{letter}.jsonl" for letter in "abcde"[:number]]
    for name in [*names, "z.jsonl"]:
        write_lines(tmp_path / "in" / name, [plain_row(1)])
    raw_checks(settings)
    for name in names:
        (tmp_path / "in" / name).unlink()
    named = ", ".join(f"`{name}` (1 rows before, 0 now)" for name in names[:3])
    assert raw_checks(settings)["no_file_disappeared"].description == (
        f"Disappeared since the previous snapshot: {number} of {number + 1} rows, in {named}{more}"
    )


def test_the_reasons_of_a_file_are_ordered_by_their_count(settings: Settings, tmp_path: Path) -> None:
    tie = plain_row(3) | {"rejected": plain_row(3)["chosen"]}
    write_lines(tmp_path / "in" / "a.jsonl", [*(plain_row(n) for n in range(40)), b"{", tie, tie])
    _, validated = read(settings)
    assert [(row["reason"], row["rejects"], row["first_line"]) for row in rejects_by_file(validated)] == [
        ("identical_replies", 2, 42),
        ("not_json", 1, 41),
    ]


def test_ignored_files_are_listed_if_one_may_hold_rows(settings: Settings, tmp_path: Path) -> None:
    write_lines(tmp_path / "in" / "a.jsonl", [plain_row(1)])
    (tmp_path / "in" / "README.md").write_text("x")
    assert "ignored_files" not in (raw_checks(settings)["no_file_is_ignored"].metadata or {})
    (tmp_path / "in" / "b.xlsx").write_text("x")
    check = raw_checks(settings)["no_file_is_ignored"]
    assert not check.passed
    assert {row["file"] for row in rows_of(check.metadata["ignored_files"])} == {"README.md", "b.xlsx"}


def test_the_causes_come_before_the_sound_lines_held_back_with_them(settings: Settings, tmp_path: Path) -> None:
    damaged_file(tmp_path / "in" / "vendor.jsonl", 110, 30)
    write_lines(tmp_path / "in" / "a.jsonl", [*(plain_row(n + 1000) for n in range(50)), b"{"])
    stages = run_stages(settings)
    from rm_assets.data.stages.rejects import publish_rejects

    metadata = rejects_result(publish_rejects(settings, stages, silent)).metadata or {}
    by_file = [tuple(row.values())[:4] for row in rows_of(metadata["rejects_by_file"])]
    assert by_file == [
        ("a.jsonl", "not_json", 1, 51),
        ("vendor.jsonl", "not_json", 30, 111),
        ("vendor.jsonl", "held_back_file", 110, 1),
    ]
    shown = [(row["file"], row["line"]) for row in rows_of(metadata["rejects"])]
    assert shown == [
        ("a.jsonl", 51),
        *(("vendor.jsonl", 111 + n) for n in range(5)),
        ("vendor.jsonl", None),
        ("… 25 more rows, in the Parquet file", None),
    ]
    assert "110 valid lines, held back with their file" in str(metadata["rejects"])
    assert delivery_problems(stages[Stage.RAW], stages[Stage.VALIDATED]) == (
        "held back: 'vendor.jsonl' (30 of 140 lines malformed: not_json 30 (first: line 111))"
    )


def test_if_nothing_is_left_the_error_names_file_lines_setting_and_trace(settings: Settings, tmp_path: Path) -> None:
    damaged_file(tmp_path / "in" / "it's.jsonl", 60, 30)
    raw, validated = read(settings)
    error = nothing_left(Stage.VALIDATED, validated, raw)
    assert error.startswith(
        "nothing is left after validated_preferences: 60 held_back_file, 30 not_json; `it's.jsonl` is held back: "
        "30 of 90 lines malformed: not_json 30 (first: line 61); fix these lines, or raise max_malformed_fraction; "
        "the first: `it's.jsonl`, line 61: "
    )
    assert """see: python -m rm_assets.trace 'it'"'"'s.jsonl' 61; each reject is in""" in error


def test_lines_that_raw_preferences_rejects_are_causes_too(settings: Settings, tmp_path: Path) -> None:
    write_lines(tmp_path / "in" / "a.jsonl", [plain_row(1), b"\xff"])
    raw, validated = read(settings)
    [check] = [
        check
        for check in check_results(Stage.VALIDATED, validated, raw, settings)
        if check.check_name == "no_file_is_held_back"
    ]
    shown = [(row["reason"], row["rejects"], row["first_line"]) for row in rows_of(check.metadata["held_back_files"])]
    assert shown == [("not_utf8", 1, 2), ("held_back_file", 1, 1)]
    assert ", line 2: " in nothing_left(Stage.VALIDATED, validated, raw)


def test_the_checks_of_a_step_that_fails_are_kept(tmp_path: Path, run_graph) -> None:
    damaged_file(tmp_path / "in" / "a.jsonl", 6, 3)
    result = run_graph(annotations=str(tmp_path / "in"), storage=str(tmp_path / "storage"))
    assert not result.success
    checks = {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
    assert checks["no_file_is_held_back"] is False
    assert checks["lines_are_conserved"] is True


def test_files_that_share_a_shard_are_told_apart(settings: Settings, tmp_path: Path) -> None:
    for number in range(20):
        write_lines(tmp_path / "in" / f"{number:02d}.jsonl", [plain_row(number), plain_row(100 + number)])
    assert raw_checks(settings)["no_file_disappeared"].passed
    (tmp_path / "in" / "04.jsonl").unlink()
    (tmp_path / "in" / "06.jsonl").rename(tmp_path / "in" / "06.jsonl.gz")  # not an archive
    checks = raw_checks(settings)
    gone = {row["file"]: row["rows_now"] for row in rows_of(checks["no_file_disappeared"].metadata["gone_files"])}
    assert gone == {"04.jsonl": 0, "06.jsonl": 0}
    assert [row["file"] for row in rows_of(checks["every_file_is_read"].metadata["unread_files"])] == ["06.jsonl.gz"]
