"""Rendering from pieces equals transformers' rendering, whatever a template does and whatever contents hold."""

import dataclasses
import functools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import trl_templates
from transformers import AutoTokenizer

from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.chat.pair_rendering import lost_parts
from rm_assets.data.chat.template_renderer import Columns, Roles, TemplateRenderer, plain_messages
from rm_assets.data.chat.tokenizer import (
    ChatTokenizer,
    TemplateError,
    load_chat_tokenizer,
    reference_text,
    with_frozen_date,
)
from rm_assets.settings import SAMPLE, Settings, SettingsError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAIR = ("user", "assistant")
Row = tuple[str, ...]
"""The contents of a conversation, message by message."""


@functools.cache
def sample_chat() -> ChatTokenizer:
    """The sample's tokenizer, with a beginning of sequence, which some templates want."""
    chat = load_chat_tokenizer(find_tokenizer(Settings()))
    reference = AutoTokenizer.from_pretrained(SAMPLE / "tokenizer", bos_token="<|im_start|>")
    return dataclasses.replace(chat, reference=reference)


def chat_with(template: str) -> ChatTokenizer:
    return dataclasses.replace(sample_chat(), template=template, lost_by_shape={})


def render_many(
    renderer: TemplateRenderer, roles: Roles, rows: Sequence[Row], prompt: bool = False
) -> list[str | None]:
    """The renderings of conversations of one shape; None for those that are left to transformers."""
    texts: list[str | None] = [None] * len(rows)
    columns = Columns([pa.array(contents, pa.string()) for contents in zip(*rows, strict=True)])
    for pieces, found in renderer.pieces_for(roles, columns, prompt):
        for row, text in zip(found, columns.take(found).join(pieces.parts).to_pylist(), strict=True):
            texts[row] = text
    return texts


def learnt(template: str, roles: Roles = PAIR, row: Row = ("two words", "three more words")) -> TemplateRenderer:
    """A renderer that has seen a shape often enough to learn it."""
    renderer = TemplateRenderer(chat_with(template))
    render_many(renderer, roles, [row] * 8)
    return renderer


def expected(chat: ChatTokenizer, roles: Roles, row: Row, prompt: bool = False) -> str | None:
    try:
        return reference_text(chat, plain_messages(roles, row), "", add_generation_prompt=prompt)
    except TemplateError:
        return None


# --- conversations that are hard on a template ---------------------------------------------------------------

FRAGMENTS = (
    *("hello", " world ", "\n", "\n\n", "", " ", "é", "猫", "\x00", "\ue000", "x", "X", "none", "False", "0", "17"),
    *("<think>", "</think>", "<think>\nhm\n</think>\n\n", "<tool_response>", "</tool_response>", "<tool_call>"),
    *("<|im_end|>", "<|im_start|>", "[INST]", "<|channel>", "<channel|>", "</s>", "system", "user", "/no_think"),
    *("%s", "%", "%%", "index", "{}", "{0}", "{{ x }}", "{% if %}", "\\n", "'", '"', "two words", "three more words"),
)


def row_of(chance: random.Random, length: int) -> Row:
    if chance.random() < 0.4:
        words = ("a", "good", "word", "and", "more")
        return tuple(" ".join(chance.choices(words, k=chance.randint(1, 9))) for _ in range(length))
    return tuple("".join(chance.choices(FRAGMENTS, k=chance.randint(0, 4))) for _ in range(length))


def conversations(seed: str, count: int) -> Iterator[tuple[Roles, Row, bool]]:
    chance = random.Random(seed)
    for _ in range(count):
        roles = ("system",) * (chance.random() < 0.3) + PAIR * chance.randint(1, 3)
        if chance.random() < 0.1:
            roles = tuple(chance.choices(("user", "assistant", "system", "tool", "x"), k=chance.randint(1, 4)))
        prompt = chance.random() < 0.3
        yield roles[: len(roles) - prompt] or roles, row_of(chance, len(roles[: len(roles) - prompt] or roles)), prompt


def share_of_fast(template: str, seed: str, count: int) -> float:
    """The share of hard conversations that are rendered fast, of shapes that were learnt on plain words before."""
    renderer = TemplateRenderer(chat_with(template))
    num_fast = num_renderable = 0
    for roles, row, prompt in conversations(seed, count):
        render_many(renderer, roles, [tuple(f"plain words {n}" for n in range(len(roles)))] * 4, prompt)
        [text] = render_many(renderer, roles, [row], prompt)
        truth = expected(renderer.chat, roles, row, prompt)
        num_renderable += truth is not None
        if text is not None:
            assert text == truth, (roles, row, prompt)
            num_fast += 1
    return num_fast / max(num_renderable, 1)


# --- templates -----------------------------------------------------------------------------------------------

