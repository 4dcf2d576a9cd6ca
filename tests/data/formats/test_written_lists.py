"""Conversations that files hold as texts are read or refused, and honest texts that begin with a bracket stay texts."""

import json
from typing import Any

import pytest
from parsed_rows import parse_row

from rm_assets.data.formats.conversations.written_lists import alternating, written_messages, written_texts
from rm_assets.data.formats.fast_path import simple_pair
from rm_assets.data.formats.preferences import Format, Preference, PreferenceError
from rm_assets.data.formats.validity import require_valid
from rm_assets.data.tables.reasons import Reason

SECRET = "zebra"
QUESTION = {"role": "user", "content": "Name a lake."}
GOOD, BAD = ({"role": "assistant", "content": content} for content in ("Como.", "Chair."))


def read(row: dict[str, Any]) -> Preference:
    line = json.dumps(row)
    [preference] = parse_row(line)
    require_valid(preference)
    assert simple_pair(line.encode()) is None
    return preference


def texts(preference: Preference) -> list[list[str | None]]:
    return [
        [message.content for message in side] for side in (preference.prompt, preference.chosen, preference.rejected)
    ]


WRITTEN = {
    "whole conversations beside their prompt": {
        "prompt": "Name a lake.",
        "chosen": json.dumps([QUESTION, GOOD]),
        "rejected": f" {json.dumps([QUESTION, BAD], indent=1)}\n",
    },
    "whole conversations alone": {"chosen": json.dumps([QUESTION, GOOD]), "rejected": json.dumps([QUESTION, BAD])},
    "prompt and replies": {
        "prompt": json.dumps([QUESTION]),
        "chosen": json.dumps([GOOD]),
        "rejected": json.dumps([BAD]),
    },
    "the prompt alone": {"prompt": json.dumps([QUESTION]), "chosen": "Como.", "rejected": "Chair."},
    "the prompt and one reply": {"prompt": json.dumps([QUESTION]), "chosen": json.dumps(GOOD), "rejected": "Chair."},
    "replies alone": {"prompt": "Name a lake.", "chosen": json.dumps([GOOD]), "rejected": json.dumps([BAD])},
    "one side, as the other is a list": {
        "prompt": "Name a lake.",
        "chosen": json.dumps([QUESTION, GOOD]),
        "rejected": [QUESTION, BAD],
    },
    "messages of ShareGPT": {
        "conversations": json.dumps([{"from": "human", "value": "Name a lake."}]),
        "chosen": json.dumps({"from": "gpt", "value": "Como."}),
        "rejected": json.dumps({"from": "gpt", "value": "Chair."}),
    },
    "both outputs": {
        "input": {"messages": [QUESTION]},
        "preferred_output": json.dumps([GOOD]),
        "non_preferred_output": json.dumps([BAD]),
    },
    "compared conversations": {
        "conversation_a": json.dumps([QUESTION, BAD]),
        "conversation_b": json.dumps([QUESTION, GOOD]),
        "winner": "model_b",
    },
    "lists of texts": {
        "prompt": '["Name a lake."]',
        "response_a": '["Como."]',
        "response_b": '["Chair."]',
        "label": "A",
    },
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_conversation_that_is_json_in_a_text_is_read(name: str) -> None:
    assert texts(read(WRITTEN[name])) == [["Name a lake."], ["Como."], ["Chair."]]


def test_lists_of_texts_are_the_turns_of_a_conversation() -> None:
    row = {"prompt": '["Wet?", "Why?"]', "chosen": '["Yes.", "Water."]', "rejected": '["No.", null]'}
    assert texts(read(row | {"rejected": '["No.", "Eh."]'})) == [
        ["Wet?"],
        ["Yes.", "Why?", "Water."],
        ["No.", "Why?", "Eh."],
    ]
    with pytest.raises(PreferenceError, match="empty_reply: the rejected reply is empty"):
        read(row)


def test_what_the_lists_hold_is_parsed_for_others_too() -> None:
    assert written_messages(json.dumps([QUESTION, GOOD])) == [QUESTION, GOOD]
    assert written_messages('[{"role": "knight", "content": "To arms!"}]') is None
    assert written_messages('[{"role": "user"}]') is None
    assert written_messages("[") is written_messages("") is written_messages('["a"]') is None
    assert written_texts('["a", null, "b"]') == ["a", "", "b"]
    assert written_texts("[]") is written_texts("['a']") is written_texts("[1]") is written_texts('{"a": 1}') is None
    assert alternating(["q"], ["a"]) == [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("[1, 2, 3]", "[3, 2, 1]"),
        ('["ant", "bee"]', '["bee", "ant"]'),
        ("['ant', 'bee']", "['bee', 'ant']"),
        ("[Como](https://example.org/como)", "[Chair](https://example.org/chair)"),
        ('{"name": "Como"}', '{"name": "Chair"}'),
        ('[{"name": "Como", "content": "water"}]', '[{"name": "Chair", "content": "wood"}]'),
        ('[{"role": "knight", "content": "To arms!"}]', '[{"role": "squire", "content": "To bed!"}]'),
        ('[{"role": "user", "content": "Hi"}]', "I would not write such a list."),
        ("[{'role': 'user', 'content': 'Hi'}]", "I would not write such a list."),
        ('[{"role": "user", "content": "Hi"}, and so on', "[No.]"),
        ("print('Como')", "print('Chair')"),
        *((str(body), str(body | {"n": 2})) for body in ({"model": "m", "messages": [QUESTION]},)),
        (json.dumps({"model": "m", "messages": [QUESTION]}), json.dumps({"messages": [QUESTION]})),
        ('{"name": "Ann", "turns": [{"role": "user", "content": "Hi"}]}', '{"name": "Bo"}'),
        ("send(content='Como')", "send(content='Chair')"),
        ("Message(content='Como')", "Message(role=role, content=content)"),
        ('[["Como", 1], ["Garda", 2]]', '[["Chair", 1]]'),
        ("[('Como', 1)]", "[('Chair', 2)]"),
        ("Como (in Italy)", "Chair (at the table)"),
        ("[", "{"),
        ("[INST]", "{role}"),
    ],
)
def test_honest_replies_stay_texts(chosen: str, rejected: str) -> None:
    for one, other in ((chosen, rejected), (rejected, chosen)):
        preference = read({"prompt": "Write it as a list.", "chosen": one, "rejected": other, "margin": 1})
        assert preference.format == Format.PLAIN
        assert texts(preference) == [["Write it as a list."], [one], [other]]


