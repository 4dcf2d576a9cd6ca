"""Comparisons: who wins is read from every spelling of the field, and never guessed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsed_rows import chosen, parse_row, read
from support import begins_with_marker, is_repeated

from rm_assets.data.formats.field_names import RESPONSES
from rm_assets.data.formats.preferences import Format, ParsingRules, Preference, PreferenceError
from rm_assets.data.tables.reasons import Reason

PAIRS = [
    ("response_a", "response_b"),
    ("output_1", "output_2"),
    ("response 1", "response 2"),
    ("response1", "response2"),
    ("answer_a", "answer_b"),
    ("completion_A", "completion_B"),
    ("model_a_response", "model_b_response"),
    ("response_0", "response_1"),
]
TEXTS = st.lists(st.text(min_size=1).filter(str.strip), min_size=3, max_size=3, unique=True)


def compare(label: Any, names: tuple[str, str] = PAIRS[0], rules: ParsingRules | None = None) -> Preference:
    row = {"prompt": "q", names[0]: "one", names[1]: "two"} | (label if isinstance(label, dict) else {"label": label})
    [read] = parse_row(json.dumps(row), rules or ParsingRules())
    assert read.format == Format.COMPARISON
    return read


def winner(*arguments: Any) -> str | None:
    return compare(*arguments).chosen[0].content


@given(texts=TEXTS.filter(lambda texts: not any(map(begins_with_marker, texts)) and not is_repeated(*texts)))
@pytest.mark.parametrize("names", PAIRS)
def test_a_pair_comes_back_from_every_spelling_and_swapping_the_label_swaps_the_sides(
    names: tuple[str, str], texts: list[str]
) -> None:
    prompt, first, second = texts
    row = {"prompt": prompt, names[0]: first, names[1]: second}
    [one] = parse_row(json.dumps(row | {"winner": "A>B"}))
    [other] = parse_row(json.dumps(row | {"winner": "A<B"}))
    assert [m.content for m in (*one.prompt, *one.chosen, *one.rejected)] == [prompt, first, second]
    assert (other.chosen, other.rejected) == (one.rejected, one.chosen)


@pytest.mark.parametrize("label", ["A", "a", "[[A]]", "A>B", "A >> B", "b<a", "model_a", "response_a", "Response A"])
def test_labels_for_the_first_response(label: str) -> None:
    assert winner(label) == "one"


@pytest.mark.parametrize("label", ["B", "model_b", "model-b", "A<B", "B>A", "second", "answer b"])
def test_labels_for_the_second_response(label: str) -> None:
    assert winner(label) == "two"


@pytest.mark.parametrize(
    ("label", "names", "expected"),
    [
        (1, ("output_1", "output_2"), "one"),
        ("2", ("output_1", "output_2"), "two"),
        (2.0, ("response 1", "response 2"), "two"),
        ("output_2", ("output_1", "output_2"), "two"),
        ("model_1", ("response1", "response2"), "one"),
        ("2>1", ("response1", "response2"), "two"),
        (0, ("response_0", "response_1"), "one"),
        (1, ("response_0", "response_1"), "two"),
    ],
)
def test_a_number_that_names_a_field_is_a_label(label: object, names: tuple[str, str], expected: str) -> None:
    assert winner(label, names) == expected


@pytest.mark.parametrize(
    "label",
    [
        *("tie", "tie (bothbad)", "both_bad", "A=B", "[[A=B]]", {"overall_preference": 0}, "Both responses are bad"),
        *("They are about the same", "about equal", "No clear winner", "Neither is good"),
    ],
)
def test_a_tie_is_a_reject(label: object) -> None:
    assert reason_for(label) == Reason.TIE


@pytest.mark.parametrize(
    ("label", "names"),
    [
        (0, ("output_1", "output_2")),
        (0, ("response_a", "response_b")),
        (1, ("response_a", "response_b")),
        ("2", ("response_a", "response_b")),
        (2, ("response_0", "response_1")),
        (True, ("response_a", "response_b")),
    ],
)
def test_a_label_that_may_mean_either_response_names_the_setting_that_says_which(
    label: object, names: tuple[str, str]
) -> None:
    with pytest.raises(PreferenceError, match="define these values in the setting labels") as error:
        compare(label, names)
    assert error.value.reason == Reason.AMBIGUOUS_LABEL


INDEX: dict[str, Any] = {"0": "first", "1": "second", "2": "tie", "left": "first"}
NUMBERED = ("output_1", "output_2")


def test_the_setting_says_what_labels_mean() -> None:
    index = ParsingRules(labels=INDEX)
    boolean = ParsingRules(labels={"0": "second", "1": "first", "true": "first"})
    labels = (0, "1", 1.0, "1.0", " LEFT ")
    assert [winner(label, PAIRS[0], index) for label in labels] == ["one", "two", "two", "two", "one"]
    assert [winner(label, PAIRS[0], boolean) for label in (0, 1, True)] == ["two", "one", "one"]
    assert reason_for(2, PAIRS[0], index) == Reason.TIE
    assert winner("response_b", PAIRS[0], index) == "two"
    assert reason_for(2, PAIRS[0], boolean) == Reason.AMBIGUOUS_LABEL


def test_a_number_that_names_a_field_keeps_its_meaning_unless_its_own_column_or_file_has_labels() -> None:
    index, of_file = ParsingRules(labels=INDEX), ParsingRules(labels=INDEX, labels_are_own=True)
    of_column, of_another = ({column: INDEX} for column in ("label", "winner"))
    assert [winner(label, NUMBERED, index) for label in (1, "2")] == ["one", "two"]
    assert winner(0, NUMBERED, index) == "one"
    for own in (of_file, ParsingRules(column_labels=of_column)):
        assert [winner(label, NUMBERED, own) for label in (0, "1")] == ["one", "two"]
        assert reason_for(2, NUMBERED, own) == Reason.TIE
    assert winner(2, NUMBERED, ParsingRules(column_labels=of_another)) == "two"


def test_labels_reach_other_columns_only_where_no_own_column_of_the_label_is_named() -> None:
    rules = ParsingRules(columns={"label": "judge"}, labels=INDEX)
    assert winner({"judge": 1}, PAIRS[0], rules) == "two"
    assert reason_for({"winner": 1}, PAIRS[0], rules) == Reason.AMBIGUOUS_LABEL
    assert winner({"judge": 1}, NUMBERED, ParsingRules(columns={"label": "judge"}, column_labels={"judge": INDEX})) == (
        "two"
    )


def reason_for(label: Any, names: tuple[str, str] = PAIRS[0], rules: ParsingRules | None = None) -> Reason:
    with pytest.raises(PreferenceError) as error:
        compare(label, names, rules)
    return error.value.reason


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ({}, Reason.MISSING_FIELD),
        ("a novel word", Reason.WRONG_TYPE),
        (-1, Reason.AMBIGUOUS_LABEL),
        ("-1", Reason.AMBIGUOUS_LABEL),
        (17, Reason.AMBIGUOUS_LABEL),
        (1.5, Reason.WRONG_TYPE),
        (["A"], Reason.WRONG_TYPE),
        ("A>A", Reason.WRONG_TYPE),
        ({"label": "A", "winner": "B"}, Reason.AMBIGUOUS_FIELD),
        ({"label": "B", "preference_strength": -2}, Reason.AMBIGUOUS_FIELD),
        ({"label": "A", "output_1": "three", "output_2": "four"}, Reason.AMBIGUOUS_FIELD),
        ({"chosen": "response_a", "rejected": "response_b"}, Reason.AMBIGUOUS_FIELD),
    ],
)
def test_what_is_no_verdict_has_a_reason(label: object, reason: Reason) -> None:
    assert reason_for(label) == reason


def test_a_signed_strength_is_verdict_and_margin() -> None:
    first, second = compare({"preference_strength": -3}), compare({"overall_preference": 1, "winner": "B"})
    assert (first.chosen[0].content, first.margin) == ("one", 3.0)
    assert (second.chosen[0].content, second.margin) == ("two", 1.0)


def test_helpsteer3_rows_have_their_conversation_as_context() -> None:
    context = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    row = {"context": context, "response1": "one", "response2": "two", "overall_preference": -2, "domain": "code"}
    [read] = parse_row(json.dumps(row | {"individual_preference": [{"score": -2, "reasoning": "r"}]}))
    assert [m.role for m in read.prompt] == ["user", "assistant", "user"]
    assert (read.chosen[0].content, read.margin) == ("one", 2.0)


def test_arena_rows_compare_whole_conversations() -> None:
    sides = {
        f"conversation_{side}": [{"role": "user", "content": "q"}, {"role": "assistant", "content": side}]
        for side in "ab"
    }
    [read] = parse_row(json.dumps({"model_a": "x", "model_b": "y", "winner": "model_b"} | sides))
    assert [m.content for m in (*read.prompt, *read.chosen, *read.rejected)] == ["q", "b", "a"]


def test_chosen_and_rejected_go_before_the_responses_they_repeat() -> None:
    row = {"prompt": "q", "response_a": "one", "response_b": "two", "chosen": "two", "rejected": "one"}
    [read] = parse_row(json.dumps(row))
    assert (read.format, read.chosen[0].content) == (Format.PLAIN, "two")


@pytest.mark.parametrize(
    "row", [{"response_a": "one", "response_b": "two", "label": "A"}, {"chosen": ["one"], "rejected": ["two"]}]
)
def test_scores_of_both_sides_must_agree_with_a_label_and_give_the_margin(row: dict[str, Any]) -> None:
    def read(chosen: float, rejected: float) -> float:
        [pair] = parse_row(json.dumps({"prompt": "q", "score_chosen": chosen, "score_rejected": rejected} | row))
        assert pair.chosen[0].content == "one"
        return pair.margin

    assert read(9, 1.5) == 7.5
    with pytest.raises(PreferenceError, match="`score_chosen` is below `score_rejected`"):
        read(1, 9)
    with pytest.raises(PreferenceError, match="are equal"):
        read(1, 1)


def test_a_strength_is_the_margin_before_the_difference_of_scores() -> None:
    assert compare({"preference_strength": -2, "score_chosen": 9, "score_rejected": 1}).margin == 2


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ({"chosen": "winner", "rejected": "loser"}, {"winner": "A", "chosen": "one", "rejected": "two"}),
        ({"chosen": "winner", "rejected": "loser"}, {"loser": "A", "chosen": "one"}),
        (
            {"response_a": "left", "response_b": "right"},
            {"left": "A", "response_a": "one", "response_b": "two", "label": "A"},
        ),
    ],
)
def test_a_side_of_own_columns_never_meets_the_other_side_of_a_row_without_them(
    columns: Any, row: dict[str, Any]
) -> None:
    with pytest.raises(PreferenceError, match="the row has the column for") as error:
        parse_row(json.dumps({"prompt": "q"} | row), ParsingRules(columns=columns))
    assert error.value.reason == Reason.AMBIGUOUS_FIELD


def test_sides_that_are_the_two_responses_must_agree_with_a_label_beside_them() -> None:
    def chosen(**more: object) -> str | None:
        row = {"prompt": "q", "response_a": "one", "response_b": "two", "chosen": "two", "rejected": "one"}
        return parse_row(json.dumps(row | more))[0].chosen[0].content

    for agreeing in ({"label": "B"}, {"winner": "model_b"}, {"label": 1}, {"label": "helpful"}, {}, {"label": None}):
        assert chosen(**agreeing) == "two"
    for agreeing in ({"preference_strength": -2}, {"preference_strength": 2}, {"overall_preference": 7}):
        assert chosen(**agreeing) == "two"
    for other in ({"label": "A"}, {"winner": "model_a"}, {"verdict": "B<A"}):
        with pytest.raises(PreferenceError, match="ambiguous_field: `chosen` and the label"):
            chosen(**other)


@pytest.mark.parametrize(
    ("first", "second"),
    [("text_x", "text_y"), ("response_2", "response_1"), ("answer_b", "answer_a"), ("response_b", "response_a")],
)
def test_a_label_that_names_an_own_column_means_that_column(first: str, second: str) -> None:
    rules = ParsingRules(columns={"response_a": first, "response_b": second})
    for label, other in ((first, second), (second, first)):
        row = {"prompt": "Which?", first: f"That of {first}.", second: f"That of {second}.", "label": label}
        [read] = parse_row(json.dumps(row), rules)
        assert (read.chosen[0].content, read.rejected[0].content) == (f"That of {label}.", f"That of {other}.")


@pytest.mark.parametrize("pair", sorted(RESPONSES))
def test_a_third_response_is_a_reject_and_own_columns_choose_two(pair: tuple[str, str]) -> None:
    first, second = pair
    suffixes = RESPONSES[pair]
    third = {"a": "c", "A": "C", "1": "3", "0": "2"}[suffixes[0]]
    name = first[: first.rindex(suffixes[0])] + third + first[first.rindex(suffixes[0]) + 1 :]
    row = {"prompt": "2+2?", first: "4.", second: "5.", name: "6.", "label": "first"}
    with pytest.raises(PreferenceError, match="more than two responses; name response_a"):
        read(row)
    assert chosen(row | {name: None}) == "4."
    assert chosen(row, columns={"response_a": first, "response_b": name}) == "4."


@pytest.mark.parametrize("label", ["Ａ", "ａ", "\u200bA", "A\ufeff", "\u00a0A\u3000", "response\u00a0Ａ", "１"])
def test_full_width_letters_and_invisible_characters_do_not_hide_a_label(label: str) -> None:
    assert chosen({"prompt": "2+2?", "response_1": "4.", "response_2": "5.", "label": label}) == "4."
