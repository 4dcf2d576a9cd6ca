"""What is shown of names that try to do something: to a terminal, to Markdown, or by their length."""

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from rm_assets.display_text import as_code, as_code_cell, one_line, printable, shorten

HOSTILE = [
    "![p](https:/host/x).jsonl",
    "[All fine](https:/evil.example)",
    "https://evil.example/a www.evil.example a@evil.example",
    "<img src=x onerror=alert(1)> &amp; <!-- x",
    "`", "``a`b```", "a`", " `a` ", "\\`", "\\", "a|b", "\\|", "|`|", "*a* _b_ ~~c~~ $x$", "# a", "    a", "- a",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a.jsonl, Ärger, 狗, שלום, 👩‍👧 – fine", "a.jsonl, Ärger, 狗, שלום, 👩‍👧 – fine"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("a\rb\nc\td\x00\x7f\x9b31m", r"a\rb\nc\td\x00\x7f\x9b31m"),
        ("\u202egnp.exe\u2066\u200f", r"\u202egnp.exe\u2066\u200f"),
        ("a\u2028b\ufeffc\u200bd\U000e0041", r"a\u2028b\ufeffc\u200bd\U000e0041"),
        ("\udcff", r"\udcff"),
    ],
)
def test_control_characters_are_shown_and_do_nothing(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_an_error_is_one_line() -> None:
    assert one_line(ValueError("first\n  second \x1b[31mred")) == r"first second \x1b[31mred"


def test_a_long_name_keeps_its_ends_and_stays_apart_from_one_of_the_same_ends() -> None:
    one, other = ("s" * 2_000_000 + sign + "e" * 1_000_000 for sign in "ab")
    assert len(shorten(one)) == 255
    assert shorten(one).startswith("sssss")
    assert shorten(one)[:-13] == shorten(other)[:-13]
    assert shorten(one) != shorten(other)
    assert shorten("n" * 255) == "n" * 255


@given(st.text(), st.integers(20, 60))
def test_a_name_is_never_longer_than_its_limit_and_always_one_printable_line(text: str, limit: int) -> None:
    shown = shorten(text, limit)
    assert len(shown) <= limit
    assert printable(shown) == shown
    assert len(shown.splitlines()) <= 1


def spans(markdown: str, rule: str) -> list[str]:
    """The contents of Markdown's code spans, once it is rendered as GitHub does, and nothing else is in it."""
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(markdown)
    plain = rendered.replace("<p>", "").replace("</p>", "").strip()
    for tag in ("table", "thead", "tbody", "tr", "th", "td"):
        plain = plain.replace(f"<{tag}>", "").replace(f"</{tag}>", "")
    parts = plain.split("<code>")
    assert [part.count("</code>") for part in parts] == [0, *[1] * (len(parts) - 1)]
    assert all("<" not in part.replace("</code>", "") for part in parts), rule
    return [html.unescape(part.split("</code>")[0]) for part in parts[1:]]


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_a_name_as_it_is(text: str) -> None:
    assert spans(f"Held back: {as_code(text)} (1 of 2), {as_code('b')}; the rule.", text) == [text, "b"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_of_a_markdown_table_shows_a_name_as_it_is(text: str) -> None:
    assert spans(f"| a | b |\n|---|---|\n| {as_code_cell(text)} | {as_code_cell('b')} |\n", text) == [text, "b"]


@given(st.text(max_size=25))
def test_whatever_a_name_is_markdown_finds_one_span_of_code(text: str) -> None:
    assert spans(f"a {as_code(text)} b", text) == [printable(text) or " "]
    assert spans(f"| a | b |\n|---|---|\n| {as_code_cell(text)} | c |\n", text) == [printable(text) or " "]