TREATED = {
    "strips": CHATML.replace("m.content", "m.content | trim"),
    "strips what it has joined": CHATML.replace("{{ m.content }}", "{{ ('> ' + m.content + ' ') | trim }}"),
    "cuts earlier thoughts": CHATML.replace(
        "{{ m.content }}",
        "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
        "{% else %}{{ m.content }}{% endif %}",
    ),
    "adds a thought to the last reply": CHATML.replace(
        "{{ m.content }}", "{% if loop.last and not add_generation_prompt %}<think>\n{% endif %}{{ m.content }}"
    ),
    "merges the system message": (
        "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set ns.system = m.content %}{% else %}[{{ m.role }}]{% if loop.index0 < 2 and ns.system %}{{ ns.system ~ "
        "'\n\n' }}{% endif %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "writes contents in a macro": (
        "{% macro write(c) %}{% if c is string %}{{ c }}{% else %}{% for p in c %}{{ p.text }}{% endfor %}{% endif %}"
        "{% endmacro %}{% for m in messages %}{% set c = write(m.content) %}<{{ m.role }}>"
        "{% if c.startswith('<tool_response>') %}tool{% endif %}{{ c }}{% endfor %}"
    ),
    "leaves empty messages out": "{% for m in messages %}{% if m.content | trim | length > 0 %}{{ m.content }}|"
    "{% endif %}{% endfor %}",
    "says which messages are empty": "{% for m in messages %}{% if m.content | length == 0 %}nothing{% endif %}"
    "{{ m.content }}|{% endfor %}",
    "writes contents twice and backwards": "{% for m in messages | reverse %}{{ m.content }}%{% endfor %}"
    "{{ messages | map(attribute='content') | list | join('%s') }}",
    "asks for equality": "{% for m in messages %}{{ 'none!' if m.content == 'none' else m.content }}{% endfor %}",
}


@pytest.mark.parametrize("name", TREATED)
def test_templates_that_treat_contents_are_rendered_from_pieces(name: str) -> None:
    assert share_of_fast(TREATED[name], name, 300) > 0.8


HIDDEN_QUESTIONS = {
    "a key of a dictionary": "{{ {'x': 'found'}[m.content] }}",
    "a key in a dictionary": "{{ 1 if m.content in {'x': 1} else 2 }}",
    "a key through get": "{{ {'x': 'found'}.get(m.content, 'lost') }}",
    "an item of a list": "{{ 1 if messages[m.content] is defined else 2 }}",
    "a part of a literal": "{{ 1 if m.content in 'a hello world' else 2 }}",
    "an element of a list": "{{ 1 if m.content in ['x', 'hello'] else 2 }}",
    "the beginning of a literal": "{{ 1 if 'hello'.startswith(m.content) else 2 }}",
    "a captured block": "{% set c %}{{ m.content }}{% endset %}{{ 1 if 'x' in c else 2 }}",
    "a captured block that is filtered": "{% filter upper %}{{ m.content }}{% endfilter %}",
    "a joined text": "{{ 1 if (m.content ~ '!') == 'x!' else 2 }}",
    "a joined list": "{{ 1 if 'xX' in ([m.content, 'X'] | join) else 2 }}",
    "a length": "{{ m.content | length }}",
    "a length compared": "{{ 1 if m.content | length > 3 else 2 }}",
    "a character": "{{ m.content[0] }}",
    "a slice": "{{ m.content[:2] }}",
    "a loop over characters": "{% for c in m.content %}{{ c }}-{% endfor %}",
    "a format": "{{ '%s!' % m.content }}",
    "a format's filter": "{{ '%s!' | format(m.content) }}",
    "str.format": "{{ '{}!'.format(m.content) }}",
    "JSON": "{{ m | tojson }}",
    "the text of a list": "{{ [m.content] | string }}",
    "a number": "{{ m.content | int + 1 }}",
    "a count of parts": "{{ m.content.split('x') | length }}",
    "a middle part": "{{ m.content.split(' ')[1] }}",
    "words": "{{ m.content.split() | first }}",
    "a loop over parts": "{% for p in m.content.split('x') %}{{ loop.index }}{{ p }}{% endfor %}",
    "case": "{{ 1 if m.content | upper == 'X' else 2 }}",
    "a test of case": "{{ 1 if m.content is lower else 2 }}",
    "digits": "{{ 1 if m.content.isdigit() else 2 }}",
    "a place": "{{ m.content.find('x') }}",
    "order": "{{ 1 if m.content < 'hello' else 2 }}",
    "a selection": "{{ messages | selectattr('content', 'equalto', 'x') | list | length }}",
    "groups": "{{ messages | groupby('content') | list | length }}",
    "different contents": "{{ messages | map(attribute='content') | unique | list | length }}",
    "sorted contents": "{{ messages | map(attribute='content') | sort | first }}",
    "equal contents": "{{ 1 if m.content == messages[0].content else 2 }}",
    "equal messages": "{{ messages.index(m) }}",
    "a changed value": "{{ loop.changed(m.content) }}",
    "a default": "{{ m.content | default('nothing', true) }}",
    "a truth": "{{ m.content or 'nothing' }}",
    "an attribute that texts lack": "{{ 1 if m.content.text is defined else 2 }}",
    "an attribute that texts have": "{{ 1 if m.content.isdigit is defined else 2 }}",
    "kinds": "{{ [m.content is string, m.content is mapping, m.content is sequence, m.content is iterable] }}",
    "a replacement": "{{ m.content.replace('x', '%s') | replace('X', '%') }}",
    "the printed message": "{{ m }}",
    "a repetition": "{{ m.content * 2 }}",
    "a refusal": "{{ raise_exception('no') if 'x' in m.content }}{{ m.content }}",
    "an extremum": "{{ messages | map(attribute='content') | max }}",
    "an indentation": "{{ m.content | indent(2) }}",
    "escaping": "{{ m.content | e }}{{ m.content | safe }}",
}


