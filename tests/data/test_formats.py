"""Every format states the same preference, and what is none gets a reason without its text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.data.formats import Format, Message, Preference, PreferenceError, parse_row, parse_transcript
from rm_assets.data.records import Reason
from rm_assets.data.validation import conversation_key, pair_id, prompt_key, require_sound

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
# In a transcript a message can hold no marker after an empty line, and no second space at its start is lost.
TURN = TEXT.filter(lambda text: "\n\nHuman:" not in text and "\n\nAssistant:" not in text)


@st.composite
def preferences(draw: st.DrawFn, *, single_turn: bool = False) -> Preference:
    """A sound preference in canonical form."""
    num_earlier = 0 if single_turn else draw(st.integers(0, 3))
    texts = draw(st.lists(TURN, min_size=2 * num_earlier + 3, max_size=2 * num_earlier + 3))
    chosen, rejected = texts[-1], texts[-2]
    if chosen == rejected:
        chosen += "!"
    roles = ["user", "assistant"] * num_earlier + ["user"]
    return Preference(
        prompt=tuple(Message(role=role, content=text) for role, text in zip(roles, texts, strict=False)),
        chosen=(Message(role="assistant", content=chosen),),
        rejected=(Message(role="assistant", content=rejected),),
        format=Format.PLAIN,
    )


def dicts(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def transcript(messages: tuple[Message, ...]) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[message.role]}: {message.content}" for message in messages)


def as_plain(p: Preference) -> dict[str, Any]:
    return {"prompt": p.prompt[0].content, "chosen": p.chosen[0].content, "rejected": p.rejected[0].content}


def as_messages(p: Preference) -> dict[str, Any]:
    return {"prompt": dicts(p.prompt), "chosen": dicts(p.chosen), "rejected": dicts(p.rejected)}


def as_messages_with_texts(p: Preference) -> dict[str, Any]:
    return {"prompt": dicts(p.prompt), "chosen": p.chosen[0].content, "rejected": p.rejected[0].content}


def as_repeated_conversations(p: Preference) -> dict[str, Any]:
    return {
        "prompt": p.prompt[-1].content,
        "chosen": dicts(p.prompt + p.chosen),
        "rejected": dicts(p.prompt + p.rejected),
    }


def as_conversations(p: Preference) -> dict[str, Any]:
    return {"chosen": dicts(p.prompt + p.chosen), "rejected": dicts(p.prompt + p.rejected)}


def as_transcript(p: Preference) -> dict[str, Any]:
    return {"chosen": transcript(p.prompt + p.chosen), "rejected": transcript(p.prompt + p.rejected)}


def as_transcript_with_prompt(p: Preference) -> dict[str, Any]:
    sides = {side: f" {getattr(p, side)[0].content}" for side in ("chosen", "rejected")}
    return {"prompt": transcript(p.prompt) + "\n\nAssistant:", **sides}


MULTI_TURN = [
    (as_messages, Format.MESSAGES),
    (as_messages_with_texts, Format.MESSAGES),
    (as_repeated_conversations, Format.MESSAGES),
    (as_conversations, Format.CONVERSATIONS),
    (as_transcript, Format.TRANSCRIPT),
    (as_transcript_with_prompt, Format.TRANSCRIPT),
]


@pytest.mark.parametrize(("written", "format_name"), MULTI_TURN)
@given(preference=preferences())
def test_a_pair_comes_back_with_the_same_id_from_every_format(
    written, format_name: Format, preference: Preference
) -> None:
    [read] = parse_row(json.dumps(written(preference)))
    require_sound(read)
    assert read.format == format_name
    assert (read.prompt, read.chosen, read.rejected) == (preference.prompt, preference.chosen, preference.rejected)
    assert pair_id(read) == pair_id(preference)
    assert prompt_key(read) == prompt_key(preference)


@given(
    preference=preferences(single_turn=True).filter(
        lambda p: not (p.prompt[0].content or "").startswith(("Human:", "Assistant:"))
    )
)
def test_a_plain_pair_comes_back_with_the_same_id(preference: Preference) -> None:
    [read] = parse_row(json.dumps(as_plain(preference)))
    assert read.format == Format.PLAIN
    assert pair_id(read) == pair_id(preference)


@pytest.mark.parametrize(("written", "format_name"), MULTI_TURN)
@given(preference=preferences())
def test_swapping_the_labels_swaps_the_sides(written, format_name: Format, preference: Preference) -> None:
    row = written(preference)
    [read] = parse_row(json.dumps(row | {"chosen": row["rejected"], "rejected": row["chosen"]}))
    assert (read.chosen, read.rejected) == (preference.rejected, preference.chosen)
    assert pair_id(read) != pair_id(preference)


def test_a_marker_counts_only_at_the_start_of_a_paragraph() -> None:
    messages = parse_transcript("\n\nHuman: What is a Human: label?\nHuman: not this\n\nAssistant: a\n\nb")
    assert [(message.role, message.content) for message in messages] == [
        ("user", "What is a Human: label?\nHuman: not this"),
        ("assistant", "a\n\nb"),
    ]


def test_system_messages_tools_and_tool_calls_are_kept() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"b": 2, "a": 1}}}
    prompt = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ]
    [read] = parse_row(json.dumps({"prompt": prompt, "chosen": "3", "rejected": "4", "tools": [{"name": "add"}]}))
    require_sound(read)
    assert read.tools == '[{"name":"add"}]'
    assert json.loads(read.prompt[2].tool_calls or "") == [call]
    assert [message.role for message in read.prompt] == ["system", "user", "assistant", "tool"]


SECRET = "zebra"
CONVERSATION = [{"role": "user", "content": "q"}, {"role": "assistant", "content": SECRET}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{" + SECRET, Reason.NOT_JSON),
        ("[" * 100_000, Reason.NOT_JSON),
        ('{"prompt": NaN}', Reason.NOT_JSON),
        ('{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}', Reason.NOT_JSON),
        (f'"{SECRET}"', Reason.NOT_AN_OBJECT),
        ("null", Reason.NOT_AN_OBJECT),
        ({SECRET: 1}, Reason.UNKNOWN_FORMAT),
        ({"prompt": SECRET, "chosen": "a"}, Reason.MISSING_FIELD),
        ({"chosen": SECRET, "rejected": "b"}, Reason.MISSING_FIELD),
        ({"prompt": SECRET, "chosen": 3, "rejected": "b"}, Reason.WRONG_TYPE),
        ({"prompt": SECRET, "chosen": "a", "rejected": "b", "margin": SECRET}, Reason.WRONG_TYPE),
        ({"chosen": [{"role": SECRET, "content": "a"}], "rejected": []}, Reason.WRONG_TYPE),
        ({"chosen": [{"content": SECRET}], "rejected": []}, Reason.MISSING_FIELD),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1e300}, Reason.MARGIN_NOT_FINITE),
        ({"prompt": " ", "chosen": "a", "rejected": SECRET}, Reason.EMPTY_MESSAGE),
        ({"prompt": SECRET, "chosen": "a", "rejected": "\n"}, Reason.EMPTY_REPLY),
        ({"prompt": SECRET, "chosen": "a", "rejected": "a"}, Reason.IDENTICAL_REPLIES),
        ({"chosen": CONVERSATION, "rejected": CONVERSATION}, Reason.IDENTICAL_REPLIES),
        ({"chosen": CONVERSATION, "rejected": CONVERSATION[:1]}, Reason.EMPTY_REPLY),
        (
            {"chosen": CONVERSATION, "rejected": [{"role": "user", "content": "other"}, *CONVERSATION[1:]]},
            Reason.UNSHARED_PROMPT,
        ),
        (
            {
                "prompt": "other",
                "chosen": CONVERSATION,
                "rejected": [CONVERSATION[0], {"role": "assistant", "content": "n"}],
            },
            Reason.UNSHARED_PROMPT,
        ),
        ({"prompt": [CONVERSATION[0]] * 2, "chosen": "a", "rejected": SECRET}, Reason.ROLES_OUT_OF_ORDER),
        ({"prompt": [CONVERSATION[1]], "chosen": "a", "rejected": SECRET}, Reason.ROLES_OUT_OF_ORDER),
        ({"chosen": f"\n\nAssistant: {SECRET}", "rejected": "\n\nAssistant: b"}, Reason.EMPTY_MESSAGE),
    ],
)
def test_what_states_no_preference_has_a_reason_and_none_of_its_text_in_the_detail(row: object, reason: Reason) -> None:
    with pytest.raises(PreferenceError) as error:
        for preference in parse_row(row if isinstance(row, str) else json.dumps(row)):
            require_sound(preference)
    assert error.value.reason == reason
    assert SECRET not in error.value.detail


def test_the_identity_of_a_pair_does_not_depend_on_margin_format_or_subset() -> None:
    plain = {"prompt": "q", "chosen": "a", "rejected": "b"}
    messages = {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": "a",
        "rejected": "b",
        "margin": 2,
        "subset": "s",
    }
    ids = {pair_id(parse_row(json.dumps(row))[0]) for row in (plain, messages)}
    assert len(ids) == 1


def test_equal_conversations_are_found_whatever_their_white_space_and_unicode_form() -> None:
    one = (Message(role="user", content="caf\u00e9  au lait\n"),)
    other = (Message(role="user", content="cafe\u0301 au lait"),)
    assert conversation_key(one, "") == conversation_key(other, "")
    assert conversation_key(one, "") != conversation_key((Message(role="assistant", content="café au lait"),), "")
