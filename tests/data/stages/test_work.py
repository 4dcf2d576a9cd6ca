"""What a hostile line makes large costs in proportion: twice as many turns are at most 2.5 times the work."""

import dataclasses
import functools
import itertools
import json
from typing import Any

import pytest
from work import CountingChat, counting, growth, work_of

from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.chat.pair_rendering import flatten_pair, pair_messages, require_no_control_tokens
from rm_assets.data.chat.shortening import shortened_pair
from rm_assets.data.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from rm_assets.data.formats.parsing import parse_line
from rm_assets.data.formats.preferences import ParsingRules, PreferenceError
from rm_assets.data.formats.validity import require_valid
from rm_assets.data.pairs.rows import PairRows
from rm_assets.settings import Settings

TRIMMED = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
LIMIT = 2.5


@functools.cache
def counting_chat() -> CountingChat:
    return counting(load_chat_tokenizer(find_tokenizer(Settings())))


def rows_of(line: dict[str, Any]) -> list[dict[str, Any]]:
    """The validated rows of a line."""
    rows = PairRows()
    for preference in parse_line(json.dumps(line), ParsingRules(max_pairs_per_prompt=10**6)).preferences:
        require_valid(preference)
        rows.add(1, preference)
    return rows.table("a.jsonl").to_pylist()


def flatten(line: dict[str, Any], chat: ChatTokenizer) -> None:
    """The way of a line to texts, pair by pair."""
    chat = dataclasses.replace(chat, lost_by_shape={})
    for row in rows_of(line):
        sides = pair_messages(row)
        require_no_control_tokens(chat, sides, row["tools"] or "")
        flatten_pair(chat, sides, row["tools"] or "")


def conversation(contents: list[Any]) -> dict[str, Any]:
    roles = ("user", "assistant")
    prompt = [{"role": roles[n % 2], "content": content} for n, content in enumerate([*contents, "last?"])]
    replies = {side: [{"role": "assistant", "content": f"{side}."}] for side in ("chosen", "rejected")}
    return {"prompt": prompt} | replies


TURNS = {
    "different": lambda n: f"turn {n}",
    "equal": lambda n: "turn",
    "inside a token": lambda n: "im" if n % 2 else "start",
    "next to a token": lambda n: f"> {n} <" if n % 2 else f"> {n} ",
    "rewritten": lambda n: f" turn {n} ",
    "rewritten next to a token": lambda n: f" > {n} <",
}


@pytest.mark.parametrize("name", TURNS)
def test_turns_cost_in_proportion(name: str) -> None:
    chat = dataclasses.replace(counting_chat(), template=TRIMMED)
    lines = [conversation([TURNS[name](n) for n in range(2 * count)]) for count in (32, 64, 128)]
    assert growth(lambda line: flatten(line, chat), lines) < LIMIT


def test_dropping_turns_costs_no_more_than_rendering_them() -> None:
    sides = [
        pair_messages(rows_of(conversation([f"turn {n}" for n in range(2 * count)]))[0]) for count in (32, 64, 128)
    ]
    assert growth(lambda given: shortened_pair(counting_chat(), given, "", 40), sides) < LIMIT


# --- other dimensions ----------------------------------------------------------------------------------------


def texts(**changes: Any) -> dict[str, Any]:
    return {"prompt": "q", "chosen": "yes", "rejected": "no"} | changes


def tool(number: int, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"f{number}", "parameters": parameters}}


def calling(num_calls: int) -> dict[str, Any]:
    calls = [{"function": {"name": f"f{number}", "arguments": {"x": number}}} for number in range(num_calls)]
    line = conversation([])
    line["prompt"] += [{"role": "assistant", "tool_calls": calls}, {"role": "tool", "content": "4"}]
    return line


def transcript(num_turns: int) -> str:
    return "".join(f"\n\nHuman: question {number}\n\nAssistant: answer {number}" for number in range(num_turns))


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


DIMENSIONS = {
    "tools": lambda n: texts(tools=[tool(number) for number in range(n)]),
    "tools in a text": lambda n: texts(tools=json.dumps([tool(number) for number in range(n)])),
    "fields of a tool": lambda n: texts(tools=[tool(0, **{f"k{number}": number for number in range(n)})]),
    "depth of a tool": lambda n: texts(tools=f"[{nested(n // 4)}]"),
    "tool calls": calling,
    "parts of a content": lambda n: conversation([[{"type": "text", "text": f"part {k}"} for k in range(n)], "so?"]),
    "fields of a row": lambda n: texts(**{f"k{number}": number for number in range(n)}),
    "earlier turns": lambda n: texts(history=[[f"question {k}", f"answer {k}"] for k in range(n)]),
    "turns of a transcript": lambda n: {side: transcript(n) + side for side in ("chosen", "rejected")},
    "turns of a reply": lambda n: (
        conversation([]) | {"chosen": conversation([f"turn {k}" for k in range(n + 1)])["prompt"][1:]}
    ),
}


@pytest.mark.parametrize("name", DIMENSIONS)
def test_what_a_line_may_hold_costs_in_proportion(name: str) -> None:
    lines = [DIMENSIONS[name](count) for count in (32, 64, 128)]
    assert growth(lambda line: flatten(line, counting_chat()), lines) < LIMIT


def test_responses_cost_in_proportion_to_the_pairs_that_they_give() -> None:
    """4, 8 and 16 responses are 6, 28 and 120 pairs."""

    def ranking(num_responses: int) -> dict[str, Any]:
        responses = [{"response": f"answer {number}", "rank": number} for number in range(num_responses)]
        return {"prompt": "a question " * 50, "responses": responses}

    counts = (4, 8, 16)
    flatten(ranking(4), counting_chat())
    amounts = [work_of(functools.partial(flatten, ranking(count), counting_chat())) for count in counts]
    pairs = [count * (count - 1) // 2 for count in counts]
    for (less, fewer), (more, all_pairs) in itertools.pairwise(zip(amounts, pairs, strict=True)):
        assert more / less < LIMIT / 2 * all_pairs / fewer


@pytest.mark.parametrize("depth", [65, 900])
def test_json_in_a_text_that_nests_too_deep_is_a_reject(depth: int) -> None:
    with pytest.raises(PreferenceError, match="wrong_type: `tools` is a string that nests more than 64 levels deep"):
        rows_of(texts(tools=f"[{nested(depth)}]"))
    call = f'{{"name": "f", "arguments": {nested(depth)}}}'
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": call}]
    line = {"conversations": turns, "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}
    with pytest.raises(
        PreferenceError, match="wrong_type: the value of a `function_call` nests more than 64 levels deep"
    ):
        rows_of(line)
