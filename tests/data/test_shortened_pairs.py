"""The turns that an over-long pair loses are found as by trying them one after the other."""

import functools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rm_assets.data.chat import ChatTokenizer, encode, load_chat_tokenizer
from rm_assets.data.model_files import find_tokenizer
from rm_assets.data.preferences import PreferenceError
from rm_assets.data.rendering import flatten_pair
from rm_assets.data.tokenization import shortened_pair, without_oldest_turns
from rm_assets.settings import Settings

TEXT = st.lists(st.sampled_from(["hello", "two words", " ", "\n", "<", "猫", "[1]", "x" * 40]), min_size=1).map("".join)
TURN = st.tuples(TEXT, TEXT)


@functools.cache
def sample_chat() -> ChatTokenizer:
    return load_chat_tokenizer(find_tokenizer(Settings()))


def one_after_the_other(
    chat: ChatTokenizer, sides: dict[str, list[dict[str, Any]]], max_length: int
) -> tuple[list[int], list[int], int] | None:
    num_turns = 1
    while (prompt := without_oldest_turns(sides["prompt"], num_turns)) is not None:
        try:
            flat = flatten_pair(chat, sides | {"prompt": prompt}, "")
        except PreferenceError:
            return None
        chosen, rejected = encode(chat, [flat.prompt + flat.chosen, flat.prompt + flat.rejected])
        if max(len(chosen), len(rejected)) <= max_length:
            return chosen.tolist(), rejected.tolist(), num_turns
        num_turns += 1
    return None


def message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": f"{content}."}


@settings(max_examples=60)
@given(
    system=st.none() | TEXT,
    turns=st.lists(TURN, max_size=12),
    last=TURN,
    max_length=st.integers(min_value=8, max_value=400),
)
def test_the_smallest_number_of_turns_is_dropped(
    system: str | None, turns: list[tuple[str, str]], last: tuple[str, str], max_length: int
) -> None:
    prompt = [message("system", system)] if system else []
    prompt += [message(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
    prompt.append(message("user", last[0]))
    sides = {"prompt": prompt, "chosen": [message("assistant", last[1])], "rejected": [message("assistant", "no")]}
    found = shortened_pair(sample_chat(), sides, "", max_length)
    as_lists = found and (found[0].tolist(), found[1].tolist(), found[2])
    assert as_lists == one_after_the_other(sample_chat(), sides, max_length)
