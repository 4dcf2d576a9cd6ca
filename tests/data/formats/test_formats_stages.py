"""Formats at the validated stage: settings are part of the keys, rankings are conserved, ambiguous files held back."""

from pathlib import Path
from typing import Any

import pytest
from support import plain_row, silent, write_lines
from support import rows as written_rows

from rm_assets.data.stages.invariants import INVARIANTS
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.results.stages import stage_result
from rm_assets.settings import Settings


def validated(settings: Settings, **changes: object) -> Snapshot:
    settings = settings.model_copy(update=changes)
    raw = publish_raw(settings, silent)
    snapshot = publish_validated(settings, raw, silent)
    laws = [law.violations(snapshot.manifest, raw.manifest) for law in INVARIANTS[Stage.VALIDATED]]
    assert {count for figures in laws for count in figures.values()} == {0}
    return snapshot


def ranking(number: int) -> dict[str, Any]:
    replies = [{"text": f"reply {reply}", "score": reply // 2} for reply in range(4)]
    return {"prompt": f"Question {number}?", "responses": replies}


def test_pairs_of_a_ranking_are_conserved_and_those_left_out_are_counted(settings: Settings) -> None:
    write_lines(Path(settings.annotations_path) / "a.jsonl", [plain_row(1), ranking(2)])
    manifest = validated(settings, max_pairs_per_prompt=3).manifest
    assert manifest.num_rows() == 1 + 3
    assert (manifest.total("num_stated"), manifest.total("num_tied"), manifest.total("num_not_taken")) == (4, 2, 1)


def record(number: int, *labels: str) -> dict[str, object]:
    """A record of Argilla's with the label of each of its annotators."""
    fields = {"prompt": f"Question {number}?", "response_1": "a", "response_2": "b"}
    responses = [{"value": label, "user_id": user} for user, label in enumerate(labels)]
    return {"fields": fields, "responses": {"label": responses}}


def test_a_pair_keeps_how_many_annotators_agree_and_unlabelled_records_are_no_damage(settings: Settings) -> None:
    first, second = "response_1", "response_2"
    records = [record(0, first, second, first), record(1, first), plain_row(2), record(3), record(4, first, second)]
    write_lines(Path(settings.annotations_path) / "a.jsonl", records)
    snapshot = validated(settings)
    assert snapshot.manifest.facts["held_back"] == {}
    votes = [(row["line"], row["num_annotators"], row["num_agreeing"]) for row in written_rows(snapshot)]
    assert votes == [(1, 3, 2), (2, 1, 1), (3, 0, 0)]
    assert snapshot.manifest.shards[0].stats["reasons"] == {"tie": 1, "unlabelled": 1}
    each = validated(settings, annotators="each").manifest
    assert each.num_rows() == 3 + 1 + 1 + 2


def test_responses_that_are_empty_or_unranked_are_counted_and_shown_and_their_line_is_conserved(
    settings: Settings,
) -> None:
    partial = ranking(2)["responses"] + [{"text": "unranked"}, {"text": "", "score": 7}]
    write_lines(Path(settings.annotations_path) / "a.jsonl", [plain_row(1), {"prompt": "q", "responses": partial}])
    raw = publish_raw(settings, silent)
    snapshot = validated(settings)
    assert (snapshot.manifest.num_rows(), snapshot.manifest.num_rows(rejects=True)) == (1 + 4, 0)
    assert snapshot.manifest.total("num_left_out") == 2
    shown = stage_result(Stage.VALIDATED, snapshot, raw, settings).metadata or {}
    figures = str(shown["figures"])
    assert "| `responses_left_out` | 2 responses" in figures and "| `tied_pairs` | 2 pairs" in figures


@pytest.mark.parametrize(
    ("changes", "num_pairs"),
    [
        ({}, 0),
        ({"labels": {"0": "first", "1": "second"}}, 0),
        ({"labels": {"label": {"0": "first", "1": "second"}}}, 20),
        ({"labels": {"0": "tie"}, "columns": {"label": "judge"}}, 0),
        ({"columns": {"chosen": "output_1", "rejected": "output_2"}}, 20),
    ],
)
def test_a_setting_that_decides_parsing_computes_the_shard_anew(
    settings: Settings, changes: dict, num_pairs: int
) -> None:
    rows = [{"input": f"Question {n}?", "output_1": "a", "output_2": "b", "label": n % 2} for n in range(20)]
    write_lines(Path(settings.annotations_path) / "a.jsonl", rows)
    validated(settings)
    snapshot = validated(settings, **changes)
    assert snapshot.manifest.num_rows() == num_pairs
    assert snapshot.num_new_shards == (1 if changes else 0)


def test_one_ambiguous_label_holds_its_file_back_since_its_other_labels_may_mean_the_same(settings: Settings) -> None:
    labels = [1] * 30 + [0]
    rows = [{"input": f"Question {n}?", "output_1": "a", "output_2": "b", "label": x} for n, x in enumerate(labels)]
    write_lines(Path(settings.annotations_path) / "a.jsonl", rows)
    write_lines(Path(settings.annotations_path) / "b.jsonl", [row | {"label": "output_1"} for row in rows[:-1]])
    snapshot = validated(settings)
    assert snapshot.manifest.facts["held_back"] == {"a.jsonl": {"num_malformed": 1, "num_lines": 31}}
    assert snapshot.manifest.num_rows() == 30