@pytest.mark.parametrize(
    "prompt",
    [
        '["bee", "ant"]',
        "[1, 2]",
        '[{"role": "user", "content": "Hi"}] What does this say?',
        "f(role='a')",
        "{}",
        '{"messages": [{"role": "user", "content": "Hi"}]}',
    ],
)
def test_an_honest_prompt_stays_a_text(prompt: str) -> None:
    assert texts(read({"prompt": prompt, "chosen": "Yes.", "rejected": "No.", "margin": 1})) == [
        [prompt],
        ["Yes."],
        ["No."],
    ]


class Printed:
    """Lists of messages as languages and libraries print them."""

    python = "[{'role': 'assistant', 'content': \"It's %s\", 'name': None}]"
    numpy = "[{'content': 'Hi %s', 'role': 'user'}\n {'content': 'Ho', 'role': 'assistant'}]"
    array = "array([{'content': 'Hi %s', 'role': 'user'}], dtype=object)"
    one = "{'from': 'gpt', 'value': '%s'}"
    dataclasses = "[Message(role='assistant', content='%s')]"
    langchain = "[HumanMessage(content='q'), AIMessage(content='%s')]"
    pairs = "[('user', 'q'), ('assistant', '%s')]"
    lists = '[["user", "q"], ["assistant", "%s"]]'
    ordered = "OrderedDict([('role', 'assistant'), ('content', '%s')])"
    all_ordered = "[OrderedDict([('role', 'assistant'), ('content', '%s')])]"
    one_call = "Message(content='%s', role='assistant', tool_calls=None)"
    enumerated = "[Message(role=<Role.ASSISTANT: 'assistant'>, content='%s')]"
    batch = "[[{'role': 'assistant', 'content': '%s'}]]"
    cut_off = '[{"role": "assistant", "content": "%s'
    doubled = '[{""role"": ""assistant"", ""content"": ""%s""}]'


PRINTED = {name: form for name, form in vars(Printed).items() if not name.startswith("_")}


