"""The turns that an over-long pair loses are found as by trying them one after the other."""

import functools
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import given
from hypothesis import strategies as st
from support import plain_row, rows, run_stages, violations, write_lines

from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.chat.pair_rendering import flatten_pair
from rm_assets.data.chat.shortening import shortened_pair, without_oldest_turns
from rm_assets.data.chat.tokenizer import ChatTokenizer, encode, load_chat_tokenizer
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.storage.snapshots import REJECTS
from rm_assets.data.tables.schemas import Stage
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


@hypothesis.settings(max_examples=60)
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


def test_a_pair_that_is_too_long_by_its_control_tokens_alone_is_not_encoded(settings: Settings) -> None:
    """The sample's template writes two control tokens a message: 30 messages have 60."""
    turns = [{"role": role, "content": f"no. {n}"} for n in range(14) for role in ("user", "assistant")]
    long_row = {"prompt": [*turns, {"role": "user", "content": "so?"}], "chosen": "Yes.", "rejected": "No."}
    write_lines(Path(settings.annotations_path) / "a.jsonl", [plain_row(1), long_row, plain_row(3)])
    short = settings.model_copy(update={"max_length": 50})
    stages = run_stages(short)
    [reject] = rows(stages[Stage.TOKENIZED], REJECTS)
    assert (reject["line"], reject["reason"]) == (2, "too_long")
    assert reject["detail"] == "at least 60 (chosen) and 60 (rejected) tokens, more than 50"
    assert [row["line"] for row in rows(stages[Stage.TOKENIZED])] == [1, 3]
    assert set(violations(stages).values()) == {0}
    shortened = run_stages(short.model_copy(update={"over_long": "drop_turns"}))
    first, second, third = rows(shortened[Stage.TOKENIZED])
    assert [row["num_dropped_turns"] for row in (first, second, third)] == [0, second["num_dropped_turns"], 0]
    found = one_after_the_other(
        sample_chat(),
        {"prompt": long_row["prompt"], "chosen": [reply("Yes.")], "rejected": [reply("No.")]},  # type: ignore[dict-item]
        50,
    )
    assert (second["chosen_ids"], second["rejected_ids"], second["num_dropped_turns"]) == found
    assert set(violations(shortened).values()) == {0}


def reply(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}
