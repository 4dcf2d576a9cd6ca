"""What a data asset says of its snapshot: in the order of the page, and of a law that is broken."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pytest
from support import plain_row, run_stages, write_lines

from rm_assets.data.storage.snapshots import Snapshot, read_snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.results.stages import NothingLeftError, require_pairs, sets_without_pairs, stage_result
from rm_assets.display_text import as_code
from rm_assets.settings import Settings


@pytest.fixture
def validated(first_run) -> tuple[Snapshot, Snapshot]:
    """validated_preferences of 96 pairs in two files, and raw_preferences of 97 lines: the second file has a reject."""
    _, result = first_run
    snapshots = [read_snapshot(path_of(result, stage)) for stage in (Stage.VALIDATED, Stage.RAW)]
    return snapshots[0], snapshots[1]


def path_of(result: Any, stage: Stage) -> Path:
    [event] = result.asset_materializations_for_node(stage.value)
    return Path(event.metadata["path"].value)


def checks_of(snapshot: Snapshot, parent: Snapshot, **settings: object) -> dict[str, Any]:
    result = stage_result(Stage.VALIDATED, snapshot, parent, Settings(**settings))
    return {check.check_name: check for check in result.check_results}


def test_the_page_says_what_came_of_the_rows_before_where_they_lie(validated) -> None:
    snapshot, parent = validated
    names = list(stage_result(Stage.VALIDATED, snapshot, parent, Settings(previews=True)).metadata or {})
    assert names[:2] == ["dagster/row_count", "rejects"]
    assert names.index("rejects_by_reason") < names.index("preview") < names.index("shards")
    assert names[-1] == "path"


def test_a_broken_law_says_how_often_and_which(validated) -> None:
    snapshot, parent = validated
    [lost] = [shard for shard in snapshot.manifest.shards if shard.source == "b.jsonl"]
    kept = tuple(shard for shard in snapshot.manifest.shards if shard != lost)
    cut = replace(snapshot, manifest=msgspec.structs.replace(snapshot.manifest, shards=kept))
    checks = checks_of(cut, parent)
    conserved = checks["lines_are_conserved"]
    assert not conserved.passed
    assert conserved.description == (
        f"{lost.stats['num_in']} lines not read, 0 lines unaccounted, 0 pairs unaccounted; broken: "
        "Every line gave the pairs that it states, or is a reject with a reason."
    )
    assert checks["sides_differ"].passed
    assert checks["sides_differ"].description == "0 pairs with equal sides"


def test_a_table_of_reasons_is_there_where_something_was_rejected(validated) -> None:
    snapshot, parent = validated
    clean = tuple(shard for shard in snapshot.manifest.shards if shard.source != "b.jsonl")
    whole = replace(snapshot, manifest=msgspec.structs.replace(snapshot.manifest, shards=clean))
    shown = [stage_result(Stage.VALIDATED, one, parent, Settings()).metadata or {} for one in (snapshot, whole)]
    assert ["rejects_by_reason" in metadata for metadata in shown] == [True, False]
    assert [metadata["rejects"] for metadata in shown] == [1, 0]


def test_a_file_that_is_held_back_is_named_with_its_damage_and_the_limit(validated) -> None:
    snapshot, parent = validated
    counts = [{"num_malformed": number, "num_lines": 5} for number in range(1, 6)]
    facts = snapshot.manifest.facts | {"held_back": dict(zip("abcde", counts, strict=True))}
    told = replace(snapshot, manifest=msgspec.structs.replace(snapshot.manifest, facts=facts))
    check = checks_of(told, parent, max_malformed_fraction=0.15)["no_file_is_held_back"]
    assert not check.passed
    assert check.description.startswith(
        "Held back: `a` (1 of 5 lines malformed), `b` (2 of 5 lines malformed), `c` (3 of 5 lines malformed), "
        "2 more files; "
        "a file may have 15 % of its lines malformed (max_malformed_fraction)"
    )
    assert "15 %" in checks_of(snapshot, parent, max_malformed_fraction=0.15)["no_file_is_held_back"].description


def test_the_page_names_the_causes_of_a_held_back_file_and_globs_that_name_none(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "response_1": "x", "response_2": "y", "label": n} for n in (1, 0)]
    write_lines(tmp_path / "in" / "a.jsonl", rows)
    write_lines(tmp_path / "in" / "b.jsonl", [plain_row(1), b"{"])
    write_lines(tmp_path / "in" / "c.jsonl", [plain_row(2)])
    settings = Settings(
        annotations=str(tmp_path / "in"), storage=str(tmp_path / "storage"), labels={"d/*": {"0": "first"}}
    )
    stages = run_stages(settings)
    result = stage_result(Stage.VALIDATED, stages[Stage.VALIDATED], stages[Stage.RAW], settings)
    check = next(check for check in result.check_results or [] if check.check_name == "no_file_is_held_back")
    assert check.description is not None
    assert check.description.startswith(
        "Held back: `a.jsonl` (`label` of `response_1` and `response_2` is 0 (first: line 2), which could mean either "
        "response; 1 of 2 lines malformed: ambiguous_label 1 (first: line 2); define these values in the setting "
        'labels, for example {"label": {"0": "first", "1": "second"}}), `b.jsonl` (1 of 2 lines malformed: not_json 1 '
        "(first: line 2); fix these lines, or raise max_malformed_fraction); a file"
    )
    shown = [record.data for record in check.metadata["held_back_files"].value.records]
    named = ("file", "reason", "rejects", "first_line")
    assert [tuple(row[name] for name in named) for row in shown] == [
        ("a.jsonl", "ambiguous_label", 1, 2),
        ("b.jsonl", "not_json", 1, 2),
        ("a.jsonl", "held_back_file", 1, 1),
        ("b.jsonl", "held_back_file", 1, 1),
    ]
    assert shown[0]["what_to_do"].startswith("define these values in the setting labels")
    assert shown[1]["what_to_do"] == (
        "fix these lines, or raise max_malformed_fraction; python -m rm_assets.trace b.jsonl 2"
    )
    assert shown[2]["example"] == "valid lines, held back with their file"
    assert "labels 'd/*'" in str((result.metadata or {})["globs_without_files"])


def test_the_name_of_a_file_that_is_held_back_is_no_markdown(validated) -> None:
    snapshot, parent = validated
    for name in ("![p](https:/host/x).jsonl", "[All fine](https:/e)", "a`b``c", "<img src=x>", "x" * 4000 + "*"):
        facts = snapshot.manifest.facts | {"held_back": {name: {"num_malformed": 1, "num_lines": 5}}}
        told = replace(snapshot, manifest=msgspec.structs.replace(snapshot.manifest, facts=facts))
        check = checks_of(told, parent)["no_file_is_held_back"]
        assert check.description.startswith(f"Held back: {as_code(name)} (1 of 5 lines malformed); ")
        assert len(check.description) < 700


def test_names_that_would_be_markup_are_shown_in_tables_alone(tmp_path: Path) -> None:
    """A table of Dagster shows text as it is; Markdown would become an image, a link, or a page that is called."""
    name, subset = "![p](https:x) <img src=x onerror=alert(1)> [a](javascript:b)", '=HYPERLINK("x")'
    write_lines(tmp_path / "in" / f"{name}.jsonl", [plain_row(n, subset=subset, margin=1) for n in range(20)] + [b"{"])
    settings = Settings(annotations=str(tmp_path / "in"), storage=str(tmp_path / "storage"), num_workers=1)
    stages = run_stages(settings)
    kinds = set()
    for (stage, snapshot), parent in zip(stages.items(), [None, *stages.values()], strict=False):
        shown = stage_result(stage, snapshot, parent, settings).metadata or {}
        kinds |= {type(value) for value in shown.values() if name in str(value) or subset in str(value)}
    assert kinds == {dg.TableMetadataValue}


@pytest.mark.parametrize(("num_long", "passed"), [(0, True), (1, True), (2, False)])
def test_more_than_a_tenth_of_pairs_over_the_limit_is_a_warning(tmp_path: Path, num_long: int, passed: bool) -> None:
    rows = [plain_row(number, chosen="word " * (100 if number < num_long else 1)) for number in range(12)]
    settings = Settings(
        annotations=str(write_lines(tmp_path / "a.jsonl", rows)), storage=str(tmp_path / "storage"), max_length=90
    )
    stages = run_stages(settings)
    result = stage_result(Stage.TOKENIZED, stages[Stage.TOKENIZED], stages[Stage.FLATTENED], settings)
    [check] = [check for check in result.check_results or [] if check.check_name == "few_pairs_are_too_long"]
    assert check.passed is passed
    assert check.severity is dg.AssetCheckSeverity.WARN
    told = f"{num_long} of 12 pairs are longer than max_length, 90 tokens"
    assert check.description == told if passed else (check.description or "").startswith(f"{told}: raise max_length")


TIES = [{"prompt": f"q{n}", "response_a": "x", "response_b": "y", "label": "tie"} for n in range(3)]
LONG = [plain_row(n, prompt=f"{n} one two three four five six seven eight nine ten eleven twelve") for n in range(8)]


@pytest.mark.parametrize(
    ("rows", "held_out", "options", "complaint"),
    [
        (
            LONG,
            LONG,
            {},
            (
                "no pairs to train on: padded_pairs has 0 train, 0 validation, 0 test, 8 evaluation pairs; its "
                "rejects: 8 overlaps_evaluation; the first: `a.jsonl`, line 1: evaluation set 'own'; see: python -m "
                "rm_assets.trace a.jsonl 1; add annotations, or lower test_fraction and validation_fraction"
            ),
        ),
        (
            [plain_row(0, chosen=f"It is {n}.") for n in range(8)],
            None,
            {},
            (
                "no pairs to judge a model by: padded_pairs has 8 train, 0 validation, 0 test, 0 evaluation pairs; add "
                "annotations of more prompts, raise test_fraction, or set evaluation_files"
            ),
        ),
        (
            LONG,
            TIES,
            {"test_fraction": 0.0, "validation_fraction": 0.0},
            (
                "no pairs to judge a model by: padded_pairs has 8 train, 0 validation, 0 test, 0 evaluation pairs, and "
                "none of 'own'; add annotations of more prompts, raise test_fraction, or set evaluation_files"
            ),
        ),
        (LONG, [plain_row(99)], {"test_fraction": 0.0}, ""),
    ],
    ids=["none to train on", "one prompt", "nothing but ties to judge by", "enough"],
)
def test_without_pairs_to_train_on_or_to_judge_by_nothing_is_trained(
    tmp_path: Path, rows: list[object], held_out: list[object] | None, options: dict[str, Any], complaint: str
) -> None:
    if held_out:
        options = options | {"evaluation_files": {"own": str(write_lines(tmp_path / "own.jsonl", held_out))}}
    annotations = str(write_lines(tmp_path / "a.jsonl", rows))
    settings = Settings(annotations=annotations, storage=str(tmp_path / "storage"), num_workers=1, **options)
    pairs = run_stages(settings)[Stage.PADDED]
    assert sets_without_pairs(pairs, settings) == (["own"] if held_out is TIES else [])
    if complaint:
        with pytest.raises(NothingLeftError) as error:
            require_pairs(pairs, settings)
        assert str(error.value) == complaint
    else:
        require_pairs(pairs, settings)
