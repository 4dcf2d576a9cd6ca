"""Control tokens that the template writes are counted as the plain, quadratic definition counts them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.data.chat.control_counts import num_written
from rm_assets.data.formats.preferences import PreferenceError

TOKENS = ("<|im_start|>", "<|im_end|>", "<<", "<s>", "aba")
PATTERN = re.compile("|".join(map(re.escape, TOKENS)))
PIECE = st.sampled_from(["a", "b", " ", "<", "|", "<|", "im", "_end|>", "m_end|>", "<|i", "s>", "<s", "ab", "ba", ">"])
CONTENT = st.lists(PIECE, max_size=4).map("".join).filter(lambda content: not PATTERN.search(content))
BORDER = st.sampled_from(["<|im_start|>u\n", "<|im_end|>", "m_end|>", "<", "a", "\n", ""])


def stands_clear(content: str, text: str, tokens: list[tuple[int, int]]) -> bool:
    ends, starts = [0, *(last for _, last in tokens)], [*(first for first, _ in tokens), len(text)]
    return any(text.find(content, end, start) >= 0 for end, start in zip(ends, starts, strict=True))


def expected(text: str, contents: list[str]) -> int:
    """Every content is held against every token."""
    tokens = [match.span() for match in PATTERN.finditer(text)]
    spans, place = [], 0
    for content in contents:
        if content and not stands_clear(content, text, tokens) and (start := text.find(content, place)) >= 0:
            place = start + len(content)
            spans.append((start, place))
    return sum(not any(start < last and first < end for start, end in spans) for first, last in tokens)


@given(turns=st.lists(st.tuples(BORDER, CONTENT, BORDER), max_size=6), is_stripped=st.booleans())
def test_the_count_is_that_of_the_plain_definition(turns: list[tuple[str, str, str]], is_stripped: bool) -> None:
    contents = [content for _, content, _ in turns]
    text = "".join(before + (content.strip() if is_stripped else content) + after for before, content, after in turns)
    assert num_written(PATTERN, text, contents) == expected(text, contents)


def test_a_conversation_of_which_hundreds_of_messages_reach_into_tokens_is_refused() -> None:
    """`x 7 <` ends as a token begins, and another message, `x 7 `, stands before a token."""
    reaching = [f" x {n} <" for n in range(65)]
    texts = [f"y x {n} " for n in range(65)]
    text = "".join(f"{content}<|im_end|>" for content in texts)
    with pytest.raises(PreferenceError, match="65 messages would each be part of a control token"):
        num_written(PATTERN, text, [*texts, *reaching])
    assert num_written(PATTERN, text, [*texts, *reaching[:64]]) == 1  # "y x 64 " alone has no other beside it
