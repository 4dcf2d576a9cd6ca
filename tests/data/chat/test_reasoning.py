"""Reasoning: the names it stands under, pairs that differ in it alone, and templates that leave it out."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from parsed_rows import parse_row
from support import rejects, rows, run_stages, silent, trl_templates, violations, write_lines

from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.chat.pair_rendering import lost_parts
from rm_assets.data.chat.tokenizer import ChatTokenizer, chat_template_utils, load_chat_tokenizer, message_dict, render
from rm_assets.data.formats.preferences import Message, PreferenceError
from rm_assets.data.formats.two_lines import parse_two_lines
from rm_assets.data.formats.validity import require_valid
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.tables.reasons import Reason
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

USER = {"role": "user", "content": "How many eggs?"}
THOUGHT = "A dozen is twelve."
SECRET = "zebra"


def reply(content: Any = "Twelve.", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | more


def chosen(message: dict[str, Any]) -> Message:
    [read] = parse_row(json.dumps({"prompt": [USER], "chosen": [message], "rejected": [reply("Ten.")]}))
    return read.chosen[0]


def refusal(message: dict[str, Any]) -> tuple[Reason, str]:
    with pytest.raises(PreferenceError) as error:
        chosen(message)
    assert SECRET not in str(error.value)
    return error.value.reason, error.value.detail


# --- where it stands -----------------------------------------------------------------------------------------

TEXT = {"type": "text", "text": "Twelve."}
PARTS = {
    "anthropic": [{"type": "thinking", "thinking": THOUGHT, "signature": "x"}, TEXT],
    "two parts": [{"type": "thinking", "thinking": "A dozen"}, {"type": "thinking", "thinking": " is twelve."}, TEXT],
    "mistral": [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}, TEXT],
    "reasoning": [{"type": "reasoning", "reasoning": THOUGHT}, TEXT],
    "reasoning as text": [{"type": "reasoning", "text": THOUGHT}, TEXT],
}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_read_under_each_of_its_names(name: str) -> None:
    assert chosen(reply(**{name: THOUGHT})) == Message(role="assistant", content="Twelve.", reasoning_content=THOUGHT)
    turn = {"from": "gpt", "value": "Twelve.", name: THOUGHT}
    row = {"conversations": [{"from": "human", "value": "q"}], "chosen": turn, "rejected": turn | {name: "Hm."}}
    [read] = parse_row(json.dumps(row))
    assert (read.chosen[0].reasoning_content, read.rejected[0].reasoning_content) == (THOUGHT, "Hm.")


@pytest.mark.parametrize("content", PARTS.values(), ids=PARTS)
def test_reasoning_is_read_from_parts_before_the_text(content: list[Any]) -> None:
    assert chosen(reply(content)) == Message(role="assistant", content="Twelve.", reasoning_content=THOUGHT)


def test_a_thought_before_a_call_leaves_no_content() -> None:
    call = {"type": "function", "function": {"name": "count", "arguments": {}}}
    read = chosen(reply([{"type": "thinking", "thinking": THOUGHT}], tool_calls=[call]))
    assert (read.content, read.reasoning_content, bool(read.tool_calls)) == (None, THOUGHT, True)
    value = json.dumps({"name": "count", "arguments": {}})
    assert chosen({"from": "function_call", "value": value, "reasoning": THOUGHT}).reasoning_content == THOUGHT


def test_reasoning_given_twice_must_be_the_same() -> None:
    same = reply(PARTS["anthropic"], reasoning=THOUGHT, thinking=" ", reasoning_content=None)
    assert chosen(same).reasoning_content == THOUGHT
    assert refusal(reply(thinking=THOUGHT, reasoning=SECRET)) == (
        Reason.AMBIGUOUS_FIELD,
        "a message has different reasoning in `reasoning` and `thinking`",
    )
    assert refusal(reply(PARTS["anthropic"], reasoning_content=SECRET)) == (
        Reason.AMBIGUOUS_FIELD,
        "a message has different reasoning in `reasoning_content` and a part of the content",
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([TEXT, {"type": "thinking", "thinking": SECRET}], Reason.NOT_TEXT),
        ([{"type": "redacted_thinking", "data": SECRET}, TEXT], Reason.NOT_TEXT),
        ([{"type": "thinking", "thinking": [{"type": "image", "text": SECRET}]}, TEXT], Reason.NOT_TEXT),
        ([{"type": "thinking", "text": SECRET, "thinking": SECRET}, TEXT], Reason.MISSING_FIELD),
        ([{"type": "reasoning", "summary": [SECRET]}, TEXT], Reason.MISSING_FIELD),
        ([{"type": "thinking", "thinking": {"a": SECRET}}, TEXT], Reason.WRONG_TYPE),
    ],
)
def test_reasoning_that_cannot_be_read_is_a_reject(content: list[Any], reason: Reason) -> None:
    assert refusal(reply(content))[0] == reason


def test_replies_that_differ_in_their_reasoning_alone_are_a_pair(settings: Settings) -> None:
    lines = [
        {"prompt": [USER], "chosen": [reply(thinking=THOUGHT)], "rejected": [reply(thinking="Eggs?")]},
        {"chosen": [USER, reply(reasoning=THOUGHT)], "rejected": [USER, reply(reasoning="Ten and two?")]},
        {"prompt": [USER], "chosen": [reply(reasoning_content=THOUGHT)], "rejected": [reply(reasoning="Eggs?")]},
    ]
    write_lines(Path(settings.annotations_path) / "a.jsonl", lines)
    template = Path(settings.storage).parent / "thinks.jinja"
    template.write_text(THINKS)
    stages = run_stages(settings.model_copy(update={"chat_template": str(template)}))
    found = rows(stages[Stage.PADDED])
    assert [row["line"] for row in found] == [1, 2]
    assert rejects(stages[Stage.PADDED]) == [("a.jsonl", 3, "duplicate")]
    assert set(violations(stages).values()) == {0}
    same = {"prompt": [USER], "chosen": [reply(thinking=THOUGHT)], "rejected": [reply(reasoning=THOUGHT)]}
    with pytest.raises(PreferenceError) as error:
        require_valid(*parse_row(json.dumps(same)))
    assert error.value.reason == Reason.IDENTICAL_REPLIES


# --- templates that leave it out -----------------------------------------------------------------------------

THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}"
    "</think>{% endif %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}<|im_end|>\n"
    "{% endfor %}"
)
THINKS_LAST = THINKS.replace("{% if m.reasoning_content %}", "{% if m.reasoning_content and loop.last %}")
NEVER_THINKS = THINKS.replace("{% if m.reasoning_content %}", "{% if false %}")
CALL = {"id": "call00001", "type": "function", "function": {"name": "count", "arguments": {}}}
THINKING, ANSWER = reply(reasoning_content=THOUGHT), reply("So twelve.")
CALLING = reply("", reasoning_content=THOUGHT, tool_calls=[CALL])
TOOL = {"role": "tool", "name": "count", "tool_call_id": "call00001", "content": "12"}


@functools.cache
def sample_chat() -> ChatTokenizer:
    return load_chat_tokenizer(find_tokenizer(Settings()))


def chat_with(template: str) -> ChatTokenizer:
    return dataclasses.replace(sample_chat(), template=template, lost_by_shape={})


def test_the_last_reasoning_of_a_reply_must_leave_a_trace() -> None:
    last, never = chat_with(THINKS_LAST), chat_with(NEVER_THINKS)
    for conversation, number in (([USER, THINKING], 2), ([USER, CALLING, TOOL, THINKING], 4)):
        assert lost_parts(last, conversation, "") == ()
        assert lost_parts(never, conversation, "") == (f"the reasoning of message {number}",)
    # a template may cut a thought once its answer is there, but must know of thoughts
    assert lost_parts(last, [USER, CALLING, TOOL, ANSWER], "") == ()
    assert lost_parts(never, [USER, CALLING, TOOL, ANSWER], "") == ("the reasoning of message 2",)


@pytest.mark.skipif(not hasattr(chat_template_utils(), "_alias_reasoning_fields"), reason="transformers reads one name")
@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("template", [THINKS, THINKS_LAST, THINKS.replace("m.reasoning_content", "m.thinking")])
def test_reasoning_is_rendered_as_transformers_renders_that_of_the_file(template: str, name: str) -> None:
    own, chat = [USER, reply(**{name: "Eggs?"}), USER, reply(**{name: THOUGHT})], chat_with(template)
    [read] = parse_row(json.dumps({"prompt": own[:3], "chosen": own[3:], "rejected": [reply("Ten.")]}))
    messages = [message_dict(msgspec.to_builtins(message)) for message in (*read.prompt, *read.chosen)]
    expected = chat.reference.apply_chat_template(own, chat_template=template, tokenize=False)
    assert THOUGHT in expected
    assert render(chat, messages, "") == expected


def test_reasoning_of_earlier_turns_may_be_left_out() -> None:
    for template in (THINKS, THINKS_LAST, NEVER_THINKS):
        assert lost_parts(chat_with(template), [USER, THINKING, USER, ANSWER], "") == ()
    assert lost_parts(chat_with(NEVER_THINKS), [USER, ANSWER], "") == ()
    assert lost_parts(chat_with(NEVER_THINKS), [USER, reply(reasoning_content="")], "") == ()


KNOWN = {"qwen3": True, "gptoss": True, "glm4moe": True, "llama3_1": False, "qwen2_5": False, "gemma3": False}


@pytest.mark.skipif(not trl_templates(), reason="TRL is not installed")
@pytest.mark.parametrize("name", KNOWN)
def test_templates_of_the_field_lose_a_thought_where_they_know_of_none(name: str) -> None:
    [path] = [path for path in trl_templates() if path.stem == name]
    lost = lost_parts(chat_with(path.read_text()), [USER, THINKING], "")
    assert lost == (() if KNOWN[name] else ("the reasoning of message 2",))


CUTS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
MOVES = CUTS.replace("{{ m.content", "{{ m.content.split('</think>')[0].split('<think>')[-1].strip() }}|{{ m.content")


@pytest.mark.parametrize(("template", "lost"), [(CUTS, [2, 3, 4, 14]), (MOVES, [])])
def test_reasoning_inside_the_text_of_a_reply_must_leave_a_trace(
    settings: Settings, template: str, lost: list[int]
) -> None:
    """Rendered one by one and column by column: the shape of most of these rows is common enough to be learnt."""
    replies = ["12", f"<think>\n{THOUGHT}\n</think>\n\n12", f"{THOUGHT}</think>12", f"\n<think> {THOUGHT} </think>"]
    replies += ["<think>no end", "<think>\n\n</think>\n\n12", *(f"{number} eggs" for number in range(6))]
    lines = [{"prompt": f"q{number}", "chosen": text, "rejected": "Ten."} for number, text in enumerate(replies)]
    turns = [USER, reply(f"<think>{THOUGHT}</think>12"), USER]
    lines += [{"prompt": turns, "chosen": "13", "rejected": "Ten."}]
    lines += [{"prompt": turns, "chosen": "13", "rejected": f"<think>{THOUGHT}</think>Ten."}]
    write_lines(Path(settings.annotations_path) / "a.jsonl", lines)
    path = Path(settings.storage).parent / "cuts.jinja"
    path.write_text(template)
    flattened = run_stages(settings.model_copy(update={"chat_template": str(path)}))[Stage.FLATTENED]
    assert rejects(flattened) == [("a.jsonl", number, "message_lost") for number in lost]
    assert flattened.manifest.num_rows() == len(lines) - len(lost)
    assert flattened.manifest.total("num_one_by_one") < len(lines)


def test_a_pair_whose_reasoning_the_template_leaves_out_is_a_reject(settings: Settings) -> None:
    lines = [
        {"prompt": [USER], "chosen": [reply(thinking=THOUGHT)], "rejected": [reply("Ten.")]},
        {"prompt": [USER, THINKING, USER], "chosen": [ANSWER], "rejected": [reply("Ten.")]},
    ]
    write_lines(Path(settings.annotations_path) / "a.jsonl", lines)
    template = Path(settings.storage).parent / "never.jinja"
    template.write_text(NEVER_THINKS)
    stages = run_stages(settings.model_copy(update={"chat_template": str(template)}))
    assert rejects(stages[Stage.FLATTENED]) == [("a.jsonl", 1, "message_lost")]
    assert [row["line"] for row in rows(stages[Stage.PADDED])] == [2]


# --- variables of templates ----------------------------------------------------------------------------------

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize("kwargs", [{"enable_thinking": False}, '{"enable_thinking": false}', [1]])
def test_a_row_that_sets_variables_of_its_template_is_a_reject_that_names_them(settings: Settings, kwargs: Any) -> None:
    write_lines(Path(settings.annotations_path) / "a.jsonl", [PAIR, PAIR | {"chat_template_kwargs": kwargs}])
    validated = publish_validated(settings, publish_raw(settings, silent), silent)
    assert len(rows(validated)) == 1  # the file is not held back: nothing is damaged
    [reject] = rows(validated, "rejects")
    assert (reject["line"], reject["reason"]) == (2, "unsupported_field")
    assert reject["detail"].startswith("`chat_template_kwargs` is not read; the setting chat_template")
    request = {"messages": [USER], "chat_template_kwargs": kwargs}
    with pytest.raises(PreferenceError, match="unsupported_field"):
        parse_row(json.dumps({"input": request, "preferred_output": [THINKING], "non_preferred_output": [ANSWER]}))
    text = json.dumps({"text": "\n\nHuman: q\n\nAssistant: a", "chat_template_kwargs": kwargs})
    with pytest.raises(PreferenceError) as error:
        parse_two_lines((1, text), (2, text.replace("Assistant: a", "Assistant: b")))
    assert error.value.reason == Reason.UNSUPPORTED_FIELD


@pytest.mark.parametrize("kwargs", [None, {}, {"enable_thinking": None}, "", "{}", "null"])
def test_a_row_that_sets_no_variable_of_its_template_is_read(kwargs: Any) -> None:
    assert len(parse_row(json.dumps(PAIR | {"chat_template_kwargs": kwargs}))) == 1
