"""Public sets and other trainers' rows: read as their cards and code say, whatever else stands in the row."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parsed_rows import parse_row, read, reason_for
from support import begins_with_marker

from rm_assets.data.formats import chosen_rejected, parsing
from rm_assets.data.formats.exports import public_sets
from rm_assets.data.formats.exports.public_sets import FIELDS, MARKS, PUBLIC_SETS
from rm_assets.data.formats.preferences import Format, ParsingRules, Preference, PreferenceError
from rm_assets.data.tables.reasons import Reason

USER, REPLY = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4."}
AGAIN = [{"role": "user", "content": "2+1?"}, {"role": "assistant", "content": "3."}]


def texts_of(preference: Preference) -> tuple[Any, Any, Any, float]:
    sides = (preference.prompt, preference.chosen, preference.rejected)
    prompt, chosen, rejected = ([message.content for message in side] for side in sides)
    return prompt, chosen, rejected, preference.margin


# --- a row of each, from the better and the worse answer, which may stand on either side -----------------------


def as_webgpt(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    scores = [0.5, -0.5] if better == 0 else [-0.25, 0.25]
    question = {"dataset": "eli5", "id": "x", "full_text": prompt}
    extra = {"quotes_0": {"title": [], "extract": []}, "tokens_0": {"prefix": [1], "completion": [2]}}
    named = {"answer_0": sides[0], "answer_1": sides[1], "score_0": scores[0], "score_1": scores[1]}
    return {"question": question} | named | extra


def as_shp(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    extra = {"post_id": "p", "domain": "askculinary_train", "score_ratio": 9.0}
    extra |= {"score_A": [9, 1][better], "score_B": [1, 9][better]}
    named = {"history": prompt, "human_ref_A": sides[0], "human_ref_B": sides[1], "labels": 1 - better}
    return extra | named


def as_summaries(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    info = {"id": "t3", "post": prompt, "title": "A title", "subreddit": "s", "site": None, "article": None}
    summaries = [{"text": text, "policy": "sup", "note": ""} for text in sides]
    return {"info": info, "summaries": summaries, "choice": better, "worker": "w", "split": "train", "extra": {}}


def as_alpaca_eval(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    outputs = {"output_1": sides[0], "generator_1": "m", "output_2": sides[1], "generator_2": "n"}
    return {"instruction": prompt, "annotator": "w", "preference": [1.03, 1.97][better]} | outputs


def as_one_hot(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    winners = {"winner_model_a": 1 - better, "winner_model_b": better, "winner_tie": 0}
    texts = {"prompt": [prompt], "response_a": [sides[0]], "response_b": [sides[1]]}
    return {"model_a": "m", "model_b": "n"} | {name: json.dumps(turns) for name, turns in texts.items()} | winners


def as_output_pair(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    return {"instruction": prompt, "input": "", "output": sides if better == 0 else sides[::-1]}


def as_rejected_response(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    return {"query": prompt, "response": sides[better], "rejected_response": sides[1 - better]}


def as_swift_messages(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": sides[better]}]
    return {"messages": messages, "rejected_response": sides[1 - better]}


def as_rejected_messages(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    user = {"role": "user", "content": prompt}
    chosen, rejected = ([user, {"role": "assistant", "content": sides[i]}] for i in (better, 1 - better))
    return {"messages": chosen, "rejected_messages": rejected}


def as_stack_exchange(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    return {"qid": 1, "question": prompt, "response_j": sides[better], "response_k": sides[1 - better]}


def as_stack_exchange_answers(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    answers = [
        {"answer_id": i, "author": "a", "pm_score": 4 if i == better else -1, "selected": i != better, "text": text}
        for i, text in enumerate(sides)
    ]
    return {"qid": 1, "question": prompt, "answers": answers, "date": "2020/01/01", "metadata": ["x"]}


def as_cvalues(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    types = {"pos_type": "拒绝&正向建议", "neg_type": "风险回复"}
    return {"prompt": prompt, "pos_resp": sides[better], "neg_resp": sides[1 - better]} | types


def as_messages_and_two_responses(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": prompt}]}
    return asked | {"chosen_response": sides[better], "rejected_response": sides[1 - better]}


def as_chosen_response(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    return {"prompt": prompt, "chosen_response": sides[better], "rejected_response": sides[1 - better]}


def as_response_chosen(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    return {"question": prompt, "response_chosen": sides[better], "response_rejected": sides[1 - better]}


def as_ultrafeedback(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    system = {"custom_system_prompt": "Be kind.", "annotations": {"honesty": {"Rating": "1"}}}
    completions = [
        system | {"response": text, "overall_score": 8.5 if i == better else 3.0, "fine-grained_score": 9 - i}
        for i, text in enumerate(sides)
    ]
    return {"source": "sharegpt", "instruction": prompt, "completions": completions, "correct_answers": ["None"]}


def as_ultrasafety(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    row = as_ultrafeedback(prompt, sides, better)
    return {"prompt": row.pop("instruction")} | row


def as_ultrainteract(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    asked = {"task": "Coding", "dataset": "d", "trajectory": [{"from": "user", "value": prompt}], "id": "1"}
    return asked | {"chosen": sides[better], "rejected": sides[1 - better], "parent_id": "0"}


def as_search_arena(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    messages = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": text}] for text in sides]
    row = {"model_a": "m", "model_b": "n", "winner": ["model_a", "model_b"][better], "turn": 1}
    return row | {"messages_a": messages[0], "messages_b": messages[1], "system_a_metadata": {"web_search": "x"}}


def as_distilabel(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    ratings = [5.0, 1.0] if better == 0 else [1.0, 5.0]
    return {"input": prompt, "generations": sides, "ratings": ratings, "rationales": ["x", "y"]}


def as_distilabel_0(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    row = as_distilabel(prompt, sides, better)
    return {name: row[name] for name in ("input", "generations")} | {"rating": row["ratings"], "rationale": ["x", "y"]}


def as_judgebench(prompt: str, sides: list[str], better: int) -> dict[str, Any]:
    named = {"question": prompt, "response_A": sides[0], "response_B": sides[1], "label": ["A>B", "B>A"][better]}
    return {"pair_id": "p", "original_id": "7", "source": "mmlu-pro-law", "response_model": "m"} | named


WRITTEN = [
    (as_webgpt, (1.0, 0.5)),
    (as_shp, (0, 0)),
    (as_summaries, (0, 0)),
    (as_alpaca_eval, (0, 0)),
    (as_one_hot, (0, 0)),
    (as_output_pair, (0, 0)),
    (as_rejected_response, (0, 0)),
    (as_swift_messages, (0, 0)),
    (as_rejected_messages, (0, 0)),
    (as_stack_exchange, (0, 0)),
    (as_stack_exchange_answers, (5.0, 5.0)),
    (as_cvalues, (0, 0)),
    (as_messages_and_two_responses, (0, 0)),
    (as_chosen_response, (0, 0)),
    (as_response_chosen, (0, 0)),
    (as_ultrafeedback, (5.5, 5.5)),
    (as_ultrasafety, (5.5, 5.5)),
    (as_ultrainteract, (0, 0)),
    (as_search_arena, (0, 0)),
    (as_distilabel, (4.0, 4.0)),
    (as_distilabel_0, (4.0, 4.0)),
    (as_judgebench, (0, 0)),
]
NULLS = ["margin", "subset", "system", "label", "winner", "tools", "source", "labels", "history", "chosen", "rejected"]
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)
TEXTS = st.lists(TEXT.filter(lambda text: not begins_with_marker(text)), min_size=3, max_size=3, unique=True)


@pytest.mark.parametrize(("written", "margins"), WRITTEN)
@settings(max_examples=30)
@given(texts=TEXTS, data=st.data())
def test_swapping_the_verdict_swaps_the_sides_and_neither_nulls_nor_the_order_of_fields_matter(
    written: Any, margins: tuple[float, float], texts: list[str], data: st.DataObject
) -> None:
    prompt, *sides = texts
    nulls = data.draw(st.lists(st.sampled_from(NULLS), unique=True))
    for better in (0, 1):
        row = written(prompt, sides, better)
        row = {**dict.fromkeys(nulls), **row}
        row = {name: row[name] for name in data.draw(st.permutations(sorted(row)))}
        [pair] = read(row)
        assert texts_of(pair) == ([prompt], [sides[better]], [sides[1 - better]], margins[better])


def test_equal_verdicts_are_ties() -> None:
    sides = ["one", "two"]
    ties = [
        as_webgpt("q", sides, 0) | {"score_0": 0.0, "score_1": 0.0},
        as_alpaca_eval("q", sides, 0) | {"preference": 1.5},
        as_alpaca_eval("q", sides, 0) | {"preference": 0},
        as_one_hot("q", sides, 0) | {"winner_model_a": 0, "winner_tie": 1},
        as_distilabel("q", sides, 0) | {"ratings": [3, 3]},
    ]
    assert [reason_for(row) for row in ties] == [Reason.TIE] * len(ties)


def test_a_row_whose_verdict_alone_is_null_is_not_labelled() -> None:
    nobody = dict.fromkeys(("winner_model_a", "winner_model_b", "winner_tie"))
    rows = [
        as_webgpt("q", ["one", "two"], 0) | {"score_0": None, "score_1": None},
        as_shp("q", ["one", "two"], 0) | {"labels": None},
        as_summaries("q", ["one", "two"], 0) | {"choice": None},
        as_one_hot("q", ["one", "two"], 0) | nobody,
    ]
    assert [reason_for(row) for row in rows] == [Reason.UNLABELLED] * len(rows)
    # as a file of several sets has them
    everything = {field: None for public_set in PUBLIC_SETS for field in public_set.fields}
    assert len(read(everything | {"prompt": "q", "chosen": "one", "rejected": "two"})) == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (as_webgpt("q", ["one", "two"], 0) | {"score_0": "high"}, Reason.WRONG_TYPE),
        (as_webgpt("q", ["one", "two"], 0) | {"question": {"dataset": "eli5"}}, Reason.MISSING_FIELD),
        (as_shp("q", ["one", "two"], 0) | {"labels": 2}, Reason.WRONG_TYPE),
        (as_shp("q", ["one", "two"], 0) | {"winner": "B"}, Reason.AMBIGUOUS_FIELD),
        (as_shp("q", ["one", "two"], 0) | {"labels": 0}, Reason.SCORES_DISAGREE),
        (as_shp("q", ["one", "two"], 1) | {"labels": True, "score_A": "1", "score_B": "9"}, Reason.SCORES_DISAGREE),
        (as_summaries("q", ["one", "two"], 0) | {"choice": 2}, Reason.WRONG_TYPE),
        (as_summaries("q", ["one", "two"], 0) | {"summaries": [{"text": "one"}]}, Reason.WRONG_TYPE),
        (as_one_hot("q", ["one", "two"], 0) | {"winner_model_b": 1}, Reason.AMBIGUOUS_FIELD),
        (as_one_hot("q", ["one", "two"], 0) | {"winner_model_a": 0}, Reason.AMBIGUOUS_FIELD),
        (as_one_hot("q", ["one", "two"], 0) | {"winner_model_a": 0.5}, Reason.WRONG_TYPE),
        (as_one_hot("q", ["one", "two"], 0) | {"response_a": '["one", "more"]'}, Reason.WRONG_TYPE),
        (as_one_hot("q", ["one", "two"], 0) | {"response_a": "one"}, Reason.WRONG_TYPE),
        (as_one_hot("q", ["one", "two"], 0) | {"prompt": '["\\ud83d"]'}, Reason.WRONG_TYPE),
        (as_one_hot("q", ["one", "two"], 0) | {"response_a": "[null]"}, Reason.EMPTY_REPLY),
        (as_one_hot("q", ["one", "two"], 0) | {"prompt": "[null]"}, Reason.EMPTY_MESSAGE),
        ({"messages": [USER], "rejected_response": "5."}, Reason.MISSING_FIELD),
        ({"prompt": "2+2?", "rejected_response": "5."}, Reason.MISSING_FIELD),
        # whole numbers beside outputs are AlpacaEval's only where its other fields stand there, too
        ({"instruction": "q", "output_1": "one", "output_2": "two", "preference": 0}, Reason.AMBIGUOUS_LABEL),
        ({"instruction": "q", "output_1": "one", "output_2": "two", "preference": 0.3}, Reason.WRONG_TYPE),
    ],
)
def test_what_their_cards_do_not_say_is_a_reject(row: dict[str, Any], reason: Reason) -> None:
    assert reason_for(row) == reason


@pytest.mark.parametrize(
    "row",
    [
        as_webgpt("q", ["one", "two"], 0) | {"score_0": "-0.5", "score_1": "0.5", "question": "q"},
        as_shp("q", ["one", "two"], 1) | {"labels": "0", "score_A": "1", "score_B": "9"},
        as_one_hot("q", ["one", "two"], 0) | {"winner_model_a": "0", "winner_model_b": "1.0", "winner_tie": "0"},
        as_one_hot("q", ["one", "two"], 0) | {"winner_model_a": "False", "winner_model_b": "True", "winner_tie": False},
        as_alpaca_eval("q", ["one", "two"], 0) | {"preference": "1.97"},
    ],
)
def test_numbers_of_a_csv_file_are_texts(row: dict[str, Any]) -> None:
    assert texts_of(read(row)[0])[:3] == (["q"], ["two"], ["one"])


def test_arena_conversations_of_several_turns_part_at_the_first_reply() -> None:
    turns = {"prompt": '["q1", "q2"]', "response_a": '["a1", "a2"]', "response_b": '["b1", "b2"]'}
    [pair] = read(turns | {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0})
    assert texts_of(pair)[:3] == (["q1"], ["b1", "q2", "b2"], ["a1", "q2", "a2"])


@pytest.mark.parametrize(
    "winners",
    [
        {"winner_a": 0, "winner_b": 1},
        {"winner_1": False, "winner_2": True},
        {"winner_model_1": 0.0, "winner_model_2": 1.0},
    ],
)
def test_other_one_hot_columns_are_read_beside_plain_texts(winners: dict[str, Any]) -> None:
    [pair] = read({"prompt": "[1] or [2]?", "response_a": "one", "response_b": "two"} | winners)
    assert texts_of(pair)[:3] == (["[1] or [2]?"], ["two"], ["one"])


def test_the_first_of_three_outputs_beats_both_others() -> None:
    row = {"instruction": "2+2?", "input": "", "output": ["4.", "5.", "6."], "history": [["2+1?", "3."]]}
    assert [texts_of(pair)[1:3] for pair in read(row)] == [(["4."], ["5."]), (["4."], ["6."])]
    assert texts_of(read(row)[0])[0] == ["2+1?", "3.", "2+2?"]


@pytest.mark.parametrize("verdict", [{"ratings": [1, 9]}, {"label": "B"}, {"chosen": "4."}])
def test_outputs_with_a_verdict_of_their_own_are_not_taken_for_the_better_one_first(verdict: dict[str, Any]) -> None:
    assert reason_for({"instruction": "2+2?", "output": ["5.", "4."]} | verdict) in (
        Reason.UNKNOWN_FORMAT,
        Reason.MISSING_FIELD,
    )


def test_swift_rows_keep_system_history_margin_and_earlier_turns() -> None:
    system = {"role": "system", "content": "Be brief."}
    [pair] = read({"messages": [system, *AGAIN, USER, REPLY], "rejected_response": "5.", "margin": 2})
    assert texts_of(pair) == (["Be brief.", "2+1?", "3.", "2+2?"], ["4."], ["5."], 2.0)
    flat = {"system": "Be brief.", "query": "2+2?", "history": [["2+1?", "3."]], "response": "4."}
    assert texts_of(read(flat | {"rejected_response": "5."})[0]) == (texts_of(pair)[0], ["4."], ["5."], 0.0)


def test_columns_and_labels_of_ones_own_go_before_what_a_card_says() -> None:
    columns = {"response_a": "human_ref_A", "response_b": "human_ref_B", "label": "labels", "prompt": "history"}
    row = as_shp("q", ["one", "two"], 0)
    [pair] = read(row, columns=columns, labels={"1": "first", "0": "second"})
    [other] = read(row, columns=columns, labels={"1": "second", "0": "first"})
    assert (texts_of(pair)[1], texts_of(other)[1]) == (["one"], ["two"])
    [unset] = read(row, labels={"1": "second", "0": "first"})  # meant for another set
    assert texts_of(unset)[1] == ["one"]


def test_the_subset_of_a_benchmarks_row_is_the_part_that_it_names() -> None:
    [pair] = read(as_judgebench("q", ["one", "two"], 1))
    assert (pair.subset, texts_of(pair)[:3]) == ("mmlu-pro-law", (["q"], ["two"], ["one"]))
    styles = {"id": 8, "prompt": "q", "chosen": ["a", "a", "b"], "rejected": ["x", "y", "z"], "domain": "safety-refuse"}
    pairs = read(styles)
    assert [pair.subset for pair in pairs] == ["safety-refuse"] * 9
    assert [texts_of(pair)[1:3] for pair in pairs] == [([one], [two]) for one in "aab" for two in "xyz"]
    # other rows with such fields, and a subset of one's own
    conversations = {"domain": "law", "chosen": [USER, REPLY], "rejected": [USER, REPLY | {"content": "5."}]}
    assert [pair.subset for pair in read(conversations)] == [""]
    assert read({"source": "s", "prompt": "q", "response_A": "one", "response_B": "two", "label": "A"})[0].subset == ""
    assert {pair.subset for pair in read(styles | {"subset": "own"})} == {"own"}
    assert {pair.subset for pair in read(styles | {"domain": None})} == {""}


def test_every_format_is_one_of_the_usual_ones() -> None:
    formats = {read(written("q", ["one", "two"], 0))[0].format for written, _ in WRITTEN}
    assert formats <= {Format.COMPARISON, Format.PLAIN, Format.MESSAGES, Format.CONVERSATIONS} | {
        Format.RANKING,
        Format.SCORED_LISTS,
        Format.SHAREGPT,
    }


def test_the_worked_example_of_the_page_of_formats_works() -> None:
    page = Path(parsing.__file__).with_name("README.md").read_text()
    names: dict[str, Any] = {"Row": dict, "PublicSet": public_sets.PublicSet}
    exec(page.split("```python\n")[1].split("```")[0], names)
    row = as_webgpt("q", ["one", "two"], 1)
    [pair] = read(names["_webgpt"](row | {"question": "q"}))
    assert texts_of(pair)[:3] == texts_of(read(row)[0])[:3] == (["q"], ["two"], ["one"])
    names = dict(vars(chosen_rejected))
    exec(page.split("```python\n")[2].split("```")[0], names)
    record = msgspec.convert({"prompt": "q", "replies": {"good": "one", "bad": "two"}}, names["GoodBadRecord"])
    [pair] = names["from_good_bad"](record, Format.PLAIN, ParsingRules()).preferences
    assert texts_of(pair)[:3] == (["q"], ["one"], ["two"])


def test_no_field_that_decides_may_be_given_twice() -> None:
    line = json.dumps(as_shp("q", ["one", "two"], 0)).replace('"labels": 1', '"labels": 0, "labels": 1')
    with pytest.raises(PreferenceError, match="an object has `labels` 2 times"):
        parse_row(line)
    assert MARKS <= FIELDS
    assert {public_set.fields[0] for public_set in PUBLIC_SETS} == MARKS
