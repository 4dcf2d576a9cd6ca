"""Unicode normal forms of any text in linear time: what they are, and the work that they take."""

import sys
import unicodedata
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from normalization import NORMALIZE, counted_steps, num_steps
from support import keys_of

from rm_assets.data.formats.preferences import Format, Message, Preference
from rm_assets.data.pairs.contamination import prompt_grams
from rm_assets.data.pairs.normal_form import normal_form, normal_texts, normalize
from rm_assets.data.tables.ragged import Texts

Form = Literal["NFC", "NFKC"]
ABOVE, BELOW, OVERLAY = "\u0301", "\u0316", "\u0338"  # of the classes 230, 220 and 1
# Marks of many classes, marks that are two marks, marks without a class, and what is composed of letters and marks
MARKS = f"{ABOVE}{BELOW}{OVERLAY}\u0344\u0345\u0f73\u0f75\u0f81\u0f71\uff9e\uff9f\u3099\u0e38\u05b4\U0001d165\U0001e8d0"
LETTERS = "ae字 ﾊ\u00e9\u1f82\u1ea5\u0958\u212b\u1112\u1161\u11ab\ufdfa\ufb2c"
RUNS = st.lists(st.text(MARKS, min_size=31, max_size=300), min_size=1, max_size=4)


@given(st.sampled_from(["NFC", "NFKC"]), RUNS, st.lists(st.text(MARKS + LETTERS, max_size=40), min_size=5, max_size=5))
def test_runs_of_marks_have_the_normal_form_that_unicode_gives_them(
    form: Form, runs: list[str], texts: list[str]
) -> None:
    text = "".join(part for pair in zip(texts, [*runs, ""], strict=False) for part in pair) + 300 * "a"
    assert normalize(form, text) == unicodedata.normalize(form, text)


@given(st.sampled_from(["NFC", "NFKC"]), st.text())
def test_any_text_has_the_normal_form_that_unicode_gives_it(form: Form, text: str) -> None:
    for repeated in (text, 300 * text):
        assert normalize(form, repeated) == unicodedata.normalize(form, repeated)


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_every_character_that_becomes_marks_is_counted_as_one(form: Form, work: list[int]) -> None:
    decomposed = {mark: NORMALIZE(form.replace("C", "D"), mark) for mark in map(chr, range(sys.maxunicode + 1))}
    marks = [mark for mark, text in decomposed.items() if unicodedata.combining(text[0])]
    assert len(marks) > 900
    text = "a" + "".join(marks) * 3
    assert normalize(form, text) == NORMALIZE(form, text)
    assert sum(work) < 5 * len(text)


# --- the work ------------------------------------------------------------------------------------------------


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of each call that normalizes a text, in the order of the calls."""
    return counted_steps(monkeypatch)


def keys(text: str) -> object:
    sides = ((Message(role="assistant", content=reply),) for reply in ("yes", "no"))
    chosen, rejected = sides
    return keys_of(
        Preference(prompt=(Message(role="user", content=text),), chosen=chosen, rejected=rejected, format=Format.PLAIN)
    )


@pytest.mark.parametrize("mark", [ABOVE + BELOW, "\u0f73" + OVERLAY, "\u0344" + BELOW, "\U0001d165" + OVERLAY])
@pytest.mark.parametrize("use", [normal_form, keys, lambda text: prompt_grams([text])], ids=["form", "keys", "grams"])
def test_twice_as_many_marks_are_twice_the_work(use: object, mark: str, work: list[int]) -> None:
    found = []
    for num_marks in (1_000, 2_000):
        work.clear()
        use("a" + mark[0] * num_marks + mark[1] * num_marks + " " + (mark * num_marks))  # type: ignore[operator]
        found.append(sum(work))
    assert found[0] > 4_000
    assert found[1] < 2.5 * found[0]


def test_the_prompt_of_a_ranking_is_normalized_once(work: list[int]) -> None:
    text = "a " + (ABOVE + BELOW) * 1_000
    normal = normal_form(text).encode()
    once = sum(work)
    assert normal_texts(Texts.of([text] * 10)).content == normal * 10
    assert sum(work) == 2 * once


def test_the_steps_are_those_of_an_insertion_sort() -> None:
    assert num_steps("NFC", "a" + 3 * ABOVE + 4 * BELOW) == 1 + 7 + 3 * 4
    assert num_steps("NFC", "a" + 4 * BELOW + 3 * ABOVE + "b" + BELOW) == 1 + 7 + 2
    assert num_steps("NFC", "a\u0344" + BELOW) == 4 + 2
