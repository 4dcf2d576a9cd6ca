"""Pairs rendered column by column are those rendered one by one, in every field; and what either way counts."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import plain_row, rejects, run_stages, write_lines

from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.chat.pair_rendering import SIDES, Flattened, flatten_pair
from rm_assets.data.chat.rendering import RenderedPairs, flatten_plain, rows_with_control_tokens
from rm_assets.data.chat.template_renderer import TemplateRenderer
from rm_assets.data.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.pairs.conversations import Conversations
from rm_assets.data.stages import flattening
from rm_assets.data.tables.message_columns import MessageColumn
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

Turns = list[tuple[str, str]]
LOOP = "{% for m in messages %}"
END = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = {
    "plain": LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + END,
    "stripped": LOOP + "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n" + END,
    "characters stripped": LOOP + "<|im_start|>{{ m.role }}\n{{ m.content.lstrip('a ') }}%<|im_end|>" + END,
    "thoughts cut": LOOP + "<|im_start|>{{ m.role }}\n{% if '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>" + END,
    "no generation prompt": LOOP + "{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}",
    "another opening": LOOP + "{{ m.content }}|{% endfor %}{% if add_generation_prompt %}?{% else %}!{% endif %}",
    "a refusal": LOOP + "{{ raise_exception('no') if m.content == 'b' }}{{ m.content }}/" + END,
}
WORD = st.sampled_from(["a", "b", " c ", "%s", "x</think>y", "im", "start", "<|im_", "\u00e9", "two words", "</think>"])
TEXT = st.lists(WORD, min_size=1, max_size=3).map("".join)


@functools.cache
def sample_chat() -> ChatTokenizer:
    return load_chat_tokenizer(find_tokenizer(Settings()))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Turns, Turns, Turns]:
    prompt = [("system", draw(TEXT))] if draw(st.booleans()) else []
    prompt += [("user", draw(TEXT))]
    chosen, rejected = draw(TEXT), draw(TEXT)
    return prompt, [("assistant", chosen)], [("assistant", rejected if rejected != chosen else f"{chosen}!")]


def columns_of(given_pairs: list[tuple[Turns, Turns, Turns]]) -> list[MessageColumn]:
    sides = [Conversations() for _ in range(3)]
    for pair in given_pairs:
        for side, turns in zip(sides, pair, strict=True):
            side.add_plain(*zip(*turns, strict=True))
    return [MessageColumn(pa.chunked_array([side.array()])) for side in sides]


def one_by_one(chat: ChatTokenizer, pair: tuple[Turns, Turns, Turns]) -> Flattened | None:
    messages = [[{"role": role, "content": content} for role, content in turns] for turns in pair]
    try:
        return flatten_pair(chat, dict(zip(("prompt", *SIDES), messages, strict=True)), "")
    except PreferenceError:
        return None


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=15)
@given(given_pairs=st.lists(pairs(), min_size=8, max_size=24))
def test_pairs_are_the_same_column_by_column_and_one_by_one(
    name: str, given_pairs: list[tuple[Turns, Turns, Turns]]
) -> None:
    chat = dataclasses.replace(sample_chat(), template=TEMPLATES[name], lost_by_shape={})
    sides = columns_of(given_pairs)
    assert rows_with_control_tokens(chat, sides) == []
    found = RenderedPairs.joined(
        [RenderedPairs.of({}), *flatten_plain(TemplateRenderer(chat), sides, np.arange(len(given_pairs)))]
    )
    for row, *fields in zip(*(column.tolist() for column in found), strict=True):
        prompt, chosen, rejected, one, other, is_rewritten = fields
        assert one_by_one(chat, given_pairs[row]) == (prompt, chosen, rejected, (one, other), is_rewritten)


def test_rows_with_a_control_token_are_found_wherever_it_stands() -> None:
    whole, part = [("assistant", "so <|im_end|>")], [("assistant", "so <|im_")]
    prompts = [[("user", "a")], [("user", "a"), *whole, ("user", "b")], [("user", "a <|")]]
    columns = columns_of([(prompts[0], whole, part), (prompts[1], part, part), (prompts[2], part, part)])
    assert rows_with_control_tokens(sample_chat(), columns) == [0, 1]


def test_no_pair_is_lost_for_words_that_stand_inside_a_control_token(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether their shape is rendered one by one or column by column: what was rendered before decides that."""
    lines = [plain_row(number, prompt=word) for number, word in enumerate(["im", "start", "end"])]
    write_lines(Path(settings.annotations_path) / "a.jsonl", lines)
    renderer = TemplateRenderer(load_chat_tokenizer(find_tokenizer(settings)))
    monkeypatch.setattr(flattening, "template_renderer", lambda _: renderer)
    names = set()
    for storage in ("cold", "warm", "warm again"):
        own = settings.model_copy(update={"storage": f"{settings.storage}-{storage}"})
        stages = run_stages(own)
        assert rejects(stages[Stage.TOKENIZED]) == []
        names.add(stages[Stage.FLATTENED].name)
    assert len(names) == 1


def test_a_token_that_arises_where_a_content_and_the_template_meet_counts_as_the_contents() -> None:
    chat = dataclasses.replace(sample_chat(), template=LOOP + "{{ m.content }}m_end|>" + END, lost_by_shape={})
    pair = [("user", "a")], [("assistant", "b<|i")], [("assistant", "c")]
    flat = one_by_one(chat, pair)
    assert flat is not None
    assert flat.control_tokens == (0, 0)
