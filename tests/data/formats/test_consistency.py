"""Labels and strengths are judged over all rows of a shape, whichever files and shards these lie in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import rows as rows_of
from support import silent, write_lines

from rm_assets.data.stages.invariants import INVARIANTS
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings
from rm_assets.settings_loading import load_settings

SHP = [
    {"history": "How long does rice keep?", "human_ref_A": "A month.", "human_ref_B": "Four days.", "labels": 0},
    {"history": "May I freeze cheese?", "human_ref_A": "Hard cheese.", "human_ref_B": "No.", "labels": 1},
]
SAFE = [
    {"prompt": "How do I fix a tap?", "response_0": "Hit it.", "response_1": "A new washer.", "better_response_id": 1},
    {"prompt": "How do I boil an egg?", "response_0": "Six minutes.", "response_1": "Cold.", "better_response_id": 0},
]
SHP_COLUMNS = {"response_a": "human_ref_A", "response_b": "human_ref_B", "label": "labels", "prompt": "history"}


def snapshot_of(settings: Settings, say: Callable[[str], object] = silent, **changes: object) -> Snapshot:
    changed = load_settings(
        {"annotations": settings.annotations, "storage": settings.storage, "num_workers": 1, **changes}, {}
    )
    raw = publish_raw(changed, silent)
    snapshot = publish_validated(changed, raw, say)
    laws = [law.violations(snapshot.manifest, raw.manifest) for law in INVARIANTS[Stage.VALIDATED]]
    assert {count for figures in laws for count in figures.values()} == {0}
    return snapshot


def read_rejects(snapshot: Snapshot) -> list[dict[str, Any]]:
    return rows_of(snapshot, "rejects")


def chosen(snapshot: Snapshot) -> dict[tuple[str, int], str]:
    return {(row["source"], row["line"]): row["chosen"][0]["content"] for row in rows_of(snapshot)}


def write(settings: Settings, **files: list[Any]) -> None:
    for name, lines in files.items():
        write_lines(Path(settings.annotations_path) / f"{name}.jsonl", lines)


def compared(number: int, label: object, fields: tuple[str, str] = ("response_1", "response_2"), **more: Any) -> dict:
    return {"prompt": f"Name tree {number}.", fields[0]: "An oak.", fields[1]: "A fir.", "label": label} | more


@pytest.mark.parametrize(
    "given",
    [
        {"columns": SHP_COLUMNS, "labels": {"1": "first", "0": "second"}},
        {"columns": SHP_COLUMNS, "labels": {"labels": {"1": "first", "0": "second"}}},
        {"columns": {"shp*": SHP_COLUMNS}, "labels": {"shp*": {"1": "first", "0": "second"}}},
        {
            "columns": {"*.jsonl": {}, "shp.jsonl": SHP_COLUMNS},
            "labels": {"shp*": {"labels": {"1": "first", "0": "second"}}},
        },
    ],
)
def test_the_labels_of_one_data_set_reach_no_other(settings: Settings, given: dict[str, Any]) -> None:
    write(settings, shp=SHP, safe=SAFE)
    assert chosen(snapshot_of(settings, **given)) == {
        ("safe.jsonl", 1): "A new washer.",
        ("safe.jsonl", 2): "Six minutes.",
        ("shp.jsonl", 1): "Four days.",
        ("shp.jsonl", 2): "Hard cheese.",
    }


def test_flat_labels_do_not_turn_numbers_round_that_name_a_response(settings: Settings) -> None:
    write(settings, safe=SAFE)
    for labels in ({"1": "first", "0": "second"}, {"1": "tie"}, {"true": "first"}):
        assert chosen(snapshot_of(settings, labels=labels)) == {
            ("safe.jsonl", 1): "A new washer.",
            ("safe.jsonl", 2): "Six minutes.",
        }
    turned = snapshot_of(settings, labels={"better_response_id": {"1": "first", "0": "second"}})
    assert chosen(turned) == {("safe.jsonl", 1): "Hit it.", ("safe.jsonl", 2): "Cold."}


def test_a_glob_that_names_no_file_is_told(settings: Settings) -> None:
    write(settings, shp=SHP)
    said: list[str] = []
    snapshot = snapshot_of(settings, said.append, labels={"shp/*": {"1": "first"}}, columns={"shp*": SHP_COLUMNS})
    assert snapshot.manifest.facts["globs_without_files"] == ["labels 'shp/*'"]
    assert "labels 'shp/*' matches none of the files" in said


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("first_label", [0, "0", -1, 3, True])
def test_numbers_name_no_response_where_any_file_of_the_shape_has_one_that_does_not(
    settings: Settings, names: tuple[str, str], first_label: object
) -> None:
    monday, tuesday = names
    write(settings, **{tuesday: [compared(3, 1), compared(4, 1)]})
    assert snapshot_of(settings).manifest.num_rows() == 2
    write(settings, **{monday: [compared(1, first_label), compared(2, 1)]})
    snapshot = snapshot_of(settings)
    assert chosen(snapshot) == {}
    assert set(snapshot.manifest.facts["held_back"]) == {"a.jsonl", "b.jsonl"}
    detail = next(reject["detail"] for reject in read_rejects(snapshot) if reject["source"] == f"{tuesday}.jsonl")
    found = str(first_label).lower()
    assert detail == (
        f"its file is held back: `label` of `response_1` and `response_2` is 1 (first: line 1), but {found} in line 1 "
        f"of `{monday}.jsonl`: these numbers may not name the responses; define these values in the setting labels, "
        'for example {"label": {"0": "first", "1": "second"}}'
    )
    own = snapshot_of(settings, labels={"label": {found: "first", "1": "second"}})
    assert sorted(chosen(own).values()) == ["A fir.", "A fir.", "A fir.", "An oak."]


def test_flat_labels_that_contradict_the_names_of_the_responses_are_not_half_followed(settings: Settings) -> None:
    write(settings, a=[compared(1, 0)], b=[compared(2, 1)], c=[compared(3, 0, ("response_a", "response_b"))])
    snapshot = snapshot_of(settings, labels={"0": "first", "1": "second"})
    assert chosen(snapshot) == {("c.jsonl", 1): "An oak."}
    agreeing = snapshot_of(settings, labels={"0": "tie", "1": "first"})
    assert chosen(agreeing) == {("b.jsonl", 1): "An oak."}


def test_words_and_other_columns_do_not_suffer_from_an_unclear_number(settings: Settings) -> None:
    other = compared(3, None) | {"winner": 2}
    write(
        settings,
        a=[compared(1, 0)],
        b=[compared(2, "response_2")],
        c=[other],
        d=[compared(4, 1, ("output_1", "output_2"))],
    )
    assert set(chosen(snapshot_of(settings))) == {("b.jsonl", 1), ("c.jsonl", 1), ("d.jsonl", 1)}


def test_an_evaluation_set_and_another_shard_count_too(settings: Settings, tmp_path: Path) -> None:
    rows = [compared(number, 1, prompt=f"Name tree {number}. " + "Please. " * 40) for number in range(6)]
    write(settings, a=[*rows, compared(6, 0)])
    snapshot = snapshot_of(settings, shard_bytes=900)
    assert len(snapshot.manifest.shards) > 3
    assert chosen(snapshot) == {}
    write(settings, a=rows)
    assert snapshot_of(settings, shard_bytes=900).manifest.num_rows() == 6
    held = write_lines(tmp_path / "held.jsonl", [compared(9, 0)])
    assert chosen(snapshot_of(settings, shard_bytes=900, evaluation_files={"held": str(held)})) == {}
    globs = {"evaluation:held/*": {"0": "first", "1": "second"}}
    kept = snapshot_of(settings, evaluation_files={"held": str(held)}, labels=globs)
    assert set(chosen(kept)) == {("evaluation:held/held.jsonl", 1)}


def test_a_second_run_with_files_that_are_held_back_computes_nothing(settings: Settings) -> None:
    likert = [strong(number, 1 + number % 7) for number in range(8)]
    write(settings, a=[compared(1, 0)], b=[compared(2, 1)], c=likert, d=[compared(5, "A")])
    assert snapshot_of(settings).num_new_shards == 4
    assert snapshot_of(settings).num_new_shards == 0
    write(settings, e=[compared(6, "B")])
    assert snapshot_of(settings).num_new_shards == 1


# --- strengths -----------------------------------------------------------------------------------------------


def strong(number: int, strength: object, **more: Any) -> dict[str, Any]:
    row = {"prompt": f"Name tree {number}.", "response_1": "An oak.", "response_2": "A fir."}
    return row | {"preference_strength": strength} | more


@pytest.mark.parametrize("scale", [[1, 2, 3, 4, 5, 6, 7], [0, 5, 10], [1, 2, 3], [0, 1], [-5, 5]])
def test_strengths_of_another_scale_than_helpsteers_are_never_guessed(settings: Settings, scale: list[int]) -> None:
    write(settings, a=[strong(number, strength) for number, strength in enumerate(scale)])
    snapshot = snapshot_of(settings, max_malformed_fraction=1)
    assert chosen(snapshot) == {}
    ambiguous = [reject["detail"] for reject in read_rejects(snapshot) if reject["reason"] == "ambiguous_label"]
    assert len(ambiguous) == len(scale) - scale.count(0)
    assert all(
        'define these values in the setting labels, for example {"preference_strength' in detail for detail in ambiguous
    )


def test_a_part_of_another_scale_shows_by_the_other_files_of_its_shape(settings: Settings) -> None:
    write(settings, a=[strong(1, 2)], b=[strong(2, -1)], c=[{"prompt": "q", "chosen": "x", "rejected": "y"}])
    both = snapshot_of(settings)
    assert chosen(both) == {("a.jsonl", 1): "A fir.", ("b.jsonl", 1): "An oak.", ("c.jsonl", 1): "x"}
    write(settings, d=[strong(3, 6)])
    assert set(chosen(snapshot_of(settings))) == {("c.jsonl", 1)}
    mended = snapshot_of(settings, labels={"d*": {"preference_strength": {"6": "second"}}})
    assert set(chosen(mended)) == {("a.jsonl", 1), ("b.jsonl", 1), ("c.jsonl", 1), ("d.jsonl", 1)}


def test_the_labels_of_a_scale_say_the_side_and_the_margin_is_the_distance_from_its_middle(settings: Settings) -> None:
    scale = {str(value): "first" if value < 4 else "second" for value in range(1, 8)} | {"4": "tie"}
    write(settings, a=[strong(number, number) for number in range(1, 8)])
    snapshot = snapshot_of(settings, labels={"preference_strength": scale})
    assert [(row["chosen"][0]["content"], row["margin"]) for row in rows_of(snapshot)] == [
        *[("An oak.", margin) for margin in (3, 2, 1)],
        *[("A fir.", margin) for margin in (1, 2, 3)],
    ]
    even = {"1": "second", "2": "second", "3": "first", "4": "first"}
    write(settings, a=[strong(number, float(number)) for number in range(1, 5)])
    margins = [row["margin"] for row in rows_of(snapshot_of(settings, labels={"preference_strength": even}))]
    assert margins == [1.5, 0.5, 0.5, 1.5]
    unknown = snapshot_of(settings, labels={"preference_strength": {"1": "first"}}, max_malformed_fraction=1)
    details = [reject["detail"] for reject in read_rejects(unknown)]
    assert len(details) == 3
    assert all("which the setting labels does not define" in detail for detail in details)


def test_a_strength_beside_a_label_is_its_size_unless_one_of_the_shape_has_a_sign(settings: Settings) -> None:
    write(settings, a=[strong(1, 3, label="A"), strong(2, 1, label="B"), strong(3, 0, label="A")])
    snapshot = snapshot_of(settings)
    assert [(row["chosen"][0]["content"], row["margin"]) for row in rows_of(snapshot)] == [
        ("An oak.", 3),
        ("A fir.", 1),
        ("An oak.", 0),
    ]
    write(settings, b=[strong(4, -2, label="A"), strong(5, 2, label="B"), strong(6, -1, label="B")])
    signed = snapshot_of(settings, max_malformed_fraction=1)
    assert set(chosen(signed)) == {("a.jsonl", 2), ("b.jsonl", 1), ("b.jsonl", 2)}
    refused = {(reject["source"], reject["line"]): reject["reason"] for reject in read_rejects(signed)}
    assert refused == dict.fromkeys([("a.jsonl", 1), ("a.jsonl", 3), ("b.jsonl", 3)], "ambiguous_field")


def test_helpsteers_mark_of_an_invalid_strength_is_no_verdict(settings: Settings) -> None:
    write(settings, a=[strong(1, -2), strong(2, -100), strong(3, 1)])
    snapshot = snapshot_of(settings)
    assert snapshot.manifest.num_rows() == 2
    assert [reject["reason"] for reject in read_rejects(snapshot)] == ["unlabelled"]


# --- what a file is held back for ----------------------------------------------------------------------------


def test_a_held_back_file_names_its_causes_with_counts_first_lines_and_what_helps(settings: Settings) -> None:
    good = [compared(number, "A") for number in range(16)]
    broken = [{"prompt": "q", "response_1": "x", "response_2": "y"}] * 2
    write(settings, a=[*good, b"{", b"\xff", *broken])
    said: list[str] = []
    snapshot = snapshot_of(settings, said.append)
    why = (
        "4 of 20 lines malformed: missing_field 2 (first: line 19), not_json 1 (first: line 17), not_utf8 1 "
        "(first: line 18); fix these lines, map its columns in the setting columns, or raise "
        "max_malformed_fraction"
    )
    assert f"'a.jsonl' is held back: {why}" in said
    held = {reject["detail"] for reject in read_rejects(snapshot) if reject["reason"] == "held_back_file"}
    assert held == {f"its file is held back: {why}"}
    causes = snapshot.manifest.facts["causes"]["a.jsonl"]
    assert f"{causes['causes']}; {causes['advice']}" == why


def test_details_of_labels_name_the_field_the_value_and_the_setting(settings: Settings) -> None:
    row = {"prompt": "q", "response_a": "x", "response_b": "y"}
    write(
        settings,
        a=[
            row | {"winner": 0},
            row | {"winner": "lefty"},
            row | {"winner": 0.7},
            row | {"winner": "a long word of the row itself"},
        ],
    )
    details = [reject["detail"] for reject in read_rejects(snapshot_of(settings))]
    unclear = "`winner` of `response_a` and `response_b` is 0, which could mean either response; "
    assert details == [
        unclear + 'define these values in the setting labels, for example {"winner": {"0": "first", "1": "second"}}',
        "`winner` is a word of 5 letters, which is not a known label; define it in the setting labels",
        "`winner` is 0.7, which is not a known label; define it in the setting labels",
        "`winner` is a word of 23 letters, which is not a known label; define it in the setting labels",
    ]
    assert "itself" not in json.dumps(details)


def test_a_file_on_another_scale_is_held_back_with_the_setting_of_its_own_column(settings: Settings) -> None:
    row = {"prompt": "q", "response_1": "x", "response_2": "y"}
    write(settings, a=[row | {"overall_preference": value} for value in (2, 4, 6)])
    snapshot = snapshot_of(settings)
    assert snapshot.manifest.facts["causes"]["a.jsonl"] == {
        "causes": "3 of 3 lines malformed: ambiguous_label 3 (first: line 1)",
        "advice": "define these values in the setting labels, for example "
        '{"overall_preference": {"1": "first", "2": "tie", "3": "second"}}',
    }
    assert all("overall_preference" in reject["detail"] for reject in read_rejects(snapshot))
