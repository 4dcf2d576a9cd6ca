"""Label Studio's exports: pairs as the annotators chose, whichever field was on the left."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parsed_rows import chosen, read, reason_for
from support import begins_with_marker

from rm_assets.data.tables.reasons import Reason

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)
TEXTS = st.lists(TEXT.filter(lambda text: not begins_with_marker(text)), min_size=3, max_size=3, unique=True)
DATA = {"prompt": "2+2?", "answer1": "4.", "answer2": "5."}


def result(type_name: str, value: Any, to_name: str = "answer1,answer2", from_name: str = "pw") -> dict[str, Any]:
    origin = {"id": "r", "origin": "manual"}
    return {"type": type_name, "value": value, "to_name": to_name, "from_name": from_name} | origin


def annotation(*results: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": 5, "completed_by": 1, "result": list(results), "was_cancelled": False, "ground_truth": False} | more


def selected(side: str, to_name: str = "answer1,answer2", **more: Any) -> dict[str, Any]:
    return annotation(result("pairwise", {"selected": side}, to_name), **more)


def task(*annotations: dict[str, Any], data: dict[str, Any] = DATA) -> dict[str, Any]:
    others = {"id": 11, "meta": {}, "project": 1, "total_annotations": len(annotations)}
    predictions = [{"model_version": "m", "result": [result("pairwise", {"selected": "right"})]}]
    return {"data": data, "annotations": list(annotations), "predictions": predictions} | others


@settings(max_examples=30)
@given(texts=TEXTS, data=st.data())
def test_swapping_the_selected_side_swaps_the_pair(texts: list[str], data: st.DataObject) -> None:
    prompt, *sides = texts
    names = data.draw(st.permutations(["answer1", "answer2"]))
    fields = {"prompt": prompt} | dict(zip(names, sides, strict=True))
    fields = {name: fields[name] for name in data.draw(st.permutations(sorted(fields)))} | {"title": None}
    for better, side in enumerate(("left", "right")):
        row = task(selected(side, ",".join(names)), data=fields) | {"inner_id": None}
        [pair] = read({name: row[name] for name in data.draw(st.permutations(sorted(row)))})
        found = (pair.prompt[0].content, pair.chosen[0].content, pair.rejected[0].content)
        assert found == (prompt, sides[better], sides[1 - better])


def test_the_names_of_the_tag_say_which_field_is_on_the_left() -> None:
    assert chosen(task(selected("left"))) == "4."
    assert chosen(task(selected("right"))) == "5."
    assert chosen(task(selected("left", "answer2,answer1"))) == "5."
    assert chosen(task(selected("left", "txt-2,txt-1"))) == "5."  # tags of other names, with the same ends
    assert chosen(task(selected("left", "txt-1,txt-2"))) == "4."
    assert chosen(task(selected("left", "pw"))) == "4."  # the tag's own name
    texts = {"prompt": "2+2?", "good": "4.", "bad": "5."}
    assert chosen(task(selected("right", "bad,good"), data=texts)) == "4."
    assert reason_for(task(selected("left", "upper,lower"))) == Reason.AMBIGUOUS_FIELD
    assert reason_for(task(selected("left", "pw"), data=texts)) == Reason.MISSING_FIELD
    assert chosen(task(selected("left", "pw"), data=texts), columns={"response_a": "bad", "response_b": "good"}) == "5."


def test_skipped_annotations_do_not_count_and_tasks_without_any_are_not_labelled() -> None:
    assert chosen(task(selected("right", was_cancelled=True), selected("left"))) == "4."
    for annotations in ([], [selected("left", was_cancelled=True)], [annotation()]):
        assert reason_for(task(*annotations)) == Reason.UNLABELLED  # whatever a model predicted


def test_the_majority_of_the_annotations_decides_or_each_does() -> None:
    row = task(selected("left"), selected("right", "answer2,answer1"), selected("right"))
    [pair] = read(row)
    assert (pair.chosen[0].content, pair.num_annotators, pair.num_agreeing) == ("4.", 3, 2)
    assert [pair.chosen[0].content for pair in read(row, annotators="each")] == ["4.", "4.", "5."]
    assert reason_for(task(selected("left"), selected("right"))) == Reason.TIE


def test_ground_truth_decides_alone() -> None:
    assert chosen(task(selected("left"), selected("left"), selected("right", ground_truth=True))) == "5."


@pytest.mark.parametrize("choice", ["answer2", "Answer 2", "right", "B", "2", "Response 2"])
def test_a_choice_names_a_response(choice: str) -> None:
    assert chosen(task(annotation(result("choices", {"choices": [choice]}, "prompt", "better")))) == "5."


def test_a_ranking_of_listed_items_states_the_pairs_of_those_that_were_ranked() -> None:
    items = [{"id": name, "title": "m", "body": body} for name, body in (("a", "5."), ("b", "4."), ("c", "6."))]
    data = {"prompt": "2+2?", "items": items}

    def stated(*orders: list[str]) -> list[tuple[str | None, str | None]]:
        results = [annotation(result("ranker", {"ranker": {"rank": order}}, "list", "rank")) for order in orders]
        return [(pair.chosen[0].content, pair.rejected[0].content) for pair in read(task(*results, data=data))]

    assert stated(["b", "a", "c"]) == [("5.", "6."), ("4.", "5."), ("4.", "6.")]
    assert stated(["a", "b"]) == [("5.", "4.")]
    assert stated(["b", "a"], ["b", "a"], ["a", "b"]) == [("4.", "5.")]
    for wrong in (["a"], ["a", "z"], "ab"):
        row = task(annotation(result("ranker", {"ranker": {"rank": wrong}}, "list", "rank")), data=data)
        assert reason_for(row) == Reason.WRONG_TYPE
    buckets = result("ranker", {"ranker": {"good": ["a"], "bad": ["b"]}}, "list", "rank")
    assert reason_for(task(annotation(buckets), data=data)) == Reason.WRONG_TYPE


def test_ratings_of_each_response_give_the_margin() -> None:
    ratings = [
        result("rating", {"rating": stars}, name, f"r{name}") for name, stars in (("answer1", 2), ("answer2", 5))
    ]
    [pair] = read(task(annotation(*ratings)))
    assert (pair.chosen[0].content, pair.margin) == ("5.", 3.0)
    assert reason_for(task(annotation(result("rating", {"rating": 2}, "prompt")))) == Reason.AMBIGUOUS_FIELD


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ([result("pairwise", {"selected": "none"})], Reason.WRONG_TYPE),
        ([result("pairwise", {})], Reason.WRONG_TYPE),
        ([result("choices", {"choices": ["answer1", "answer2"]})], Reason.WRONG_TYPE),
        ([result("choices", {"choices": ["a novel word"]})], Reason.WRONG_TYPE),
        ([result("choices", {"choices": ["tie"]})], Reason.TIE),
        ([result("textarea", {"text": ["why"]})], Reason.MISSING_FIELD),
        ([result("pairwise", {"selected": "left"})] * 2, Reason.AMBIGUOUS_FIELD),
        (
            [result("pairwise", {"selected": side}, from_name=side) for side in ("left", "right")],
            Reason.AMBIGUOUS_FIELD,
        ),
    ],
)
def test_results_that_state_no_preference_have_a_reason(results: list[dict[str, Any]], reason: Reason) -> None:
    assert reason_for(task(annotation(*results))) == reason


def test_of_several_tags_the_setting_names_the_one_that_counts() -> None:
    results = [
        result("pairwise", {"selected": side}, from_name=name) for name, side in (("kind", "left"), ("true", "right"))
    ]
    assert chosen(task(annotation(*results)), columns={"label": "true"}) == "5."


def test_a_row_of_json_min_without_an_annotation_is_not_labelled() -> None:
    row = DATA | {"id": 11, "annotator": {}, "annotation_id": None, "created_at": None, "lead_time": None}
    assert reason_for(row) == Reason.UNLABELLED
    # in a file of several shapes Arrow gives every row the fields of all others
    assert len(read({"prompt": "2+2?", "chosen": "4.", "rejected": "5.", "annotation_id": None})) == 1
    assert chosen(DATA | {"winner": "answer2", "annotation_id": None}) == "5."


@pytest.mark.parametrize("tag", ["comparison", "pw", "winner"])
@pytest.mark.parametrize(
    "form",
    [
        lambda side: side,
        lambda side: {"selected": side},
        lambda side: [{"selected": side}],
        lambda side: json.dumps([{"selected": side}]),
        lambda side: json.dumps([{"selected": side}], separators=(",", ":")),
        lambda side: json.dumps({"selected": side}, indent=1),
        lambda side: str([{"selected": side}]),
    ],
)
def test_json_min_holds_the_verdict_under_the_name_of_the_tag(tag: str, form: Any) -> None:
    others = {"id": 11, "annotator": 1, "annotation_id": 5, "created_at": "2024", "lead_time": 2.2}
    assert chosen(DATA | {tag: form("left")} | others) == "4."
    assert chosen(DATA | {tag: form("right")} | others) == "5."
