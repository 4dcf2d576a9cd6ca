"""Argilla's exports: what annotators submitted, in all four forms of a record, and never what a model suggested."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parsed_rows import chosen, read, reason_for
from support import begins_with_marker

from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)
TEXTS = st.lists(TEXT.filter(lambda text: not begins_with_marker(text)), min_size=3, max_size=3, unique=True)
FIELDS = {"prompt": "2+2?", "response_1": "4.", "response_2": "5."}
Given = list[tuple[dict[str, Any], str]]
"""What each annotator answered, by question, and the status of it."""


def nested(fields: dict[str, Any], given: Given) -> dict[str, Any]:
    """Record.to_dict of 2.x, with a status where it is not submitted."""
    responses: dict[str, Any] = {}
    for user, (answers, status) in enumerate(given):
        for question, value in answers.items():
            response = {"value": value, "user_id": f"u{user}"} | ({"status": status} if status != "submitted" else {})
            responses.setdefault(question, []).append(response)
    suggestions = {"label": {"value": "response_2", "score": None, "agent": "model"}}
    others = {"id": "1", "metadata": {}, "vectors": {}, "status": "completed", "_server_id": "x"}
    return {"fields": fields, "responses": responses, "suggestions": suggestions} | others


def flat(fields: dict[str, Any], given: Given) -> dict[str, Any]:
    """GenericIO._record_to_dict of 2.x, flattened."""
    row = {"id": "1", "_server_id": "x", "label.suggestion": "response_2", "label.suggestion.agent": "model"} | fields
    for user, (answers, status) in enumerate(given):
        for question, value in answers.items():
            for end, item in (("", value), (".users", f"u{user}"), (".status", status)):
                row.setdefault(f"{question}.responses{end}", []).append(item)
    return row if given else row | {"label.responses": None}


def nested_v1(fields: dict[str, Any], given: Given) -> dict[str, Any]:
    """FeedbackRecord of 1.x."""
    responses = [
        {"user_id": f"u{user}", "values": {name: {"value": value} for name, value in answers.items()}, "status": status}
        for user, (answers, status) in enumerate(given)
    ]
    suggestions = [{"question_name": "label", "value": "response_2", "agent": "model"}]
    return {"fields": fields, "responses": responses, "suggestions": suggestions, "external_id": None, "metadata": {}}


def flat_v1(fields: dict[str, Any], given: Given) -> dict[str, Any]:
    """format_as("datasets") of 1.x."""
    row: dict[str, Any] = fields | {"external_id": None, "metadata": "{}"}
    for user, (answers, status) in enumerate(given):
        for question, value in answers.items():
            row.setdefault(question, []).append({"user_id": f"u{user}", "value": value, "status": status})
    questions = {name for answers, _ in given for name in answers} or {"label"}
    for name in questions:
        row |= {f"{name}-suggestion": "response_2", f"{name}-suggestion-metadata": {"type": None, "agent": "model"}}
    return row if given else row | {"label": []}


FORMS = [nested, flat, nested_v1, flat_v1]
Form = Callable[[dict[str, Any], Given], dict[str, Any]]


def submitted(*answers: dict[str, Any]) -> Given:
    return [(given, "submitted") for given in answers]


ANSWERS: list[Callable[[str, str], dict[str, Any]]] = [
    lambda better, worse: {"label": better},
    lambda better, worse: {"ranking": [better, worse]},
    lambda better, worse: {"preference": [{"value": worse, "rank": 2}, {"value": better, "rank": 1}]},
    lambda better, worse: {f"{better}-rating": 4, f"{worse}-rating": 2, "comments": "Because."},
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("answer", ANSWERS, ids=["label", "names", "ranks", "ratings"])
@settings(max_examples=15)
@given(texts=TEXTS, data=st.data())
def test_swapping_the_answer_swaps_the_pair_in_every_form(
    form: Form, answer: Callable[[str, str], dict[str, Any]], texts: list[str], data: st.DataObject
) -> None:
    prompt, *sides = texts
    names = ["response_1", "response_2"]
    fields = {"prompt": prompt} | dict(zip(names, sides, strict=True)) | {"context": None}
    for better in (0, 1):
        row = form(fields, submitted(answer(names[better], names[1 - better]))) | {"subset": None}
        [pair] = read({name: row[name] for name in data.draw(st.permutations(sorted(row)))})
        found = (pair.prompt[0].content, pair.chosen[0].content, pair.rejected[0].content)
        assert found == (prompt, sides[better], sides[1 - better])


@pytest.mark.parametrize("form", FORMS)
def test_only_submitted_responses_count_and_suggestions_never(form: Form) -> None:
    given = [({"label": "response_2"}, "draft"), ({"label": "response_2"}, "discarded")]
    assert reason_for(form(FIELDS, given)) == Reason.UNLABELLED
    assert reason_for(form(FIELDS, [])) == Reason.UNLABELLED
    assert chosen(form(FIELDS, [*given, ({"label": "response_1"}, "submitted")])) == "4."


@pytest.mark.parametrize("form", FORMS)
def test_the_majority_of_the_annotators_decides_or_each_does(form: Form) -> None:
    row = form(FIELDS, submitted({"label": "response_1"}, {"label": "response_2"}, {"label": "response_1"}))
    [pair] = read(row)
    assert (pair.chosen[0].content, pair.num_annotators, pair.num_agreeing) == ("4.", 3, 2)
    assert [pair.chosen[0].content for pair in read(row, annotators="each")] == ["4.", "4.", "5."]
    assert reason_for(form(FIELDS, submitted({"label": "response_1"}, {"label": "response_2"}))) == Reason.TIE


def test_responses_of_a_pending_record_may_be_drafts() -> None:
    row = nested(FIELDS, submitted({"label": "response_1"}))
    assert reason_for(row | {"status": "pending"}) == Reason.UNLABELLED
    assert chosen(row | {"status": None}) == "4."


@pytest.mark.parametrize("label", ["A", "Response 1", "first", "1", "response_1"])
def test_a_label_of_two_responses_has_the_spellings_of_comparisons(label: str) -> None:
    assert chosen(nested(FIELDS, submitted({"preference": label}))) == "4."


def test_ranks_of_one_place_are_ties_and_unranked_responses_are_left_out() -> None:
    fields = FIELDS | {"response_3": "6."}
    ranks = [{"value": f"response_{number}", "rank": rank} for number, rank in ((1, 1), (2, 2), (3, 2))]
    stated = [
        (pair.chosen[0].content, pair.rejected[0].content) for pair in read(nested(fields, submitted({"q": ranks})))
    ]
    assert stated == [("4.", "5."), ("4.", "6.")]
    assert len(read(nested(fields, submitted({"q": ["response_3", "response_1"]})))) == 1
    lists = {"rank": [2, 1], "value": ["response_1", "response_2"]}  # as Arrow keeps a list of objects
    assert chosen(nested(FIELDS, submitted({"q": lists}))) == "5."


def test_a_response_that_is_empty_is_left_out_of_a_ranking() -> None:
    fields = FIELDS | {"response_3": None}
    assert chosen(nested(fields, submitted({"q": ["response_2", "response_3", "response_1"]}))) == "5."
    two = FIELDS | {"response_2": None}
    assert reason_for(nested(two, submitted({"q": ["response_2", "response_1"]}))) == Reason.EMPTY_REPLY


def test_distilabels_records_rate_each_generation() -> None:
    fields = {"id": "h", "instruction": "2+2?", "generations-0": "5.", "generations-1": "4."}
    answers = {"generations-0-rating": 1, "generations-1-rating": 5, "generations-1-rationale": "Right."}
    [pair] = read(nested_v1(fields, submitted(answers)))
    assert (pair.chosen[0].content, pair.margin) == ("4.", 4.0)
    assert chosen(nested(fields, submitted({"rating_0": 5, "rating_1": 1}))) == "5."


def test_fields_of_any_name_are_responses_where_a_ranking_or_the_setting_names_them() -> None:
    fields = {"prompt": "2+2?", "left": "4.", "other": "5."}
    assert chosen(nested(fields, submitted({"order": ["other", "left"]}))) == "5."
    assert reason_for(nested(fields, submitted({"label": "A"}))) == Reason.MISSING_FIELD
    assert (
        chosen(nested(fields, submitted({"label": "A"})), columns={"response_a": "other", "response_b": "left"}) == "5."
    )


def test_of_several_questions_the_setting_names_the_one_that_counts() -> None:
    row = nested(FIELDS, submitted({"helpful": "response_1", "harmless": "response_2"}))
    assert reason_for(row) == Reason.AMBIGUOUS_FIELD
    assert chosen(row, columns={"label": "harmless"}) == "5."


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"comments": "Fine."}, Reason.MISSING_FIELD),
        ({"quality": 4}, Reason.MISSING_FIELD),
        ({"preference": 1}, Reason.MISSING_FIELD),  # a rating question: of what, and is 1 the first or the worst?
        ({"label": "a novel word"}, Reason.WRONG_TYPE),
        ({"label": "tie"}, Reason.TIE),
        ({"response_1_rating": 3, "response_2_rating": 3}, Reason.TIE),
        ({"response_1_rating": 3}, Reason.MISSING_FIELD),
        ({"q": [{"value": "response_1", "rank": "best"}, {"value": "response_2", "rank": 2}]}, Reason.WRONG_TYPE),
    ],
)
def test_answers_that_state_no_preference_have_a_reason(answers: dict[str, Any], reason: Reason) -> None:
    assert reason_for(nested(FIELDS, submitted(answers))) == reason


def test_fields_may_hold_a_chat() -> None:
    chat = [
        {"role": "user", "content": "2+1?"},
        {"role": "assistant", "content": "3."},
        {"role": "user", "content": "2+2?"},
    ]
    [pair] = read(nested(FIELDS | {"prompt": chat}, submitted({"label": "response_1"})))
    assert [message.content for message in (*pair.prompt, *pair.chosen)] == ["2+1?", "3.", "2+2?", "4."]


@pytest.mark.parametrize(
    "row",
    [
        {
            "label.responses": "['response_2']",
            "label.responses.users": "['u']",
            "label.responses.status": "['submitted']",
        },
        {"label": "[{'user_id': 'u', 'value': 'response_2', 'status': 'submitted'}]", "label-suggestion": None},
    ],
)
def test_responses_that_a_table_holds_as_text_are_not_taken_for_none(row: dict[str, Any]) -> None:
    with pytest.raises(PreferenceError, match=r"wrong_type: `label.* is a list written as text; export the records"):
        read(FIELDS | {"_server_id": "x", "external_id": None} | row)
