"""A prompt that a row gives several times is stated once, as the conversations have it."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parsed_rows import parse_row

from rm_assets.data.formats.fast_path import simple_pair
from rm_assets.data.formats.preferences import Preference, PreferenceError
from rm_assets.data.formats.validity import require_valid
from rm_assets.data.tables.reasons import Reason


def read(**row: Any) -> Preference:
    [preference] = parse_row(json.dumps(row))
    require_valid(preference)
    return preference


def texts(preference: Preference) -> list[list[str | None]]:
    return [
        [message.content for message in side] for side in (preference.prompt, preference.chosen, preference.rejected)
    ]


# --- plain texts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "replies"),
    [
        ("The soup was", "The soup was hot.", "The soup was a hat.", ["hot.", "a hat."]),
        ("Q: Why?\n\nA: ", "Q: Why?\n\nA: Because.", "Q: Why?\n\nA: Hat.", ["Because.", "Hat."]),
        ("Name a tree, please.\n", "Name a tree, please.Fir.", " Name a tree, please.\n\nHat.", ["Fir.", "Hat."]),
        ("def f(x):", "def f(x):\n    return x", "def f(x):\n\n\n    pass", ["    return x", "    pass"]),
        ("1+1=", "1+1=2", "1+1= 3", ["2", "3"]),
        ("海洋是什么颜色的呢", "海洋是什么颜色的呢蓝色", "海洋是什么颜色的呢?红色", ["蓝色", "?红色"]),
    ],
)
def test_a_prompt_that_both_replies_repeat_is_cut_off_both(
    prompt: str, chosen: str, rejected: str, replies: list[str]
) -> None:
    assert texts(read(prompt=prompt, chosen=chosen, rejected=rejected)) == [[prompt], *([reply] for reply in replies)]
    assert simple_pair(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}).encode()) is not None
    compared = read(question=prompt, output_1=rejected, output_2=chosen, label=2)
    assert texts(compared) == [[prompt], *([reply] for reply in replies)]
    ranked = read(prompt=prompt, responses=[rejected, chosen], scores=[1, 2])
    assert texts(ranked) == [[prompt], *([reply] for reply in replies)]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("The soup was", "The soup was hot.", "A hat."),
        ("The soup was", "It was hot.", "The soup was hot."),
        ("Hi", "Hi there.", "Hi yourself."),
        ("Good morning", "Good morning to you.", "Good morning!"),
        ("I like the cat", "I like the cats.", "I like the catalogue."),
        ("你好", "你好吗", "你好啊"),
    ],
)
def test_a_reply_that_begins_like_its_prompt_by_itself_is_kept(prompt: str, chosen: str, rejected: str) -> None:
    assert texts(read(prompt=prompt, chosen=chosen, rejected=rejected)) == [[prompt], [chosen], [rejected]]


def test_a_reply_that_is_the_prompt_alone_is_empty() -> None:
    row = {"prompt": "The soup was hot.", "chosen": "The soup was hot. Yes.", "rejected": " The soup was hot.\n"}
    with pytest.raises(PreferenceError, match="empty_reply: the rejected reply is empty"):
        read(**row)
    assert simple_pair(json.dumps(row).encode()) is None


WORD = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=6)
SPACE = st.sampled_from([" ", "\n", "\n\n", " \n", "  "])


@settings(max_examples=60)
@given(
    words=st.lists(WORD, min_size=3, max_size=5),
    replies=st.lists(WORD, min_size=2, max_size=2, unique=True),
    data=st.data(),
)
def test_a_repetition_changes_nothing_of_a_pair(words: list[str], replies: list[str], data: st.DataObject) -> None:
    prompt = "- " + " ".join(words)
    chosen, rejected = replies
    expected = read(prompt=prompt, chosen=chosen, rejected=rejected)
    repeating = [f"{data.draw(st.sampled_from(['', ' ']))}{prompt}{data.draw(SPACE)}{reply}" for reply in replies]
    line = {"prompt": prompt, "chosen": repeating[0], "rejected": repeating[1]}
    assert read(**line) == expected


# --- messages ------------------------------------------------------------------------------------------------

TURNS = [("user", "Hi."), ("assistant", "Ho."), ("user", "Name a tree.")]


def messages(*turns: tuple[str, str | None]) -> list[dict[str, str | None]]:
    return [{"role": role, "content": content} for role, content in turns]


def whole(*opening: tuple[str, str | None]) -> dict[str, Any]:
    """Both sides as conversations."""
    return {side: messages(*opening, ("assistant", side)) for side in ("chosen", "rejected")}


SYSTEM = ("system", "Be brief.")
PROMPTS = {
    "the first turn": "Hi.",
    "the last turn": "Name a tree.",
    "white space around it": "\nName a tree. ",
    "all turns": messages(*TURNS),
    "all turns, spaced otherwise": messages(("user", " Hi."), ("assistant", "Ho.\n"), ("user", "Name a tree.\n\n")),
    "the first turn as a message": messages(TURNS[0]),
    "the last turn as a message": messages(TURNS[2]),
    "an empty system message": messages(("system", " "), *TURNS),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_beside_whole_conversations_is_stated_once_as_they_have_it(name: str) -> None:
    expected = ["Hi.", "Ho.", "Name a tree."]
    assert texts(read(prompt=PROMPTS[name], **whole(*TURNS))) == [expected, ["chosen"], ["rejected"]]
    assert texts(read(prompt=PROMPTS[name], **whole(SYSTEM, *TURNS)))[0] == ["Be brief.", *expected]


def test_turns_and_a_system_message_that_only_the_prompt_has_are_kept() -> None:
    asked = messages(SYSTEM, *TURNS)
    for opening in (TURNS, TURNS[2:]):
        preference = read(prompt=asked, **whole(*opening))
        assert texts(preference) == [["Be brief.", "Hi.", "Ho.", "Name a tree."], ["chosen"], ["rejected"]]


@pytest.mark.parametrize(
    "prompt",
    [
        "Ho.",
        "Name a bird.",
        messages(("user", "Hey."), *TURNS[1:]),
        messages(("user", "Hey."), TURNS[2]),
        messages(TURNS[2], TURNS[1], TURNS[0]),
    ],
)
def test_another_prompt_than_that_of_the_conversations_is_a_reject(prompt: Any) -> None:
    with pytest.raises(PreferenceError, match="unshared_prompt: the prompt in the replies differs from `prompt`"):
        read(prompt=prompt, **whole(*TURNS))


def test_another_system_message_is_a_reject() -> None:
    with pytest.raises(PreferenceError, match="unshared_prompt: the replies' system message differs"):
        read(prompt=messages(("system", "Be loud."), *TURNS), **whole(SYSTEM, *TURNS))
    with pytest.raises(PreferenceError, match="ambiguous_field: `system` differs from the system message"):
        read(system="Be loud.", **whole(SYSTEM, *TURNS))
    assert texts(read(system="Be brief.\n", **whole(SYSTEM, *TURNS)))[0][0] == "Be brief."


@pytest.mark.parametrize("empty", ["", " \n", None])
def test_an_empty_system_message_is_dropped(empty: str | None) -> None:
    for row in (
        whole(("system", empty), *TURNS),
        whole(*TURNS) | {"chosen": messages(("system", empty), *TURNS, ("assistant", "chosen"))},
        {"prompt": messages(("system", empty), *TURNS), "chosen": "chosen", "rejected": "rejected"},
    ):
        assert texts(read(**row)) == [["Hi.", "Ho.", "Name a tree."], ["chosen"], ["rejected"]]


def test_earlier_turns_that_the_conversations_hold_already_are_stated_once() -> None:
    history = [["Hi.", "Ho."]]
    for row in (
        whole(*TURNS),
        {"prompt": "Name a tree.", **whole(*TURNS)},
        {"prompt": messages(*TURNS), "chosen": "chosen", "rejected": "rejected"},
        {"prompt": "Name a tree.", "chosen": "chosen", "rejected": "rejected"},
        whole(TURNS[2]),
    ):
        assert texts(read(history=history, **row)) == [["Hi.", "Ho.", "Name a tree."], ["chosen"], ["rejected"]]
        with_system = read(history=history, system="Be brief.", **row)
        assert texts(with_system)[0] == ["Be brief.", "Hi.", "Ho.", "Name a tree."]
    assert texts(read(history=history, **whole(SYSTEM, TURNS[2])))[0] == ["Be brief.", "Hi.", "Ho.", "Name a tree."]


def test_one_whole_conversation_beside_a_mere_reply_is_a_reject() -> None:
    row = {"prompt": messages(*TURNS), **whole(*TURNS)} | {"rejected": messages(("assistant", "rejected"))}
    with pytest.raises(PreferenceError) as error:
        read(**row)
    assert error.value.reason == Reason.ROLES_OUT_OF_ORDER


# --- order and nulls -----------------------------------------------------------------------------------------

ROWS = st.sampled_from(
    [
        {"prompt": "The soup was", "chosen": "The soup was hot.", "rejected": "The soup was a hat."},
        {"prompt": PROMPTS["the first turn"], **whole(SYSTEM, *TURNS)},
        {"prompt": "Human: Name a tree. Assistant:", "chosen": " Fir.", "rejected": " Cup."},
        {
            "prompt": "Hi.\n<extra_id_1>Assistant\nHo.\n<extra_id_1>User\nq",
            "response_1": "a",
            "response_2": "b",
            "label": 1,
        },
        {
            "prompt": "q",
            "chosen": json.dumps(messages(("assistant", "a"))),
            "rejected": json.dumps(messages(("assistant", "b"))),
        },
        {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 2, 3]},
        {"prompt": "[INST] q", "chosen": "a", "rejected": "b"},
    ]
)
UNUSED = st.sets(st.sampled_from(["margin", "system", "history", "images", "tools", "subset", "score_chosen", "other"]))


def stated(row: dict[str, Any]) -> list[Preference] | str:
    try:
        return parse_row(json.dumps(row))
    except PreferenceError as error:
        return str(error)


@settings(max_examples=60)
@given(row=ROWS, nulls=UNUSED, data=st.data())
def test_neither_the_order_of_fields_nor_nulls_change_what_a_row_states(
    row: dict[str, Any], nulls: set[str], data: st.DataObject
) -> None:
    fields = data.draw(st.permutations([*row.items(), *((name, None) for name in sorted(nulls))]))
    assert stated(dict(fields)) == stated(row)


def test_prompts_that_differ_in_outer_white_space_alone_are_one() -> None:
    sides = {
        side: [{"role": "user", "content": f"What is it?{end}"}, {"role": "assistant", "content": side}]
        for side, end in (("chosen", ""), ("rejected", " \n"))
    }
    [pair] = parse_row(json.dumps(sides))
    assert [message.content for message in (*pair.prompt, *pair.chosen, *pair.rejected)] == [
        *("What is it?", "chosen", "rejected")
    ]
    [pair] = parse_row(json.dumps({"prompt": "What?", "question": "What?\n", "chosen": "A", "rejected": "B"}))
    assert pair.prompt[0].content == "What?"
    turns = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}] for text in ("So.", "So. ")]
    [pair] = parse_row(json.dumps(dict(zip(("chosen", "rejected"), turns, strict=True))))
    assert (pair.chosen[0].content, pair.rejected[0].content) == ("So.", "So. ")


def test_a_prompt_beside_the_conversation_that_it_ends_is_stated_once() -> None:
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "What is it? ")]
    messages = [{"role": role, "content": text} for role, text in turns]
    shared = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in turns]
    sides = {"chosen": "A", "rejected": "B"}
    for conversation in ({"messages": messages}, {"conversations": shared}):
        [pair] = parse_row(json.dumps(conversation | sides | {"prompt": "What is it?"}))
        assert [(message.role, message.content) for message in pair.prompt] == turns
        assert (pair.chosen[0].content, pair.rejected[0].content) == ("A", "B")
        for other in ("Hi", "Hello.", "What is that?"):
            with pytest.raises(PreferenceError, match="ambiguous_field: both a prompt and earlier messages are given"):
                parse_row(json.dumps(conversation | sides | {"prompt": other}))
    with pytest.raises(PreferenceError, match="ambiguous_field: both a prompt and earlier messages are given"):
        parse_row(json.dumps({"messages": messages[:2], "prompt": "Hello."} | sides))
