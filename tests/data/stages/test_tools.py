"""Tools and tool calls are rendered as the file writes them, and count as equal whatever the order of their members."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from parsed_rows import parse_row
from support import keys_of, rejects, rows, run_stages, silent, violations, write_lines

from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.chat.tokenizer import ChatTokenizer, load_chat_tokenizer, message_dict, render
from rm_assets.data.formats.preferences import ParsingRules, Preference, PreferenceError
from rm_assets.data.formats.validity import require_valid
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import ValidationTask, measure_validated, publish_validated
from rm_assets.data.storage.parquet import read_table, write_table
from rm_assets.data.storage.snapshots import DATA, Snapshot
from rm_assets.data.tables.reasons import Reason
from rm_assets.data.tables.schemas import VALIDATED, Stage
from rm_assets.settings import Settings, SettingsError

SHARED = Path(__file__).parents[3].parent / "shared" / "tokenizers"
USER = {"role": "user", "content": "Which ferry goes to Bastø?"}
FERRY = {
    "type": "function",
    "function": {
        "name": "ferry",
        "description": "Times of a ferry",
        "parameters": {"type": "object", "required": ["port"], "properties": {"port": {"type": "string"}}},
    },
}
FERRY_SORTED = (
    '[{"function":{"description":"Times of a ferry","name":"ferry","parameters":{"properties":'
    '{"port":{"type":"string"}},"required":["port"],"type":"object"}},"type":"function"}]'
)


def called(arguments: Any, **more: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "ferry", "arguments": arguments}} | more
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def read(**row: Any) -> Preference:
    [preference] = parse_row(json.dumps({"prompt": [USER], "chosen": [said("At 9.")], "rejected": [said("No.")]} | row))
    return preference


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(member) for name, member in value.items() if member is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


# --- as the file writes them ---------------------------------------------------------------------------------


def test_tools_and_calls_keep_the_order_of_the_file() -> None:
    found = read(tools=[FERRY], chosen=[called({"to": "Bastø", "from": "Moss", "at": {"z": 1, "a": 2}}, id="x")])
    assert found.tools == compact([FERRY])
    assert found.chosen[0].tool_calls == (
        '[{"type":"function","function":{"name":"ferry","arguments":'
        '{"to":"Bastø","from":"Moss","at":{"z":1,"a":2}}},"id":"x"}]'
    )


def test_sharegpt_calls_keep_the_order_of_their_arguments() -> None:
    value = '{"arguments": {"to": "Moss", "from": null}, "name": "ferry"}'
    row = {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": [{"from": "function_call", "value": value}],
        "rejected": {"from": "gpt", "value": "No."},
    }
    [found] = parse_row(json.dumps(row))
    assert found.chosen[0].tool_calls == (
        '[{"type":"function","function":{"name":"ferry","arguments":{"to":"Moss","from":null}}}]'
    )


def test_numbers_in_tools_have_the_values_that_the_file_writes() -> None:
    numbers = "[1, 1.0, 1e2, 1E-7, -0, -0.0, 1e16, 0.1, 5e-324, 18446744073709551616]"
    line = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b", "tools": [{"name": "f", "n": 7}]})
    [found] = parse_row(line.replace("7", numbers))
    assert repr(json.loads(found.tools)[0]["n"]) == repr(json.loads(numbers))


def test_members_that_are_null_are_dropped_but_not_from_json_texts() -> None:
    tool = {"type": "function", "function": {"name": "f", "zone": None, "enum": ["a", None], "p": [{"q": None}]}}
    call = called({"to": "Moss", "zone": None}, id=None)
    found = read(tools=[tool], chosen=[call | {"name": None, "tool_call_id": None}])
    assert found.tools == '[{"type":"function","function":{"name":"f","enum":["a",null],"p":[{}]}}]'
    assert found.chosen[0].tool_calls == ('[{"type":"function","function":{"name":"ferry","arguments":{"to":"Moss"}}}]')
    text = '{"to": "Moss", "zone": null}'
    [stored] = json.loads(read(chosen=[called(text)]).chosen[0].tool_calls or "")
    assert stored["function"]["arguments"] == text
    assert read(tools=json.dumps([tool])).tools == compact([tool])


@pytest.mark.parametrize("none", [None, [], "", " ", "[]", "null"])
def test_no_tools_and_no_calls_have_many_spellings(none: Any) -> None:
    found = read(tools=none, chosen=[said("At 9.") | {"tool_calls": none}])
    assert (found.tools, found.chosen[0].tool_calls) == ("", None)


@pytest.mark.parametrize("write", [lambda v: json.dumps(v), lambda v: [*map(json.dumps, v)], lambda v: v])
def test_tools_and_calls_may_be_json_texts_or_lists_of_them(write: Any) -> None:
    calls = called({"to": "Moss"})["tool_calls"]
    found = read(tools=write([FERRY]), chosen=[said("x") | {"tool_calls": write(calls)}])
    assert (found.tools, found.chosen[0].tool_calls) == (compact([FERRY]), compact(calls))


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ("ferry", "`{}` is a string that is not a JSON list"),
        ('{"name": "zebra"}', "`{}` is a string that is not a JSON list"),
        (['{"name": "zebra"}', "zebra"], "item 2 of `{}` is a string that is not a JSON object"),
        (['["zebra"]'], "item 1 of `{}` is a string that is not a JSON object"),
        ([{}, 3], "item 2 of `{}` is not an object"),
        ([None], "item 1 of `{}` is not an object"),
        ("[[1]]", "item 1 of `{}` is not an object"),
    ],
)
def test_what_is_no_list_of_objects_is_named(value: Any, detail: str) -> None:
    rows_of_name = {"tools": {"tools": value}, "tool_calls": {"chosen": [said("x") | {"tool_calls": value}]}}
    for name, row in rows_of_name.items():
        with pytest.raises(PreferenceError) as error:
            read(**row)
        assert (error.value.reason, error.value.detail) == (Reason.WRONG_TYPE, detail.format(name))


# --- what counts as equal ------------------------------------------------------------------------------------


def test_pairs_that_differ_in_the_order_of_members_alone_have_equal_conversations() -> None:
    def keys(tools: str, one: dict[str, int], other: dict[str, int]) -> Any:
        return keys_of(read(tools=tools, chosen=[called(one)], rejected=[called(other)]))[0]

    first = keys(compact([FERRY]), {"a": 1, "b": 2}, {"a": 2, "b": 1})
    second = keys(FERRY_SORTED, {"b": 2, "a": 1}, {"b": 1, "a": 2})
    assert first[1:] == second[1:]
    assert first.pair_id != second.pair_id
    assert keys(FERRY_SORTED, {"b": 2, "a": 1.0}, {"b": 1, "a": 2}).chosen != second.chosen


def test_replies_that_differ_in_the_order_of_members_alone_are_identical() -> None:
    first, second = called({"a": 1, "b": [{"c": 1, "d": 2}]}), called({"b": [{"d": 2, "c": 1}], "a": 1})
    with pytest.raises(PreferenceError) as error:
        require_valid(read(chosen=[first], rejected=[second]))
    assert error.value.reason == Reason.IDENTICAL_REPLIES
    with pytest.raises(PreferenceError) as error:
        parse_row(json.dumps({"chosen": [USER, first], "rejected": [USER, second]}))
    assert error.value.reason == Reason.IDENTICAL_REPLIES
    replies = [{"response": [first], "rank": 1}, {"response": [second], "rank": 2}, {"response": "No.", "rank": 3}]
    with pytest.raises(PreferenceError, match="response 2 is listed twice"):
        parse_row(json.dumps({"prompt": "q", "responses": replies}))
    require_valid(read(chosen=[first], rejected=[called({"a": 1, "b": [{"c": 2, "d": 1}]})]))


def test_conversations_share_calls_whatever_the_order_of_their_members() -> None:
    tool = {"role": "tool", "content": "9:00"}
    one = [USER, called({"a": 1, "b": 2}), tool]
    other = [USER, called({"b": 2, "a": 1}), tool]
    chosen, rejected = [*one, said("At 9.")], [*other, said("No.")]
    for row in ({"chosen": chosen, "rejected": rejected}, {"prompt": other, "chosen": chosen, "rejected": rejected}):
        [found] = parse_row(json.dumps(row))
        assert [len(found.prompt), len(found.chosen), len(found.rejected)] == [3, 1, 1]
        assert '{"a":1,"b":2}' in (found.prompt[1].tool_calls or "")


def test_tools_given_twice_may_differ_in_the_order_of_their_members_alone() -> None:
    def openai(own: Any) -> Preference:
        request = {"messages": [USER], "tools": [FERRY]}
        row = {"input": request, "preferred_output": [said("a")], "non_preferred_output": [said("b")], "tools": own}
        [found] = parse_row(json.dumps(row))
        return found

    for own in (None, [FERRY], FERRY_SORTED, json.dumps([FERRY])):
        assert openai(own).tools == compact([FERRY])
    with pytest.raises(PreferenceError) as error:
        openai([FERRY | {"type": "other"}])
    assert error.value.reason == Reason.AMBIGUOUS_FIELD


def test_a_pair_in_another_order_is_a_duplicate_and_a_flipped_one_a_conflict(settings: Settings) -> None:
    one, other, sorted_tools = called({"b": 1, "a": 2}), said("At 9."), json.loads(FERRY_SORTED)
    lines = [
        {"prompt": [USER], "chosen": [one], "rejected": [other], "tools": [FERRY]},
        {"prompt": [USER], "chosen": [called({"a": 2, "b": 1})], "rejected": [other], "tools": sorted_tools},
        {"prompt": "q", "chosen": [one], "rejected": [other], "tools": [FERRY]},
        {"prompt": "q", "chosen": [other], "rejected": [called({"a": 2, "b": 1})], "tools": sorted_tools},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
    ]
    write_lines(Path(settings.annotations_path) / "a.jsonl", lines)
    stages = run_stages(settings)
    expected = [("a.jsonl", 2, "duplicate"), ("a.jsonl", 3, "conflict"), ("a.jsonl", 4, "conflict")]
    assert rejects(stages[Stage.PADDED]) == expected
    assert set(violations(stages).values()) == {0}


def test_pairs_without_tools_have_null_and_the_identity_that_they_had(settings: Settings) -> None:
    lines = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "a", "rejected": "c"}]
    write_lines(Path(settings.annotations_path) / "a.jsonl", [lines[0], lines[1] | {"tools": [FERRY]}])
    first, second = rows(publish_validated(settings, publish_raw(settings, silent), silent))
    assert (first["tools"], second["tools"]) == (None, compact([FERRY]))
    same = [read(prompt="q", chosen="a", rejected="b"), read(prompt="q", chosen="a", rejected="c", tools=[FERRY])]
    assert (same[0].tools, same[1].tools) == ("", compact([FERRY]))
    assert [first["pair_id"], second["pair_id"]] == [keys.pair_id for keys in keys_of(*same)]


# --- the invariant -------------------------------------------------------------------------------------------


def figures(raw: Snapshot, validated: Snapshot, changed: Any, rules: ParsingRules) -> dict[str, Any]:
    """What the invariant counts in the only shard, with its rows changed."""
    path = validated.directory.parent / "changed.parquet"
    table = read_table(validated.paths(DATA), VALIDATED)
    write_table(path, table.from_pylist([changed(row) for row in table.to_pylist()], VALIDATED))
    task = ValidationTask(
        path=raw.paths(DATA)[0],
        rejected=None,
        before=(None, None),
        source="a.jsonl",
        held_back="",
        refused=(),
        key_without_verdict="",
        rules=rules,
    )
    return measure_validated(task, {DATA: path})


def sorted_copy(text: str | None) -> str | None:
    return compact(json.loads(json.dumps(json.loads(text), sort_keys=True))) if text else text


def with_sorted_tools(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"tools": sorted_copy(row["tools"])}


def with_calls(row: dict[str, Any], change: Callable[[str], str | None]) -> dict[str, Any]:
    def changed(message: dict[str, Any]) -> dict[str, Any]:
        return message | {"tool_calls": change(message["tool_calls"]) if message["tool_calls"] else None}

    return row | {side: list(map(changed, row[side])) for side in ("prompt", "chosen", "rejected")}


def with_sorted_calls(row: dict[str, Any]) -> dict[str, Any]:
    return with_calls(row, sorted_copy)


def with_a_null(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"tools": row["tools"] and row["tools"].replace('{"type":"string"}', '{"type":"string","zone":null}')}


def with_another_name(row: dict[str, Any]) -> dict[str, Any]:
    return with_calls(row, lambda text: text.replace("ferry", "bus"))


def with_other_arguments(row: dict[str, Any]) -> dict[str, Any]:
    return with_calls(row, lambda text: text.replace("Moss", "Oslo"))


def test_the_law_finds_tools_and_calls_in_another_order_than_their_line(settings: Settings) -> None:
    tool = {"role": "tool", "content": "9:00"}
    calls, text = called({"to": "Moss", "at": 9, "zone": None}), called('{"to": "Moss", "at": 9}')
    value = json.dumps({"name": "ferry", "arguments": {"to": "Moss", "at": 9}})
    lines = [
        {"prompt": [USER, calls, tool], "chosen": "a", "rejected": "b", "tools": [FERRY]},
        {"prompt": "q", "chosen": [calls], "rejected": [said("b")], "tools": json.dumps([FERRY])},
        {"prompt": "q", "chosen": [said("b")], "rejected": [text], "tools": [json.dumps(FERRY)]},
        {"prompt": "q", "chosen": [{"from": "function_call", "value": value}], "rejected": [said("b")]},
        {"prompt": "q", "chosen": [said("b")], "rejected": [said("c")]},
    ]
    write_lines(Path(settings.annotations_path) / "a.jsonl", lines)
    raw = publish_raw(settings, silent)
    validated = publish_validated(settings, raw, silent)
    assert [row["line"] for row in rows(validated)] == [1, 2, 3, 4, 5]
    counted = {
        change.__name__: figures(raw, validated, change, ParsingRules())["num_other_tools"]
        for change in (dict, with_sorted_tools, with_sorted_calls, with_a_null, with_another_name, with_other_arguments)
    }
    changed_tools = {"with_sorted_tools": 3, "with_a_null": 3}
    changed_calls = {"with_sorted_calls": 4, "with_another_name": 4, "with_other_arguments": 4}
    assert counted == {"dict": 0, **changed_tools, **changed_calls}


def test_the_tools_of_two_lines_stand_in_either(settings: Settings) -> None:
    texts = ("\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant: b")
    lines = [{"text": texts[0]}, {"text": texts[1], "tools": [FERRY]}]
    write_lines(Path(settings.annotations_path) / "a.jsonl", lines)
    own = settings.model_copy(update={"two_line_files": True})
    raw = publish_raw(own, silent)
    validated = publish_validated(own, raw, silent)
    rules = ParsingRules(two_line_files=True)
    assert [row["tools"] for row in rows(validated)] == [compact([FERRY])]
    assert figures(raw, validated, dict, rules)["num_other_tools"] == 0
    assert figures(raw, validated, with_sorted_tools, rules)["num_other_tools"] == 1


# --- ids and texts of apply_chat_template on the file's own messages and tools -------------------------------

LIKE_QWEN = (
    "{% for tool in tools or [] %}{{ '\\n' ~ tool | tojson }}{% endfor %}{% for m in messages %}<|im_start|>"
    "{{ m.role }}\n{{ m.content or '' }}{% for call in m.tool_calls or [] %}{% set call = call.function or call %}"
    '\n<tool_call>{"name": "{{ call.name }}", "arguments": {% if call.arguments is string %}{{ call.arguments }}'
    "{% else %}{{ call.arguments | tojson }}{% endif %}}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
)
LIKE_GLM = (
    "{{ tools | tojson if tools }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ call | tojson(indent=1) }}{% for key, value in call.items() %}{{ key }}"
    "{% if value is mapping and value.arguments is mapping %}{% for name, argument in value.arguments.items() %}"
    "<{{ name }}>{{ argument if argument is string else argument | tojson }}{% endfor %}{% endif %}{% endfor %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
)
NAMES = st.sampled_from(["type", "properties", "zone", "a", "B", "10", "9", "ø", '"\\', "猫"]) | st.text(max_size=3)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=6)
)
OBJECTS = st.dictionaries(
    NAMES,
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=6
    ),
    max_size=4,
)


def shuffled(given_object: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.permutations(list(given_object.items())).map(dict)


@st.composite
def tool_rows(draw: st.DrawFn) -> dict[str, Any]:
    """A row whose objects have their members in any order."""

    def tool() -> dict[str, Any]:
        function = draw(shuffled({"name": "f", "description": "d", "parameters": draw(OBJECTS)}))
        return draw(shuffled({"type": "function", "function": function}))

    def call() -> dict[str, Any]:
        arguments = draw(OBJECTS.map(json.dumps) | OBJECTS)
        function = draw(shuffled({"name": "f", "arguments": arguments}))
        return draw(shuffled({"id": "123456789", "type": "function", "function": function}))

    reply = {"role": "assistant", "tool_calls": [call() for _ in range(draw(st.integers(1, 2)))]}
    asked = [USER, reply, {"role": "tool", "content": "9"}] if draw(st.booleans()) else [USER]
    row = {"prompt": asked, "chosen": [reply | {"tool_calls": [call()]}], "rejected": [said("No.")]}
    return row | {"tools": [tool() for _ in range(draw(st.integers(1, 2)))]}


def written_by_transformers(chat: ChatTokenizer, messages: list[Any], tools: Any) -> str:
    own = without_nulls(messages), without_nulls(tools)
    return str(chat.reference.apply_chat_template(own[0], tools=own[1], chat_template=chat.template, tokenize=False))


@functools.cache
def chats() -> list[ChatTokenizer]:
    """The sample's tokenizer, with its own template and with two that write tools and calls in other ways."""
    chat = load_chat_tokenizer(find_tokenizer(Settings()))
    return [chat, *(dataclasses.replace(chat, template=template) for template in (LIKE_QWEN, LIKE_GLM))]


