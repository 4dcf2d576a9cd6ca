"""A chat template is foreign material: what it may cost is bounded, and within the bounds it is transformers' own."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support import trl_templates

from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.chat.template_renderer import Columns, TemplateRenderer
from rm_assets.data.chat.tokenizer import ChatTokenizer, TemplateError, load_chat_tokenizer, reference_text, render
from rm_assets.settings import Settings, SettingsError

WRITTEN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
USER, REPLY = {"role": "user", "content": " what's <b> naïve % {}\n"}, {"role": "assistant", "content": "two words"}
PAIR = [USER, REPLY]
BIG = "{% set b = 'x' * 1000000 %}"
WORK = "more work than writing"
WIDE = "a formatted field of a thousand characters or more"


@functools.cache
def sample_chat() -> ChatTokenizer:
    return load_chat_tokenizer(find_tokenizer(Settings()))


def chat_with(template: str) -> ChatTokenizer:
    return dataclasses.replace(sample_chat(), template=template, lost_by_shape={})


def doubled(before: str, after: str, first: str = "'ab'") -> str:
    """A value that becomes its double sixty times."""
    return f"{{% set ns = namespace(s={first}) %}}{{% for n in range(60) %}}{before}ns.s{after}{{% endfor %}}"


HOSTILE = {
    "loops in loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", WORK),
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        WORK,
    ),
    "a repetition": ("{{ 'a' * 4000000000 }}", WORK),
    "a repetition that is never run": ("{% if 0 %}{{ 'a' * 4000000000 }}{% endif %}", WORK),
    "a repetition of a content": ("{{ messages[0].content * 4000000000 }}", WORK),
    "a repetition of a list": ("{{ [0] * 10000000000 }}", WORK),
    "a wide number": ("{{ '%9999999999d' % 1 }}", WIDE),
    "a precise number": ("{{ '%.9999999999f' % 1.0 }}", WIDE),
    "a width that is given": ("{{ '%*d' % (9999999999, 1) }}", WIDE),
    "a wide number by the filter": ("{{ '%9999999999d' | format(1) }}", WIDE),
    "a format that is made": ("{% set c = '%' ~ '9999999999d' %}{{ c % 1 }}", WIDE),
    "a wide field": ("{{ '{:9999999999}'.format(1) }}", WIDE),
    "a field in a field": ("{{ '{:{}}'.format(1, 9999999999) }}", WIDE),
    "a wide field by its name": ("{{ '%(a)9999999999d' % {'a': 1} }}", WIDE),
    "a wide field by a name with parentheses": ("{{ '%((a))-9999999999d' % {'(a)': 1} }}", WIDE),
    "a precise field by its name": ("{{ '%(a)8.9999999999f' | format(a=1.0) }}", WIDE),
    "a field of a mapping": ("{{ '{a:9999999999}'.format_map({'a': 1}) }}", WIDE),
    "a centered text": ("{{ 'a' | center(10000000000) }}", "a number above 10000 for the filter 'center'"),
    "a centered block": ("{% filter center(10000000000) %}a{% endfilter %}", "a number above 10000"),
    "filters by name": ("{{ ['a'] | map('center', 10000000000) | list }}", "a number above 10000"),
    "a justified text": ("{{ 'a'.ljust(10000000000) }}", "a width above 10000"),
    "zeros": ("{{ 'a'.zfill(10000000000) }}", "a width above 10000"),
    "tabulators": ("{{ '\t'.expandtabs(10000000000) }}", "a width above 10000"),
    "indented lines": ("{{ 'a\nb' | indent(10000000000) }}", "a number above 10000"),
    "indented JSON": ("{{ [1] | tojson(indent=10000000000) }}", "a number above 10000"),
    "batches": ("{{ [1] | batch(1000000000, 'x') | list }}", "a number above 10000"),
    "bytes of a number": ("{{ (1).to_bytes(10000000000, 'big') }}", "the method 'to_bytes' of a int"),
    "a table of replacements": (BIG + "{{ b.translate({120: b}) }}", "the method 'translate'"),
    "keys with one value": ("{{ dict.fromkeys(range(99999), 1) }}", "the method 'fromkeys'"),
    "attributes of XML": ("{{ {'a': 1} | xmlattr }}", "the filter 'xmlattr', whose work is unbounded"),
    "a doubled text": (doubled("{% set ns.s = ns.s ~ ", " %}"), WORK),
    "an added text": (doubled("{% set ns.s = ns.s + ", " %}"), WORK),
    "a text doubled without a loop": ("{% set a = 'ab' %}" + "{% set a = a ~ a %}" * 60, WORK),
    "a block doubled without a loop": ("{% set a %}a{% endset %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60, WORK),
    "a list doubled": (doubled("{% set ns.s = ns.s + ", " %}", "['a' * 9999]"), WORK),
    "a list that holds itself twice": (doubled("{% set ns.s = [ns.s, ", "] %}", "['a' * 9999]"), WORK),
    "a mapping that holds itself twice": (doubled("{% set ns.s = dict(a=ns.s, b=", ") %}", "['a' * 9999]"), WORK),
    "a joined list": (BIG + "{% set l = [b] * 9 %}{{ (l + l + l) | join }}", WORK),
    "a long separator": ("{{ range(9999) | join('x' * 1000000) }}", WORK),
    "a long separator of a method": (BIG + "{{ b.join(range(9999) | map('string')) }}", WORK),
    "replaced characters": (BIG + "{{ b.replace('x', b) }}", WORK),
    "replaced characters by the filter": (BIG + "{{ b | replace('x', b) }}", WORK),
    "a power": ("{{ 10 ** (10 ** 10) }}", "a number of more than 10000 bits"),
    "a number squared again and again": (doubled("{% set ns.s = ns.s * ", " %}", "10"), "a number of more than"),
    "added lists": ("{{ ([[1]] * 9000) | sum(start=[]) | length }}", WORK),
    "a text written again and again": (BIG + "{% for n in range(99) %}{{ b }}{% endfor %}", WORK),
    "an escaped text": (
        "{% autoescape true %}" + BIG + "{% for n in range(99) %}{{ b }}{% endfor %}{% endautoescape %}",
        WORK,
    ),
    "its own text again and again": ("{% for n in range(99) %}" + "x" * 500000 + "{% endfor %}", WORK),
    "a constant again and again": ("{% for n in range(99) %}{{ 'x' * 500000 }}{% endfor %}", WORK),
    "its own text in a macro": (
        "{% macro f() %}" + "x" * 500000 + "{% endmacro %}" + doubled("{% set ns.s = [f(), ", "] %}", "''"),
        WORK,
    ),
    "a text cut again and again": (BIG + "{% set a = b[1:] %}" * 99, WORK),
    "a list cut again and again": ("{% set l = [1] * 100000 %}" + "{% set a = l[1:] %}" * 99, WORK),
    "kept arguments": (doubled("{% set ns.s = [", ", cycler(*range(99999))] %}", "''"), WORK),
    "chance": ("{{ [1, 2] | random }}", "the filter 'random', which makes renderings differ"),
    "a very long template": ("{# " + "x" * 2**20 + " #}", "1048576 characters of template"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_costs_without_bounds_is_one_error(name: str) -> None:
    template, exceeded = HOSTILE[name]
    with pytest.raises(SettingsError) as error:
        render(chat_with(WRITTEN + template), PAIR, "")
    assert exceeded in str(error.value)
    assert f"the template of {sample_chat().template_file!r} exceeds a bound" in str(error.value)


def test_the_error_names_the_file_of_the_setting_before_any_conversation_is_read(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(WRITTEN + BIG + "{{ b * 100 }}")
    with pytest.raises(SettingsError, match=r"chat_template .or RM_CHAT_TEMPLATE.: the template of '.*template.jinja'"):
        load_chat_tokenizer(find_tokenizer(Settings(chat_template=str(path))))


def test_a_template_that_waits_for_a_content_is_found_out_there_and_in_no_other_way() -> None:
    chat = chat_with(WRITTEN + "{% if 'now' in messages[0].content %}" + HOSTILE["a doubled text"][0] + "{% endif %}")
    assert render(chat, PAIR, "") == f"user: {USER['content']}\nassistant: two words\n"
    now = [{"role": "user", "content": "now"}, REPLY]
    for way in (render, reference_text):
        with pytest.raises(SettingsError, match=WORK):
            way(chat, now, "")
    renderer = TemplateRenderer(chat)
    users = pa.array([message["content"] for message in (USER, USER, USER, USER, now[0])])
    with pytest.raises(SettingsError, match=WORK):
        renderer.pieces_for(("user", "assistant"), Columns([users, pa.array(["two words"] * 5)]))


def test_a_template_that_is_slow_on_a_very_long_conversation_refuses_that_one() -> None:
    """It writes all earlier messages before each one."""
    chat = chat_with("{% for m in messages %}{% for n in messages %}{{ n.content }}{% endfor %}{% endfor %}")
    assert render(chat, PAIR, "") == 2 * (str(USER["content"]) + str(REPLY["content"]))
    with pytest.raises(TemplateError, match="the template exceeds a bound: more work than writing"):
        render(chat, PAIR * 300, "")


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": [1, {"y": "é"}], "z": None}}}
PARAMETERS = {"type": "object", "properties": {"x": {"type": "array", "description": "d"}}, "required": ["x"]}
TOOLS = json.dumps([{"type": "function", "function": {"name": "f", "description": "d", "parameters": PARAMETERS}}])
CONVERSATIONS: list[list[dict[str, Any]]] = [
    PAIR,
    [{"role": "system", "content": "be brief"}, *PAIR, USER, {**REPLY, "reasoning_content": "because"}],
    [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "4", "tool_call_id": "a"}, REPLY],
]


@pytest.mark.parametrize("path", trl_templates(), ids=lambda path: path.stem)
def test_the_fields_templates_are_rendered_as_by_transformers(path: Path) -> None:
    chat = chat_with(path.read_text(encoding="utf-8"))
    for messages in CONVERSATIONS:
        for tools in ("", TOOLS):
            for prompt in (False, True):
                try:
                    expected = reference_text(chat, messages, tools, add_generation_prompt=prompt)
                except TemplateError:
                    continue
                assert render(chat, messages, tools, add_generation_prompt=prompt) == expected
