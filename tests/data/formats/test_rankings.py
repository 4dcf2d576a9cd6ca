"""Rankings: every pair of different rank, no more than asked for, whatever the order of the responses."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsed_rows import parse_row, reason_for
from support import pair_id

from rm_assets.data.formats.parsing import parse_line
from rm_assets.data.formats.preferences import Format, ParsingRules, PreferenceError
from rm_assets.data.tables.reasons import Reason

ALL = ParsingRules(max_pairs_per_prompt=1000)


def pairs(row: dict[str, Any], rules: ParsingRules = ALL) -> set[tuple[Any, Any, float]]:
    return {(p.chosen[0].content, p.rejected[0].content, p.margin) for p in parse_row(json.dumps(row), rules)}


SCORED = [{"text": "a", "score": 3}, {"response": "b", "score": 1.5}, {"content": "c", "score": 1.5}]


def test_scores_give_all_pairs_but_ties_and_their_differences_are_margins() -> None:
    row = {"prompt": "q", "responses": SCORED}
    assert pairs(row) == {("a", "b", 1.5), ("a", "c", 1.5)}
    stated = parse_line(json.dumps(row), ALL)
    assert (stated.num_tied, stated.num_not_taken) == (1, 0)


def test_the_lowest_rank_is_the_best_and_ranks_give_no_margin() -> None:
    ranked = [{"rank": 1, "completion": "b"}, {"rank": 0, "completion": [{"role": "assistant", "content": "a"}]}]
    row = {"context": [{"role": "user", "content": "q"}], "completions": ranked}
    assert pairs(row) == {("a", "b", 0.0)}
    nectar = {
        "prompt": "\n\nHuman: q\n\nAssistant: ",
        "answers": [{"answer": "b", "rank": 2.0}, {"answer": "a", "rank": 1.0}],
    }
    assert pairs(nectar) == {("a", "b", 0.0)}


def test_parallel_lists_and_reply_lists() -> None:
    assert pairs({"prompt": "q", "responses": ["b", "a"], "scores": [1, 4]}) == {("a", "b", 3.0)}
    assert pairs({"prompt": "q", "completions": ["b", "a"], "ranks": [2, 1]}) == {("a", "b", 0.0)}
    lists = {"prompt": "q", "chosen": ["a", "b"], "rejected": ["c"]}
    assert pairs(lists) == {("a", "c", 0.0), ("b", "c", 0.0)}
    assert pairs({"prompt": "q", "chosen": "a", "rejected": ["b", "c"]}) == {("a", "b", 0.0), ("a", "c", 0.0)}


TEXTS = st.lists(st.text(min_size=1, max_size=4).filter(str.strip), min_size=2, max_size=7, unique=True)


@given(texts=TEXTS, data=st.data())
def test_a_ranking_states_the_pairs_that_its_scores_order(texts: list[str], data: st.DataObject) -> None:
    scores = data.draw(
        st.lists(st.integers(0, 3), min_size=len(texts), max_size=len(texts)).filter(lambda s: set(s) != {s[0]})
    )
    scored = list(zip(texts, scores, strict=True))
    expected = {(a, b, float(i - j)) for a, i in scored for b, j in scored if i > j}
    as_items = {"prompt": "q", "responses": [{"response": text, "score": score} for text, score in scored]}
    as_lists = {"prompt": "q", "responses": texts, "scores": scores}
    assert pairs(as_items) == pairs(as_lists) == expected
    swapped = pairs(as_lists | {"scores": [-score for score in scores]})
    assert swapped == {(worse, better, margin) for better, worse, margin in expected}
    plain = {pair_id(parse_row(json.dumps({"prompt": "q", "chosen": a, "rejected": b}))[0]) for a, b, _ in expected}
    assert {pair_id(p) for p in parse_row(json.dumps(as_items), ALL)} == plain


def test_the_pairs_taken_do_not_depend_on_the_order_of_the_responses_and_the_others_are_counted() -> None:
    items = [{"text": str(number), "score": number} for number in range(8)]
    rules = ParsingRules(max_pairs_per_prompt=5)
    one, other = ({"prompt": "q", "responses": list(order)} for order in (items, reversed(items)))
    assert pairs(one, rules) == pairs(other, rules)
    assert len(pairs(one, rules)) == 5
    assert parse_line(json.dumps(one), rules).num_not_taken == 8 * 7 // 2 - 5
    assert len(parse_row(json.dumps(one))) == 10


def test_a_ranking_whose_pairs_would_repeat_a_long_prompt_too_often_is_a_reject() -> None:
    """24 responses are 276 pairs, which hold the prompt each; by default 10 of them are taken."""
    row = {"prompt": "q" * 250_000, "responses": [{"text": f"{n:02}", "rank": n} for n in range(24)]}
    with pytest.raises(PreferenceError, match=r"too_many_responses: 276 pairs of 69\d{6} characters, more than"):
        parse_row(json.dumps(row), ALL)
    assert len(parse_row(json.dumps(row | {"prompt": "q" * 230_000}), ALL)) == 276
    assert len(parse_row(json.dumps(row))) == 10
    with pytest.raises(
        PreferenceError, match=r"too_many_responses: 10 pairs of 70\d{6} characters, more than 67108864"
    ):
        parse_row(json.dumps(row | {"prompt": "q" * 7_000_000}))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"responses": []}, Reason.TIE),
        ({"responses": SCORED[:1]}, Reason.TIE),
        ({"responses": SCORED[1:]}, Reason.TIE),
        ({"responses": [*SCORED[:1], {"text": "d"}, {"text": "e", "score": None}]}, Reason.MISSING_FIELD),
        ({"responses": [*SCORED[:2], {"text": "d", "rank": 1}]}, Reason.MISSING_FIELD),
        ({"responses": ["a", "b"]}, Reason.MISSING_FIELD),
        ({"responses": [{"score": 1}, {"score": 2}]}, Reason.MISSING_FIELD),
        ({"responses": ["a", "b", "c"], "ranks": [2, 1, -1]}, Reason.AMBIGUOUS_LABEL),
        ({"responses": [{"text": "a", "rank": 0}, {"text": "b", "rank": -1}]}, Reason.AMBIGUOUS_LABEL),
        ({"responses": ["a", "b"], "scores": [1]}, Reason.WRONG_TYPE),
        ({"responses": ["a", "b"], "scores": [1, "two"]}, Reason.WRONG_TYPE),
        ({"responses": [*SCORED, {"text": "a", "score": 1}]}, Reason.IDENTICAL_REPLIES),
        ({"responses": [*SCORED[:1], {"text": " ", "score": 1}]}, Reason.EMPTY_REPLY),
        ({"responses": [None, "b"], "scores": [1, 2]}, Reason.EMPTY_REPLY),
        ({"responses": [*SCORED, {"text": "d", "answer": "e", "score": 1}]}, Reason.AMBIGUOUS_FIELD),
        ({"responses": [*SCORED, {"text": "d", "rating": 2, "score": 1}]}, Reason.AMBIGUOUS_FIELD),
        ({"responses": ["a", "b"], "scores": [1, 2], "ranks": [1, 2]}, Reason.SCORES_DISAGREE),
        ({"responses": ["a", "b", "c"], "scores": [1, 2, 0], "ranks": [1, 2, None]}, Reason.SCORES_DISAGREE),
        ({"responses": ["a", "b", "c"], "scores": [1, 2, None], "ranks": [1, 2, 3]}, Reason.SCORES_DISAGREE),
        ({"responses": ["a"] * 257, "scores": [1] * 257}, Reason.TOO_MANY_RESPONSES),
        ({"chosen": ["a"], "rejected": []}, Reason.EMPTY_REPLY),
        ({"chosen": [" ", None], "rejected": ["b", "c"]}, Reason.EMPTY_REPLY),
        ({"chosen": ["a"], "rejected": ["b", "a"]}, Reason.IDENTICAL_REPLIES),
    ],
)
def test_a_ranking_that_is_not_sound_is_a_reject_whole(row: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(PreferenceError) as error:
        parse_row(json.dumps({"prompt": "q"} | row))
    assert error.value.reason == reason


PARTIAL = {
    "a rank that is null": {"responses": [*SCORED[:2], {"text": "c", "score": None}]},
    "no rank": {"responses": [{"text": "c"}, *SCORED[:2]]},
    "an empty reply": {"responses": [SCORED[0], {"text": " \n", "score": 9}, SCORED[1]]},
    "a reply that is null": {"responses": [*SCORED[:2], {"text": None, "score": 0}]},
    "no reply": {"responses": [*SCORED[:2], {"score": 0}]},
    "an empty message": {"responses": [*SCORED[:2], {"text": [{"role": "assistant", "content": ""}], "score": 0}]},
    "empty parts": {
        "responses": [
            *SCORED[:2],
            {"text": {"role": "assistant", "content": [{"type": "text", "text": " "}]}, "score": 0},
        ]
    },
    "a score that is null": {"responses": ["a", "c", "b"], "scores": [3, None, 1.5]},
    "an empty text": {"responses": ["", "a", "b"], "scores": [9, 3, 1.5]},
    "a text that is null": {"responses": [None, "a", "b"], "scores": [9, 3, 1.5]},
    "scores and ranks": {"responses": ["a", "b", "c"], "scores": [3, 1.5, None], "ranks": [1, 2, None]},
}


@pytest.mark.parametrize("name", PARTIAL)
def test_a_response_that_is_empty_or_unranked_is_left_out_and_counted(name: str) -> None:
    row = {"prompt": "q"} | PARTIAL[name]
    assert pairs(row) == {("a", "b", 1.5)}
    stated = parse_line(json.dumps(row), ALL)
    assert (stated.num_tied, stated.num_not_taken, stated.num_left_out) == (0, 0, 1)


def test_empty_replies_of_a_side_are_left_out() -> None:
    row = {"prompt": "q", "chosen": [None, "a", ""], "rejected": ["b", " "]}
    assert pairs(row) == {("a", "b", 0.0)}
    assert parse_line(json.dumps(row), ALL).num_left_out == 3


def test_nothing_is_left_out_of_a_whole_ranking_and_its_ties_are_counted_alone() -> None:
    stated = parse_line(
        json.dumps({"prompt": "q", "responses": [*SCORED, {"text": "d"}, {"text": "", "score": 1}]}), ALL
    )
    assert (len(stated.preferences), stated.num_tied, stated.num_left_out) == (2, 1, 2)
    assert parse_line(json.dumps({"prompt": "q", "responses": SCORED}), ALL).num_left_out == 0


def test_what_is_left_out_does_not_count_towards_the_size_of_the_pairs() -> None:
    """24 responses are 276 pairs, which would hold 83 million characters if each held what was left out."""
    row = {"prompt": "q", "responses": [{"text": f"{n:02}", "rank": n} for n in range(24)] + [{"text": "d" * 300_000}]}
    assert len(pairs(row)) == 276


@pytest.mark.parametrize(
    ("responses", "detail"),
    [
        ([{"text": "a", "score": 1}, {"text": "b"}, {"text": "c"}], "2 of 3 responses have neither a score nor a rank"),
        ([{"text": "a", "score": 1}, {"text": ""}, {"score": 2}], "2 of 3 responses are empty"),
        ([{"reply": "a", "score": 1}, {"reply": "b", "score": 2}], "a response needs `response`, `completion`"),
        ([{"text": "a", "score": 1}, {"text": "b", "rank": 2}], "some responses have only a score, and others only a"),
    ],
)
def test_a_ranking_of_which_too_little_is_left_says_why(responses: list[Any], detail: str) -> None:
    with pytest.raises(PreferenceError) as error:
        parse_row(json.dumps({"prompt": "q", "responses": responses}))
    assert error.value.detail.startswith(detail)


def test_scores_and_ranks_may_both_be_given() -> None:
    row = {"prompt": "q", "responses": ["a", "b"], "scores": [2, 1], "ranks": [1, 2]}
    [read] = parse_row(json.dumps(row))
    assert (read.format, read.margin) == (Format.SCORED_LISTS, 1.0)


EQUAL = {"prompt": "q", "chosen": ["a", "b", "c"], "rejected": ["x", "a", "y"]}


def test_a_chosen_reply_that_is_also_rejected_ties_in_an_evaluation_set_alone() -> None:
    stated = parse_line(json.dumps(EQUAL), ParsingRules(is_evaluation=True))
    found = {(p.chosen[0].content, p.rejected[0].content) for p in stated.preferences}
    assert found == {(good, bad) for good in "abc" for bad in "xay"} - {("a", "a")}
    assert stated.equal_cells == ((0, 1),)
    with pytest.raises(PreferenceError, match="listed twice") as error:
        parse_row(json.dumps(EQUAL))
    assert error.value.reason == Reason.IDENTICAL_REPLIES


@pytest.mark.parametrize(
    ("sides", "reason"),
    [
        ({"chosen": ["a"], "rejected": ["a"]}, Reason.IDENTICAL_REPLIES),
        ({"chosen": ["a"], "rejected": ["x", "a", "y"]}, Reason.IDENTICAL_REPLIES),
        ({"chosen": ["a", "b"], "rejected": ["x", "a", "y"]}, Reason.IDENTICAL_REPLIES),
        ({"chosen": ["a", "b", ""], "rejected": ["x", "a", "y"]}, Reason.IDENTICAL_REPLIES),
        ({"chosen": ["a", "a"], "rejected": ["a", "a"]}, Reason.TIE),
    ],
)
def test_what_no_rule_of_a_benchmark_counts_is_a_reject_in_an_evaluation_set_too(
    sides: dict[str, list[str]], reason: Reason
) -> None:
    assert reason_for({"prompt": "q", **sides}, is_evaluation=True) == reason


def test_a_line_without_equal_replies_is_read_alike_in_an_evaluation_set() -> None:
    row = json.dumps(EQUAL | {"rejected": ["x", "z", "y"]})
    assert parse_line(row, ParsingRules(is_evaluation=True)) == parse_line(row, ParsingRules())