@hypothesis_settings(max_examples=120, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(row=tool_rows(), escaped=st.booleans())
def test_tools_and_calls_are_rendered_as_transformers_renders_those_of_the_file(
    row: dict[str, Any], escaped: bool
) -> None:
    [found] = parse_row(json.dumps(row, ensure_ascii=escaped))
    own = json.loads(json.dumps(row))
    for chat in chats():
        for side, reply in (("chosen", found.chosen), ("rejected", found.rejected)):
            messages = [message_dict(msgspec.to_builtins(message)) for message in (*found.prompt, *reply)]
            expected = written_by_transformers(chat, own["prompt"] + own[side], own["tools"])
            assert render(chat, messages, found.tools) == expected


def lines_with_tools() -> Iterator[dict[str, Any]]:
    """Rows whose members are not in the order of the alphabet, with calls that every template of the field takes."""
    for number, port in enumerate(("Moss", "Horten", "Bastø")):
        call = called({"to": port, "at": number, "from": "Vollen"}, id=f"call{number:05}")
        answer = {"role": "tool", "tool_call_id": f"call{number:05}", "name": "ferry", "content": "9:00"}
        yield {"prompt": [USER], "chosen": [call], "rejected": [said(f"To {port}?")], "tools": [FERRY]}
        asked = {"role": "user", "content": f"And to {port}?"}
        yield {"prompt": [asked, call, answer], "chosen": [said("At 9.")], "rejected": [said("No.")], "tools": [FERRY]}
    request = {"messages": [USER], "tools": [FERRY]}
    outputs = {"preferred_output": [said("At 10.")], "non_preferred_output": [said("At 3.")]}
    yield {"input": request} | outputs


def exact_sides(settings: Settings) -> int:
    """How many sides came out, each with the ids of its line's own messages and tools; the invariants hold."""
    stages = run_stages(settings)
    chat = load_chat_tokenizer(find_tokenizer(settings))
    lines = list(lines_with_tools())
    found = rows(stages[Stage.TOKENIZED])
    for row in found:
        line = lines[row["line"] - 1]
        sides = {"chosen": "preferred_output", "rejected": "non_preferred_output"} if "input" in line else {}
        request = line.get("input", {"messages": line.get("prompt"), "tools": line.get("tools")})
        for side in ("chosen", "rejected"):
            messages = request["messages"] + line[sides.get(side, side)]
            text = written_by_transformers(chat, messages, request["tools"])
            assert row[f"{side}_ids"] == chat.reference(text, add_special_tokens=False)["input_ids"]
    assert set(violations(stages).values()) == {0}
    return 2 * len(found)


def test_every_id_of_rows_with_tools_is_that_of_apply_chat_template(settings: Settings, tmp_path: Path) -> None:
    write_lines(Path(settings.annotations_path) / "a.jsonl", list(lines_with_tools()))
    (tmp_path / "own.jinja").write_text(LIKE_GLM)
    own = {"chat_template": str(tmp_path / "own.jinja"), "storage": str(tmp_path / "own"), "max_length": 4096}
    assert exact_sides(settings) == 2 * len(list(lines_with_tools()))
    assert exact_sides(settings.model_copy(update=own)) == 2 * len(list(lines_with_tools()))


@pytest.mark.soak
@pytest.mark.skipif(not SHARED.is_dir(), reason="no tokenizers beside the checkout")
@pytest.mark.parametrize("name", sorted(path.name for path in SHARED.glob("*")))
def test_every_id_under_real_tokenizers_is_that_of_apply_chat_template(settings: Settings, name: str) -> None:
    write_lines(Path(settings.annotations_path) / "a.jsonl", list(lines_with_tools()))
    given_settings = {"tokenizer": str(SHARED / name), "max_length": 4096}
    try:
        chat = load_chat_tokenizer(find_tokenizer(settings.model_copy(update=given_settings)))
    except SettingsError as error:
        pytest.skip(str(error))
    num_sides = exact_sides(settings.model_copy(update=given_settings))
    assert num_sides == ("tools" in chat.template) * 2 * len(list(lines_with_tools()))
