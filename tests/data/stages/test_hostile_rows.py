"""Values that nobody expects, in every field of every format; and rows of a great many parts."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from parsed_rows import parse_row
from support import is_linear

from rm_assets.data.formats.fast_path import simple_pair
from rm_assets.data.formats.parsing import FORMATS, parse_line
from rm_assets.data.formats.preferences import Format, ParsingRules, PreferenceError
from rm_assets.data.formats.rankings import MAX_RESPONSES
from rm_assets.data.formats.validity import require_valid

QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
OTHER = {"role": "assistant", "content": "b"}
ROWS: dict[Format, dict[str, Any]] = {
    Format.PLAIN: {"prompt": "q", "chosen": "a", "rejected": "b"},
    Format.MESSAGES: {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [OTHER]},
    Format.CONVERSATIONS: {"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, OTHER]},
    Format.TRANSCRIPT: {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    Format.SHAREGPT: {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
    Format.OPENAI: {
        "input": {"messages": [QUESTION]},
        "preferred_output": [ANSWER],
        "non_preferred_output": [OTHER],
    },
    Format.COMPARISON: {"prompt": "q", "response_a": "a", "response_b": "b", "label": "A"},
    Format.RANKING: {"prompt": "q", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]},
    Format.SCORED_LISTS: {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]},
    Format.REPLY_LISTS: {"prompt": "q", "chosen": ["a"], "rejected": ["b"]},
}
FIELDS = (
    *("prompt", "instruction", "question", "context", "input", "system", "history", "conversations", "messages"),
    *("chosen", "rejected", "chosen_messages", "response_a", "response_b", "label", "winner", "overall_preference"),
    *("preferred_output", "non_preferred_output", "responses", "completions", "scores", "ratings", "ranks"),
    *("margin", "subset", "tools", "score_chosen", "score_rejected", "chosen_score"),
)
HOSTILE = "@@"
VALUES = (
    *("null", "true", "0", "-0", "-0.0", "1e400", "-1e400", "1e-400", "5e-324", "0.1e1", "3.4028236e38"),
    *(str(2**31), str(2**63), str(-(2**63) - 1), str(2**100), "9" * 400, "9" * 6_000, f"1e{'9' * 400}"),
    *(
        '""',
        '" "',
        r'"\u0000"',
        r'"\ud800"',
        r'"\ude00\ud83d"',
        r'"\ufeff"',
        r'"\u0301"',
        '"NaN"',
        '"-1e999"',
        '"A>>B"',
    ),
    *('"[]"', '"{\\"a\\": 1e999}"', '"' + "[" * 70 + '"', '"[' + "9" * 400 + ']"', '"' + ">" * 4_000 + '"'),
    *("[]", "[[]]", "[null]", "[1, 2]", "[1e308, -1e308]", '["a", 1]', "{}", '[{"role": "user"}]', '{"role": null}'),
    *('[{"type": "function", "function": ' + str(2**100) + "}]", '[{"role": "assistant", "tool_calls": [1e300]}]'),
    *('[{"role": "tool", "content": [{"type": "text", "text": 7}]}]', '{"from": "gpt", "value": {}}'),
    *('[{"from": "function_call", "value": "{\\"name\\": 1}"}]', "[" * 60 + "]" * 60, "[" * 90 + "]" * 90),
)


def is_taken(line: str) -> bool:
    """Whether a line states sound preferences; it raises nothing else than that it does not."""
    simple_pair(line.encode())
    try:
        for preference in parse_line(line, ParsingRules()).preferences:
            require_valid(preference)
    except PreferenceError:
        return False
    return True


@pytest.mark.parametrize("format_name", ROWS)
def test_a_hostile_value_in_any_field_makes_a_reject_at_most(format_name: Format) -> None:
    assert ROWS.keys() == FORMATS.keys()
    assert [preference.format for preference in parse_row(json.dumps(ROWS[format_name]))] == [format_name]
    taken = []
    for field in FIELDS:
        line = json.dumps(ROWS[format_name] | {field: HOSTILE})
        taken += [is_taken(line.replace(json.dumps(HOSTILE), value)) for value in VALUES]
    assert len(taken) == len(FIELDS) * len(VALUES)
    assert len(taken) / 10 < sum(taken) < len(taken)


# --- rows of many parts --------------------------------------------------------------------------------------


def turns(count: int) -> dict[str, Any]:
    start = "".join(f"\n\nHuman: question {n}\n\nAssistant: answer {n}" for n in range(count // 2))
    return {"chosen": f"{start}\n\nHuman: q\n\nAssistant: a", "rejected": f"{start}\n\nHuman: q\n\nAssistant: b"}


def parts(count: int) -> dict[str, Any]:
    content = [{"type": "text", "text": "a"}] * count
    return ROWS[Format.MESSAGES] | {"chosen": [{"role": "assistant", "content": content}]}


def unknown_fields(count: int) -> dict[str, Any]:
    return ROWS[Format.PLAIN] | {f"field {n}": n for n in range(count)}


def label(count: int) -> dict[str, Any]:
    return ROWS[Format.COMPARISON] | {"label": "A" + ">" * count + "B"}


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (turns, 20_000),
        (parts, 20_000),
        (unknown_fields, 40_000),
        (label, 1_000_000),
    ],
)
def test_the_work_that_a_row_of_many_parts_costs_grows_with_its_length(
    build: Callable[[int], dict[str, Any]], count: int
) -> None:
    assert len(parse_row(json.dumps(build(count)))) == 1
    assert is_linear(lambda number: parse_row(json.dumps(build(number))), count // 3)


def test_a_ranking_of_as_many_responses_as_are_read_gives_as_many_pairs_as_are_taken() -> None:
    """The pairs of a row's responses are the one thing that grows faster than the row."""
    texts = [f"{number} {'a' * 100}" for number in range(MAX_RESPONSES)]
    responses = [{"text": text, "score": number} for number, text in enumerate(texts)]
    lists = {"chosen": texts[: MAX_RESPONSES // 2], "rejected": texts[MAX_RESPONSES // 2 :]}
    for row in ({"responses": responses}, lists):
        assert len(parse_row(json.dumps({"prompt": "q"} | row))) == ParsingRules().max_pairs_per_prompt
