"""Every format states the same preference, and what is none gets a reason without its text."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parsed_rows import chosen, parse_row
from support import begins_with_marker, is_repeated, keys_of, pair_id

from rm_assets.data import formats
from rm_assets.data.formats.conversations.messages import ContentPart, MessageRecord
from rm_assets.data.formats.conversations.transcripts import parse_transcript
from rm_assets.data.formats.exports import public_sets
from rm_assets.data.formats.field_names import KNOWN
from rm_assets.data.formats.parsing import EXPORT_FIELDS as FIELDS
from rm_assets.data.formats.parsing import FORMATS
from rm_assets.data.formats.preferences import Format, Message, ParsingRules, Preference, PreferenceError
from rm_assets.data.formats.rankings import ResponseRecord
from rm_assets.data.formats.two_lines import parse_two_lines
from rm_assets.data.formats.validity import require_valid
from rm_assets.data.tables.reasons import Reason

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda text: text.strip() and not begins_with_marker(text)
)
# In a transcript a message can hold no marker after an empty line, and no second space at its start is lost.
TURN = TEXT.filter(lambda text: not re.search("(\n\n|\r\n\r\n)(Human|Assistant):", text))


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


def sharegpt(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names[message.role], "value": message.content} for message in messages]


def as_sharegpt(p: Preference) -> dict[str, Any]:
    [chosen], [rejected] = sharegpt(p.chosen), sharegpt(p.rejected)
    return {"conversations": sharegpt(p.prompt), "chosen": chosen, "rejected": rejected}


def as_sharegpt_lists(p: Preference) -> dict[str, Any]:
    return {"conversations": sharegpt(p.prompt), "chosen": sharegpt(p.chosen), "rejected": sharegpt(p.rejected)}


def as_parts(messages: tuple[Message, ...], key: str) -> list[dict[str, Any]]:
    halves = [((m.content or "")[:3], (m.content or "")[3:]) for m in messages]
    return [
        {"role": m.role, "content": [{"type": "text", key: half} for half in pair]}
        for m, pair in zip(messages, halves, strict=True)
    ]


def as_messages_of_parts(p: Preference) -> dict[str, Any]:
    return {
        "prompt": as_parts(p.prompt, "text"),
        "chosen": as_parts(p.chosen, "value"),
        "rejected": as_parts(p.rejected, "text"),
    }


MULTI_TURN = [
    (as_sharegpt, Format.SHAREGPT),
    (as_sharegpt_lists, Format.SHAREGPT),
    (as_messages_of_parts, Format.MESSAGES),
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
    require_valid(read)
    assert read.format == format_name
    assert (read.prompt, read.chosen, read.rejected) == (preference.prompt, preference.chosen, preference.rejected)
    assert keys_of(read) == keys_of(preference)


@given(preference=preferences(single_turn=True).filter(lambda p: not is_repeated(*as_plain(p).values())))
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


@given(preference=preferences())
def test_a_pair_comes_back_from_openais_format_and_from_chosen_messages(preference: Preference) -> None:
    prompt, chosen, rejected = (dicts(part) for part in (preference.prompt, preference.chosen, preference.rejected))
    openai = {"input": {"messages": prompt}, "preferred_output": chosen, "non_preferred_output": rejected}
    named = {"chosen_messages": prompt + chosen, "rejected_messages": prompt + rejected}
    for row, format_name in ((openai, Format.OPENAI), (named, Format.CONVERSATIONS)):
        [read] = parse_row(json.dumps(row))
        assert (read.format, pair_id(read)) == (format_name, pair_id(preference))
    swapped = openai | {"preferred_output": rejected, "non_preferred_output": chosen}
    [read] = parse_row(json.dumps(swapped))
    assert (read.chosen, read.rejected) == (preference.rejected, preference.chosen)


def test_the_page_of_formats_shows_a_line_of_every_format() -> None:
    page = Path(formats.__file__).with_name("README.md").read_text()
    table = page[page.index("| format | a line |") :].split("\n\n")[0]
    lines = re.findall(r"^\| `(\w+)` \| `(.*)` \|$", table, re.MULTILINE)
    assert [name for name, _ in lines] == list(Format)
    for name, line in lines:
        two = (1, line), (2, line.replace("4.", "5."))
        for read in parse_two_lines(*two).preferences if name == "two_lines" else parse_row(line):
            require_valid(read)
            assert read.format == name
            assert [m.content for m in (*read.prompt, *read.chosen)] == ["2+2?", "4."]


def test_the_page_of_formats_shows_a_line_of_every_export() -> None:
    page = Path(formats.__file__).with_name("README.md").read_text()
    table = page[page.index("| rows of | a line |") :].split("\n\n")[0]
    lines = re.findall(r"^\| ([^|]+) \| `(.*)` \|$", table, re.MULTILINE)
    assert len(lines) == len(table.splitlines()) - 2
    for _, line in lines:
        [read] = parse_row(line)
        require_valid(read)
        assert [m.content for m in (*read.prompt, *read.chosen, *read.rejected)] == ["2+2?", "4.", "5."]
    shown = {field for _, line in lines for field in json.loads(line)}
    rarest = {public_set.fields[0] for public_set in public_sets.PUBLIC_SETS}
    assert {field for field in rarest - shown if not field.startswith("winner_")} == set()
    assert "winner_model_a" in shown


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Add.", "input": "2+2"},
        {"prompt": "Add.\n\n2+2"},
        {"question": "Add.\n\n2+2", "input": " ", "context": None},
        {"question": "2+2", "context": "Add."},
        {"question": "Add.\n\n2+2", "context": "Add."},
        {"instruction": "Add.", "context": "2+2"},
        {"context": "Add.\n\n2+2", "prompt": "Add.\n\n2+2"},
    ],
)
def test_the_prompt_has_many_names(row: dict[str, Any]) -> None:
    [read] = parse_row(json.dumps(row | {"chosen": "4", "rejected": "5"}))
    assert read.format == Format.PLAIN
    assert read.prompt == (Message(role="user", content="Add.\n\n2+2"),)


def test_system_text_and_earlier_turns_stand_before_the_prompt() -> None:
    row = {"system": "Be brief.", "history": [["2+1?", "3"]], "question": "2+2?", "chosen": "4", "rejected": "5"}
    [read] = parse_row(json.dumps(row))
    require_valid(read)
    assert [(m.role, m.content) for m in read.prompt] == [
        ("system", "Be brief."),
        ("user", "2+1?"),
        ("assistant", "3"),
        ("user", "2+2?"),
    ]


def test_the_difference_of_scores_is_the_margin_of_a_row_without_one() -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 8.5, "score_rejected": 7}
    assert parse_row(json.dumps(row))[0].margin == 1.5
    assert parse_row(json.dumps(row | {"margin": 0.25}))[0].margin == 0.25


def test_ultrafeedback_rows_state_the_prompt_of_their_conversations() -> None:
    conversations = {
        side: [{"role": "user", "content": "q"}, {"role": "assistant", "content": side}]
        for side in ("chosen", "rejected")
    }
    extra = {"prompt_id": "1", "messages": conversations["chosen"], "score_chosen": 9.0, "score_rejected": 2.0}
    [read] = parse_row(json.dumps({"prompt": "q"} | conversations | extra))
    assert (read.format, read.margin) == (Format.MESSAGES, 7.0)
    assert [m.content for m in (*read.prompt, *read.chosen, *read.rejected)] == ["q", "chosen", "rejected"]


def test_sharegpt_tool_turns_become_tool_calls() -> None:
    turns = [
        {"from": "human", "value": "1 + 2?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"b": 2, "a": 1}}'},
        {"from": "observation", "value": "3"},
    ]
    row = {"conversations": turns, "chosen": {"from": "gpt", "value": "3"}, "rejected": {"from": "gpt", "value": "4"}}
    [read] = parse_row(json.dumps(row | {"tools": '[{"name": "add"}]'}))
    require_valid(read)
    assert read.tools == '[{"name":"add"}]'
    assert json.loads(read.prompt[1].tool_calls or "") == [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    ]


def test_own_columns_go_before_every_other_spelling() -> None:
    rules = ParsingRules(columns={"prompt": "query", "chosen": "winner", "rejected": "chosen"})
    row = {"query": "q", "winner": "a", "chosen": "b", "context": "not read"}
    [read] = parse_row(json.dumps(row), rules)
    assert [m.content for m in (*read.prompt, *read.chosen, *read.rejected)] == ["q", "a", "b"]
    [other] = parse_row(json.dumps({"instruction": "q", "chosen": "a", "rejected": "b"}), rules_of("prompt", "query"))
    assert pair_id(other) == pair_id(read)


def rules_of(name: str, column: str) -> ParsingRules:
    return ParsingRules(columns={name: column})


@pytest.mark.parametrize("role", [("role", "user", "assistant"), ("from", "human", "gpt")])
@pytest.mark.parametrize("text", ["content", "value", "text"])
def test_the_text_of_a_message_may_be_under_another_name(role: tuple[str, str, str], text: str) -> None:
    name, user, assistant = role
    prompt, good, bad = (
        {name: who, text: said} for who, said in ((user, "2+2?"), (assistant, "4."), (assistant, "5."))
    )
    assert chosen({"prompt": [prompt], "chosen": [good], "rejected": [bad]}) == "4."
    assert chosen({"chosen": [prompt, good], "rejected": [prompt, bad]}) == "4."
    assert chosen({"prompt": [prompt], "chosen": [good | {"text": "other"}], "rejected": [bad]}) == (
        "other" if text == "text" else "4."
    )


@pytest.mark.parametrize("prompt", ["", "  ", [], None])
def test_a_blank_prompt_beside_whole_conversations_is_none(prompt: object) -> None:
    sides = [[{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": said}] for said in ("4.", "5.")]
    assert chosen({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]}) == "4."
    texts = [f"\n\nHuman: 2+2?\n\nAssistant: {said}" for said in ("4.", "5.")]
    assert chosen({"prompt": prompt or "", "chosen": texts[0], "rejected": texts[1]}) == "4."
    labels = {"conversation_a": sides[1], "conversation_b": sides[0], "winner": "b"}
    assert chosen({"prompt": prompt} | labels) == "4."


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
    require_valid(read)
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
        ({"a": SECRET}, Reason.UNKNOWN_FORMAT),
        ({"prompt": SECRET, "chosen": "a"}, Reason.MISSING_FIELD),
        ({"chosen": SECRET, "rejected": "b"}, Reason.MISSING_FIELD),
        ({"prompt": SECRET, "chosen": 3, "rejected": "b"}, Reason.WRONG_TYPE),
        ({"prompt": SECRET, "chosen": "a", "rejected": "b", "margin": SECRET}, Reason.WRONG_TYPE),
        ({"chosen": [{"role": SECRET, "content": "a"}], "rejected": []}, Reason.WRONG_TYPE),
        ({"chosen": [{"content": SECRET}], "rejected": []}, Reason.MISSING_FIELD),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1e300}, Reason.MARGIN_NOT_FINITE),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 10**400}, Reason.WRONG_TYPE),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1e999}', Reason.NOT_JSON),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": -1}, Reason.SCORES_DISAGREE),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 1}, Reason.TIE),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2},
            Reason.SCORES_DISAGREE,
        ),
        ({"prompt": SECRET, "context": "c", "chosen": "a", "rejected": "b"}, Reason.AMBIGUOUS_FIELD),
        ({"question": SECRET, "context": "c", "input": "d", "chosen": "a", "rejected": "b"}, Reason.AMBIGUOUS_FIELD),
        ({"prompt": "q", "chosen": "a", "chosen_messages": SECRET, "rejected": "b"}, Reason.AMBIGUOUS_FIELD),
        (
            {"system": SECRET, "prompt": [{"role": "system", "content": "s"}], "chosen": "a", "rejected": "b"},
            Reason.AMBIGUOUS_FIELD,
        ),
        ({"prompt": "q", "messages": CONVERSATION, "chosen": "a", "rejected": "b"}, Reason.AMBIGUOUS_FIELD),
        (
            {"chosen": [{"role": "user", "content": [{"type": SECRET, "url": SECRET}]}], "rejected": []},
            Reason.NOT_TEXT,
        ),
        ({"chosen": [{"role": "user", "content": [{"type": "text"}]}], "rejected": []}, Reason.MISSING_FIELD),
        (
            {"conversations": [{"from": "function_call", "value": SECRET}], "chosen": "a", "rejected": "b"},
            Reason.WRONG_TYPE,
        ),
        ({"prompt": [{"from": SECRET, "value": "q"}], "chosen": "a", "rejected": "b"}, Reason.WRONG_TYPE),
        (f'{{"prompt": "q", "chosen": "{SECRET}", "rejected": "b", "chosen": "c"}}', Reason.REPEATED_FIELD),
        ({"text": SECRET}, Reason.UNKNOWN_FORMAT),
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
            require_valid(preference)
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


# --- whatever a row holds ------------------------------------------------------------------------------------

NAMES = st.sampled_from(sorted(KNOWN | FIELDS))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([SECRET, "", "A>B", "1", "tie", f"\n\nHuman: {SECRET}\n\nAssistant: b", "user", "gpt"])
)
ROWS = st.dictionaries(
    NAMES,
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.just(SECRET), inner, max_size=4),
        max_leaves=8,
    ),
    max_size=7,
)
SHAPES = st.sampled_from(
    [
        {},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "response_a": "a", "response_b": "b"},
        {"prompt": "q", "responses": [{"text": "a"}, {"text": "b", "rank": 1}]},
        {"conversations": CONVERSATION, "chosen": {"from": "gpt"}, "rejected": "b"},
        {"input": {"messages": CONVERSATION}, "preferred_output": [], "non_preferred_output": CONVERSATION},
        {"question": "q", "answer_0": "a", "answer_1": "b", "score_0": 1, "score_1": -1},
        {"prompt": '["q"]', "response_a": '["a"]', "response_b": "[null]", "winner_model_a": 1, "winner_model_b": 0},
        {"data": {"prompt": "q", "answer1": "a", "answer2": "b"}, "annotations": [{"result": [{"type": "pairwise"}]}]},
        {
            "fields": {"prompt": "q", "response_1": "a", "response_2": "b"},
            "responses": {"label": [{"value": f"the {SECRET} in the attic"}]},
        },
    ]
)


@settings(max_examples=200)
@given(shape=SHAPES, row=ROWS)
def test_any_row_is_preferences_or_a_reason_without_its_text(shape: dict[str, Any], row: dict[str, Any]) -> None:
    try:
        for preference in parse_row(json.dumps(shape | row)):
            require_valid(preference)
            assert len(pair_id(preference)) == 32
    except PreferenceError as error:
        assert SECRET not in error.detail


def test_no_field_that_a_record_has_may_be_given_twice() -> None:
    records = [record for record, _ in FORMATS.values()] + [MessageRecord, ContentPart, ResponseRecord]
    read = {name for record in records for name in record.__struct_encode_fields__}
    assert read <= KNOWN


@pytest.mark.parametrize(
    "fields",
    [
        {"chosen": "a", "tools": '[{"function": {"name": "f", "name": "g"}}]'},
        {"chosen": [{"from": "function_call", "value": '{"name": "f", "arguments": {"q": 1, "q": 2}}'}]},
        {"chosen": {"from": "function_call", "value": '[{"name": "f", "arguments": "", "arguments": "{}"}]'}},
    ],
)
def test_a_json_text_in_a_row_may_give_no_field_twice(fields: dict[str, object]) -> None:
    with pytest.raises(PreferenceError, match="repeats a field of an object") as error:
        parse_row(json.dumps({"prompt": "q", "rejected": "b"} | fields))
    assert error.value.reason == Reason.REPEATED_FIELD


def test_tools_of_a_request_and_of_its_row_must_agree() -> None:
    row = {
        "input": {"messages": [{"role": "user", "content": "q"}], "tools": [{"name": "f"}]},
        "preferred_output": [{"role": "assistant", "content": "a"}],
        "non_preferred_output": [{"role": "assistant", "content": "b"}],
    }
    [pair] = parse_row(json.dumps(row | {"tools": '[{"name": "f"}]'}))
    assert pair.tools == '[{"name":"f"}]'
    with pytest.raises(PreferenceError, match="ambiguous_field: `tools` and the `tools` of `input` differ"):
        parse_row(json.dumps(row | {"tools": [{"name": "g"}]}))
