"""A field that is there and null or blank is no damage: nobody judged, or a reply is empty. A missing field is."""

import json
from pathlib import Path
from typing import Any

import pytest
from parsed_rows import parse_row
from support import plain_row, rows, silent, write_lines

from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.tables.reasons import Reason
from rm_assets.settings import Settings

SIDES = {"prompt": "Name a tree.", "response_a": "An oak.", "response_b": "A fir."}
MESSAGES = [{"role": "user", "content": "Name a tree."}, {"role": "assistant", "content": "An oak."}]
SKIPS = [
    "#N/A",
    "Cannot determine",
    "can't judge",
    "flagged",
    "TBD",
    "",
    " ",
    "skip",
    "Skipped",
    "N/A",
    "n/a",
    "None",
    "null",
    "NaN",
    "unsure",
    "Not sure",
    "Can't tell",
    "-",
    "?",
]
SKIPS += ["I don't know", "cannot decide", "unlabelled", "no label", "invalid", "pending"]
TIES = ["Tie", "Tie (both good)", "tie - both are bad", "Both bad", "both_good", "neither", "No preference", "A=B"]
TIES += ["About the same", "Both are equally good", "equal", "same.", "draw", "tie (all bad)", "TIED", "=="]


def reason_of(row: object) -> Reason:
    with pytest.raises(PreferenceError) as error:
        parse_row(json.dumps(row))
    return error.value.reason


@pytest.mark.parametrize("column", ["label", "winner", "preference"])
def test_a_label_that_is_null_blank_or_skipped_says_nothing(column: str) -> None:
    for label in (None, [], {}, *SKIPS):
        assert reason_of(SIDES | {column: label}) == Reason.UNLABELLED, label


@pytest.mark.parametrize("tie", TIES)
def test_spellings_of_ties(tie: str) -> None:
    assert reason_of(SIDES | {"winner": tie}) == Reason.TIE


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (SIDES | {"preference_strength": None}, Reason.UNLABELLED),
        (SIDES | {"preference_strength": ""}, Reason.UNLABELLED),
        (SIDES | {"winner": "skip", "preference_strength": -2}, Reason.UNLABELLED),
        ({"prompt": "q", "responses": ["a", "b"], "scores": None}, Reason.UNLABELLED),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [None, ""]}, Reason.UNLABELLED),
        ({"prompt": "q", "responses": [{"text": "a", "rank": None}, {"text": "b", "rank": None}]}, Reason.UNLABELLED),
        (SIDES | {"response_b": None, "label": "A"}, Reason.EMPTY_REPLY),
        ({"prompt": "q", "chosen": None, "rejected": None}, Reason.EMPTY_REPLY),
        ({"prompt": "q", "chosen_messages": MESSAGES, "rejected_messages": None}, Reason.EMPTY_REPLY),
        ({"chosen": None, "rejected": MESSAGES}, Reason.EMPTY_REPLY),
        ({"prompt": None, "chosen": "x", "rejected": "y"}, Reason.EMPTY_MESSAGE),
        (
            {"input": {"messages": MESSAGES[:1]}, "preferred_output": MESSAGES[1:], "non_preferred_output": None},
            Reason.EMPTY_REPLY,
        ),
        # what is not there, or is more than null, stays damage
        (SIDES, Reason.MISSING_FIELD),
        (SIDES | {"note": None}, Reason.MISSING_FIELD),
        ({"prompt": "q", "chosen": "x", "note": None}, Reason.MISSING_FIELD),
        ({"prompt": "q", "chosen": "x", "label": None}, Reason.MISSING_FIELD),
        ({"prompt": None, "text": "x"}, Reason.UNKNOWN_FORMAT),
        ({"prompt": None, "chosen": [{"content": "x"}], "rejected": [{"content": "y"}]}, Reason.MISSING_FIELD),
        ({"prompt": "q", "chosen": 5, "rejected": None}, Reason.MISSING_FIELD),
    ],
)
def test_a_null_field_is_told_from_a_missing_one(row: dict[str, Any], reason: Reason) -> None:
    assert reason_of(row) == reason


def test_a_label_beside_blank_ones_decides() -> None:
    for more in (
        {"label": None, "winner": "B"},
        {"label": "n/a", "winner": "B"},
        {"label": "", "preference_strength": 2},
    ):
        [pair] = parse_row(json.dumps(SIDES | more))
        assert pair.chosen[0].content == "A fir."
    assert reason_of(SIDES | {"label": "skip", "winner": "B"}) == Reason.AMBIGUOUS_FIELD


def test_many_unlabelled_rows_cost_no_file_its_others(settings: Settings) -> None:
    for number in range(5):
        labels: list[object] = ["A", "B", None, "A", "B"] * 2
        lines: list[object] = [
            SIDES | {"prompt": f"Name tree {number}, {place}.", "winner": label} for place, label in enumerate(labels)
        ]
        write_lines(Path(settings.annotations_path) / f"{number}.jsonl", lines)
    replies = [plain_row(1), plain_row(2), plain_row(3, rejected=None), plain_row(4, chosen=None)]
    write_lines(Path(settings.annotations_path) / "plain.jsonl", replies)
    snapshot = publish_validated(settings, publish_raw(settings, silent), silent)
    assert snapshot.manifest.facts["held_back"] == {}
    assert snapshot.manifest.num_rows() == 5 * 8 + 2
    assert {reject["reason"] for reject in rows(snapshot, "rejects")} == {"unlabelled", "empty_reply"}
