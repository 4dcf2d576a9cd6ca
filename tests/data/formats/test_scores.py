"""Scores of both sides under the names that files have for them, and numbers that tables write as text."""

import json
from typing import Any

import pytest
from parsed_rows import parse_row

from rm_assets.data.formats.field_names import LABELS, SPELLINGS
from rm_assets.data.formats.parsing import parse_line
from rm_assets.data.formats.preferences import ParsingRules, PreferenceError
from rm_assets.data.tables.reasons import Reason

ROW = {"prompt": "Name a metal.", "chosen": "Iron.", "rejected": "Wood."}


def margin(row: dict[str, Any]) -> float:
    [pair] = parse_row(json.dumps(ROW | row))
    return pair.margin


def reason_of(row: dict[str, Any]) -> Reason:
    with pytest.raises(PreferenceError) as error:
        parse_row(json.dumps(ROW | row))
    return error.value.reason


@pytest.mark.parametrize("names", list(zip(SPELLINGS["score_chosen"], SPELLINGS["score_rejected"], strict=True)))
def test_scores_of_every_spelling_give_the_margin_or_contradict(names: tuple[str, str]) -> None:
    one, other = names
    assert margin({one: 5.0, other: 2}) == 3
    assert margin({one: "5.0", other: "2"}) == 3
    assert reason_of({one: 4, other: 4.0}) == Reason.TIE
    assert reason_of({one: -1, other: -1}) == Reason.TIE
    assert reason_of({one: 1, other: "5"}) == Reason.SCORES_DISAGREE
    assert margin({one: "", other: "NaN"}) == 0


@pytest.mark.parametrize("name", ["rating", "ratings", "score", "scores"])
def test_a_list_of_two_scores_beside_the_sides_has_that_of_the_chosen_one_first(name: str) -> None:
    assert margin({name: [9, 7]}) == 2
    assert margin({name: ["9", "7.5"]}) == 1.5
    assert reason_of({name: [9, 9]}) == Reason.TIE
    assert reason_of({name: [7, 9]}) == Reason.SCORES_DISAGREE
    for unread in ([9], [9, None], [1, 2, 3], 9, None):
        assert margin({name: unread}) == 0


def test_scores_in_the_order_of_generations_are_those_of_their_texts() -> None:
    assert margin({"rating": [7, 9], "generations": ["Wood.", "Iron."]}) == 2
    assert reason_of({"rating": [7, 9], "generations": ["Iron.", "Wood."]}) == Reason.SCORES_DISAGREE
    assert margin({"rating": [7, 9], "order": ["rejected", "chosen"]}) == 2
    assert margin({"rating": [9, 7], "order": ["rejected", "chosen"], "status": "swapped"}) == 2
    assert margin({"rating": [7, 9], "generations": ["Tin.", "Lead."]}) == 0
    assert reason_of({"rating": [9, 9], "generations": ["Tin.", "Lead."]}) == Reason.TIE


@pytest.mark.parametrize("name", ["rating", "ratings", "score", "scores"])
def test_scores_may_be_named_by_their_sides_and_be_json_in_a_text(name: str) -> None:
    for written in (lambda scores: scores, json.dumps):
        assert margin({name: written({"rejected": 7, "chosen": 9})}) == 2
        assert margin({name: written([9, 7.5])}) == 1.5
        for sides in ({"rejected": 9, "chosen": 7}, [7, 9]):
            assert reason_of({name: written(sides)}) == Reason.SCORES_DISAGREE
        assert reason_of({name: written({"rejected": 7, "chosen": 7})}) == Reason.TIE
        assert margin({name: written({"chosen": 7, "rejected": None})}) == 0
    assert margin({name: "[7 9]"}) == 0


@pytest.mark.parametrize("name", ["is_tie", "tie"])
def test_a_flag_of_ties_that_is_true_makes_the_row_one(name: str) -> None:
    for flag in (True, 1, 1.0, "True", "1"):
        assert reason_of({name: flag}) == Reason.TIE
    for flag in (False, 0, None, "", "false"):
        assert margin({name: flag, "rating": [9, 8]}) == 1


def test_a_row_that_says_it_is_a_tie_is_one() -> None:
    assert reason_of({"status": "tie"}) == Reason.TIE
    assert margin({"status": "unchanged", "rating": [9, 8]}) == 1


@pytest.mark.parametrize(
    ("text", "value"), [("8.5", 8.5), (" 3 ", 3.0), ("+.5", 0.5), ("1e2", 100.0), ("7.", 7.0), ("", 0.0), ("nan", 0.0)]
)
def test_numbers_as_text_are_read_exactly(text: str, value: float) -> None:
    assert margin({"margin": text}) == value
    sides = {"prompt": "q", "response_1": "a", "response_2": "b", "label": "B"}
    [pair] = parse_row(json.dumps(sides | {"overall_preference": text}))
    assert pair.margin == value
    if value > 0:
        ranking = {"prompt": "q", "responses": [{"text": "a", "score": text}, {"text": "b", "rating": "0"}]}
        assert parse_row(json.dumps(ranking))[0].margin == value
        assert parse_row(json.dumps({"prompt": "q", "responses": ["a", "b"], "scores": [text, "0"]}))[0].margin == value


@pytest.mark.parametrize("text", ["1,5", "1_000", "0x1", "eight", "1 2", "inf", "--1", "٣", [1], True, {"a": 1}])
def test_what_is_no_number_is_of_a_wrong_type(text: object) -> None:
    assert reason_of({"margin": text}) == Reason.WRONG_TYPE
    with pytest.raises(PreferenceError) as error:
        parse_line(
            json.dumps({"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": text}),
            ParsingRules(),
        )
    assert error.value.reason == Reason.WRONG_TYPE


@pytest.mark.parametrize("name", sorted({"status", *LABELS} - {"chosen"}))
def test_a_label_that_says_tie_beside_the_sides_is_a_tie(name: str) -> None:
    for tie in ("tie", "Tie (both bad)", "about the same"):
        assert reason_of({name: tie}) == Reason.TIE
    for other in ("A", "easy", "", 0, 1, None, ["tie"]):
        assert margin({name: other}) == 0


@pytest.mark.parametrize(("name", "best"), [("score", 9), ("rating", 9), ("rank", 1)])
def test_lists_beside_responses_may_be_named_in_the_singular(name: str, best: int) -> None:
    for better in (0, 1):
        values = [best if place == better else 5 for place in (0, 1)]
        row = {"prompt": "Name a metal.", "responses": ["Iron.", "Wood."], name: values}
        [pair] = parse_row(json.dumps(row))
        assert pair.chosen[0].content == row["responses"][better]
