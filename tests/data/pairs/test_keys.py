"""What counts as the same pair, the same prompt and the same conversation."""

import itertools
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import keys_of

from rm_assets.data.formats.preferences import Format, Message, Preference
from rm_assets.data.pairs.normal_form import normal_form, normal_texts
from rm_assets.data.tables.ragged import Texts


def preference(*prompt: Message, chosen: str = "yes", rejected: str = "no", tools: str = "") -> Preference:
    sides = ((Message(role="assistant", content=text),) for text in (chosen, rejected))
    one, other = sides
    return Preference(prompt=prompt, chosen=one, rejected=other, tools=tools, format=Format.MESSAGES)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def test_conversations_are_equal_whatever_their_white_space_and_unicode_form() -> None:
    one, other, third = keys_of(
        preference(user("caf\u00e9  au lait\n")),
        preference(user("cafe\u0301 au lait")),
        preference(user("caf\u00e9 noir")),
    )
    assert one[1:] == other[1:]
    assert one.pair_id != other.pair_id
    assert not set(one) & set(third)


def test_code_that_differs_in_its_indentation_differs() -> None:
    one, other = keys_of(*(preference(user("q"), chosen=f"if a:\n  b\n{indent}c") for indent in ("", "  ")))
    assert one.chosen != other.chosen
    assert (one.prompt, one.rejected) == (other.prompt, other.rejected)


def test_each_key_is_of_its_own_side_and_of_the_prompt() -> None:
    one, other, swapped = keys_of(
        preference(user("q"), chosen="a", rejected="b"),
        preference(user("p"), chosen="a", rejected="b"),
        preference(user("q"), chosen="b", rejected="a"),
    )
    assert (one.chosen, one.rejected) == (swapped.rejected, swapped.chosen)
    assert len({one.chosen, one.rejected, other.chosen, other.rejected}) == 4


def test_the_prompts_key_is_of_the_system_message_and_the_first_user_turn_alone() -> None:
    system = Message(role="system", content="Be kind.")
    longer = (system, user("q"), Message(role="assistant", content="a"), user("again"))
    found = keys_of(preference(system, user("q")), preference(*longer), preference(user("q")))
    assert found[0].prompt == found[1].prompt != found[2].prompt


@pytest.mark.parametrize(
    "other",
    [
        (Message(role="user", content="q", name="ann"),),
        (Message(role="user", content="q", reasoning_content="hm"),),
        (Message(role="user", content="q"), Message(role="assistant", content="ann")),
        (Message(role="system", content="q"), Message(role="user", content="q")),
        (Message(role="user", content="q\0"),),
        (Message(role="user", content="q\0user\0"),),
    ],
)
def test_whatever_a_message_has_counts(other: tuple[Message, ...]) -> None:
    one, two = keys_of(preference(user("q")), preference(*other))
    assert one.chosen != two.chosen
    assert one.rejected != two.rejected


def test_tools_count() -> None:
    one, other = keys_of(preference(user("q")), preference(user("q"), tools='[{"name":"f"}]'))
    assert one.chosen != other.chosen


TEXTS = st.text(st.sampled_from("ab  \n\t\r\u00a0\u2028\u3000e\u0301\u00e9\0字"), max_size=12)


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=6))
def test_keys_are_equal_exactly_where_the_normal_forms_are(texts: list[tuple[str, str, str]]) -> None:
    found = keys_of(*(preference(user(prompt), chosen=chosen, rejected=rejected) for prompt, chosen, rejected in texts))
    forms = [tuple(map(normal_form, three)) for three in texts]
    for one, form in zip(found, forms, strict=True):
        for other, other_form in zip(found, forms, strict=True):
            assert (one.prompt == other.prompt) == (form[0] == other_form[0])
            assert (one.chosen == other.chosen) == (form[:2] == other_form[:2])
            assert (one.rejected == other.rejected) == (form[::2] == other_form[::2])


@given(st.lists(TEXTS, min_size=2, max_size=6))
def test_a_pair_has_the_same_keys_whatever_stands_beside_it(texts: list[str]) -> None:
    pairs = [preference(user(text)) for text in texts]
    assert keys_of(*pairs) == [keys_of(pair)[0] for pair in pairs]


@given(st.lists(st.one_of(TEXTS, st.text(max_size=80)), max_size=6))
def test_texts_have_one_normal_form_alone_and_in_a_batch(texts: list[str]) -> None:
    found = normal_texts(Texts.of(texts))
    encoded = [found.content[begin:end] for begin, end in itertools.pairwise(found.offsets)]
    assert encoded == [normal_form(text).encode("utf-8") for text in texts]


@pytest.mark.parametrize("spaces", [" " * 200, "\n" * 200, " \n" * 100, "\t \u3000"])
def test_long_white_space_at_the_ends_of_a_text_is_taken_off(spaces: str) -> None:
    texts = [f"{spaces}a{spaces}", spaces, f"b {spaces}", "c"]
    assert normal_texts(Texts.of(texts)).content == b"abc"


def test_all_below_u_0300_and_the_general_punctuation_but_for_spaces_is_in_nfc() -> None:
    texts = [chr(code) for code in (*range(0x300), *range(0x2002, 0x2040))]
    assert all(unicodedata.is_normalized("NFC", text) for text in texts)


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=6))
def test_pairs_have_the_same_id_exactly_where_they_have_the_same_texts(texts: list[tuple[str, str, str]]) -> None:
    found = keys_of(*(preference(user(prompt), chosen=chosen, rejected=rejected) for prompt, chosen, rejected in texts))
    for one, text in zip(found, texts, strict=True):
        for other, other_text in zip(found, texts, strict=True):
            assert (one.pair_id == other.pair_id) == (text == other_text)


def test_no_content_is_another_pair_than_an_empty_one() -> None:
    calls = [
        Message(role="assistant", content=content, tool_calls='[{"function":{"name":"f"}}]') for content in (None, "")
    ]
    one, other = keys_of(*(preference(user("q"), call) for call in calls))
    assert one.pair_id != other.pair_id
    assert one.chosen == other.chosen