@pytest.mark.parametrize("name", HIDDEN_QUESTIONS)
def test_no_question_about_a_content_goes_unnoticed(name: str) -> None:
    template = "{% for m in messages %}<{{ m.role }}>" + HIDDEN_QUESTIONS[name] + "{% endfor %}"
    renderer = learnt(template)
    rows = [row_of(random.Random(seed), 2) for seed in range(150)] + [(x, y) for x in FRAGMENTS for y in ("x", "", "a")]
    for row, text in zip(rows, render_many(renderer, PAIR, rows), strict=True):
        assert text is None or text == expected(renderer.chat, PAIR, row), row


@pytest.mark.parametrize("path", trl_templates(), ids=lambda path: path.stem)
def test_the_fields_templates_are_rendered_alike(path: Path) -> None:
    compare_with_a_template_of_the_field(path, 40)


@pytest.mark.soak
@pytest.mark.parametrize("path", trl_templates(), ids=lambda path: path.stem)
def test_the_fields_templates_are_rendered_alike_for_long(path: Path) -> None:
    compare_with_a_template_of_the_field(path, 5_000)


NOT_UNDERSTOOD = ("idefics3", "smolvlm", "llava_next")  # contents must be lists of parts there


def compare_with_a_template_of_the_field(path: Path, count: int) -> None:
    try:
        template = with_frozen_date(path.read_text(encoding="utf-8"), "2025-01-01")
    except SettingsError:
        pytest.skip("asks strftime_now for a format that is no literal")
    share = share_of_fast(template, path.stem, count)
    assert share == 0 if path.stem.startswith(NOT_UNDERSTOOD) else share > 0.7


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=20), st.sampled_from(sorted(TREATED)))
def test_any_contents_are_rendered_alike(rows: list[Row], name: str) -> None:
    renderer = learnt(TREATED[name])
    for row, text in zip(rows, render_many(renderer, PAIR, rows), strict=True):
        assert text is None or text == expected(renderer.chat, PAIR, row)


# --- what the renderer says ----------------------------------------------------------------------------------


def test_a_shape_has_one_way_per_answer_and_the_rest_goes_to_transformers() -> None:
    renderer = learnt(TREATED["cuts earlier thoughts"])
    rows = [("a", "b"), ("a", "<think>x</think>b"), ("<think>x</think>a", "b"), ("a", "b")]
    assert render_many(renderer, PAIR, rows) == [expected(renderer.chat, PAIR, row) for row in rows]
    assert render_many(renderer, PAIR, [("a", "b")] * 3, prompt=True) == [None] * 3  # not yet learnt


def test_a_conversation_that_the_template_refuses_is_left_to_transformers() -> None:
    renderer = learnt("{{ raise_exception('no') if 'x' in messages[0].content }}{{ messages[0].content }}")
    assert render_many(renderer, PAIR, [("a", "b"), ("x", "b"), ("c", "d")]) == ["a", None, "c"]


def test_a_difference_in_the_sample_turns_the_fast_way_off() -> None:
    renderer = learnt(CHATML)
    [text] = render_many(renderer, PAIR, [("a", "b")])
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    messages = plain_messages(PAIR, ("a", "b"))
    renderer.verify(messages, text)
    assert renderer.reason == ""
    renderer.verify(messages, text + " ")
    assert "of the roles ('user', 'assistant')" in renderer.reason
    assert render_many(renderer, PAIR, [("a", "b")]) == [None]


def test_what_a_template_leaves_out_of_a_shape_it_leaves_out_of_all_its_conversations() -> None:
    assert lost_parts(chat_with(CHATML), plain_messages(PAIR, ("a", "b")), "") == ()
    without_system = chat_with(CHATML.replace("in messages %}", "in messages if m.role != 'system' %}", 1))
    for _ in range(2):
        assert lost_parts(without_system, plain_messages(("system", *PAIR), ("s", "a", "b")), "") == ("message 1",)
    assert lost_parts(without_system, plain_messages(("system", *PAIR), ("", "a", "b")), "") == ()  # nothing to lose
