"""What a hostile line makes large costs in proportion: twice as many turns are at most 2.5 times the work."""

import dataclasses
import functools
import json
from typing import Any

import pytest
from work import CountingChat, counting, growth

from rm_assets.data.chat import ChatTokenizer, load_chat_tokenizer
from rm_assets.data.formats import stated_by
from rm_assets.data.model_files import find_tokenizer
from rm_assets.data.pair_rows import PairRows
from rm_assets.data.preferences import ParsingRules
from rm_assets.data.rendering import flatten_pair, pair_messages, require_no_control_tokens
from rm_assets.data.soundness import require_sound
from rm_assets.data.tokenization import shortened_pair
from rm_assets.settings import Settings

TRIMMED = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
LIMIT = 2.5


@functools.cache
def counting_chat() -> CountingChat:
    return counting(load_chat_tokenizer(find_tokenizer(Settings())))


def rows_of(line: dict[str, Any]) -> list[dict[str, Any]]:
    """The validated rows of a line."""
    rows = PairRows()
    for preference in stated_by(json.dumps(line), ParsingRules(max_pairs_per_prompt=10**6)).preferences:
        require_sound(preference)
        rows.add(1, preference)
    return rows.table("a.jsonl").to_pylist()


def flatten(line: dict[str, Any], chat: ChatTokenizer) -> None:
    """The way of a line to texts, pair by pair."""
    chat = dataclasses.replace(chat, lost_by_shape={})
    for row in rows_of(line):
        sides = pair_messages(row)
        require_no_control_tokens(chat, sides, row["tools"])
        flatten_pair(chat, sides, row["tools"])


def conversation(contents: list[str]) -> dict[str, Any]:
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