@pytest.mark.parametrize("name", PRINTED)
def test_a_list_as_it_is_printed_is_a_reject_that_says_so(name: str) -> None:
    sides = {side: PRINTED[name] % f"{SECRET} {side}" for side in ("chosen", "rejected")}
    rows = [{"prompt": "q"} | sides, sides]
    if name != "cut_off":
        rows.append({"prompt": sides["chosen"], "chosen": "a", "rejected": "b"})
    for row in rows:
        with pytest.raises(PreferenceError, match=r"a list written as text.*json\.dumps\(\), not str\(\)") as error:
            read(row)
        assert error.value.reason == Reason.WRONG_TYPE
        assert SECRET not in error.value.detail
        assert simple_pair(json.dumps(row).encode()) is None


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "['q']", "chosen": f"['{SECRET}']", "rejected": "['b']"},
        {"prompt": '["q", "r"]', "chosen": f'["{SECRET}"]', "rejected": '["b", "c"]'},
        {"prompt": "['q' 'r']", "chosen": f"['{SECRET}' 'a']", "rejected": "['b' 'c']"},
        {"prompt": "q", "responses": [json.dumps([GOOD]), json.dumps([BAD])], "scores": [2, 1]},
        {"prompt": "q", "responses": [{"text": json.dumps(GOOD), "score": 2}, {"text": json.dumps(BAD), "score": 1}]},
        {"prompt": "q", "chosen": [json.dumps([GOOD]), json.dumps([QUESTION])], "rejected": ["b"]},
        {"prompt": "Name it.", "chosen": "[{'role': 'user', 'content': 'Name it.'}]", "rejected": SECRET},
    ],
)
def test_other_lists_written_as_texts_are_rejects(row: dict[str, Any]) -> None:
    with pytest.raises(PreferenceError, match=r"lists? written as text") as error:
        read(row)
    assert error.value.reason == Reason.WRONG_TYPE
    assert SECRET not in error.value.detail


def test_a_list_in_a_text_is_as_bounded_as_the_line() -> None:
    deep = '[{"role": "user", "content": "a", "name": ' + "[" * 100 + "]" * 100 + "}]"
    twice = '[{"role": "user", "role": "assistant", "content": "a"}]'
    for text, problem in (
        (deep, "wrong_type: a list written as text nests"),
        (twice, "repeated_field: a list written"),
    ):
        with pytest.raises(PreferenceError, match=problem):
            parse_row(json.dumps({"prompt": "q", "chosen": text, "rejected": text}))


def test_many_responses_and_their_scores_may_be_json_in_texts() -> None:
    lists = {"responses": ["Oslo.", "Rome."], "scores": [1.5, 4]}
    written = {name: json.dumps(values) for name, values in lists.items()}
    objects = json.dumps([{"response": "Oslo.", "score": 1.5}, {"response": "Rome.", "score": 4}])
    expected = parse_row(json.dumps({"prompt": "Where?"} | lists))
    assert [pair.margin for pair in expected] == [2.5]
    assert parse_row(json.dumps({"prompt": "Where?"} | lists | {"scores": written["scores"]})) == expected
    for answers in (written, {"generations": written["responses"], "ratings": written["scores"]}):
        assert parse_row(json.dumps({"prompt": "Where?"} | answers)) == expected
    [pair] = parse_row(json.dumps({"prompt": "Where?", "responses": objects}))
    assert (pair.chosen, pair.margin) == (expected[0].chosen, 2.5)
    for name, text in (("responses", "['Oslo.', 'Rome.']"), ("scores", "[1.5 4. ]"), ("scores", "array([1.5, 4.])")):
        with pytest.raises(PreferenceError, match=f"wrong_type: `{name}` is a list written as text, but not as JSON"):
            parse_row(json.dumps({"prompt": "Where?"} | lists | {name: text}))
    beside = {"prompt": "Where?", "chosen": "Rome.", "rejected": "Oslo.", "generations": "['Rome.', 'Oslo.']"}
    assert [pair.chosen[0].content for pair in parse_row(json.dumps(beside))] == ["Rome."]


@pytest.mark.parametrize("role", ["model", "bot", "chatbot"])
def test_a_written_list_of_messages_with_another_role_is_no_reply(role: str) -> None:
    sides = {
        side: json.dumps([{"role": role, "content": text}])
        for side, text in (("chosen", "Rome."), ("rejected", "Oslo."))
    }
    with pytest.raises(PreferenceError, match="wrong_type: a value other than system, developer, user, assistant"):
        parse_row(json.dumps({"prompt": "Where?"} | sides))
