"""The self-test of a fast tokenizer backend: texts to encode like the reference, and the result, kept in a file.

The texts are the same in every run, so that failures are reproducible: the text of every token, added tokens in
context, and random texts of all planes of Unicode, white space, contractions, mixed scripts and broken control tokens.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from rm_assets.data.storage.files import StorageError, read_file
from rm_assets.data.storage.writing import write_json

VERSION = 1
_NUM_FUZZED = 6_000

_SPACES = (
    *(" ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\r", "\r\n", "\t", " \n", "\n ", "\t\t", " \t\n "),
    *("\u00a0", "\u0085", "\u1680", "\u2003", "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"),
    *("\u000b", "\u000c", "\u001c", "\u001f", "\u180e", "\u200b", "\u200d", "\u2060", "\ufeff"),
)
_CONTRACTIONS = tuple(
    word + mark + end
    for word in ("it", "IT", "we", "é", "猫", "3", "")
    for mark in ("'", "’", "ʼ", "`")
    for end in ("s", "S", "t", "T", "re", "RE", "Ve", "m", "M", "ll", "LL", "d", "D", "ſ", "K", "x", "")
)
_WORDS = (
    *("the", "The", "THE", "tokenizer", "Tokenizer's", "camelCaseWord", "snake_case_word", "don't", "naïve", "façade"),
    *("Straße", "İstanbul", "ﬁn", "ſ", "K", "e\u0301", "a\u0328\u0301", "\u1112\u1161\u11ab", "한국어", "日本語"),
    *("中文", "汉字漢字", "カタカナ", "ｶﾞ", "ไทย", "ภาษา", "हिन्दी", "বাংলা", "தமிழ்", "עברית", "العربية", "فارسی"),
    *("русский", "Ελληνικά", "Ἀχιλλεύς", "ქართული", "հայերեն", "አማርኛ", "\u202eabc\u202c", "x\u0300\u0316\u0315"),
    *("👩\u200d👩\u200d👧", "🏳️\u200d🌈", "🇩🇪🇫🇷", "👍🏽", "☃️", "①②", "½", "Ⅷ", "²³", "𝟘𝟙", "𝒜𝓫", "𐍈", "𠜎", "🀄"),
    *("0", "7", "12", "123", "1234", "12345678", "3.14159", "1,000,000", "0x1F", "1e-5", "٣٤٥", "१२३", "一二三"),
    *("!", "!!!", "...", "…", "?!", "--", "—", "->", "=>", "==", "!=", "//", "/*", "*/", "#", "##", "`", "```", "$$"),
    *("(", ")", "[]", "{}", "<", ">", "</", "/>"),
    *("<|", "|>", "<|im_", "im_start|>", "<|endoftext", "[INST", "</s", "<s"),
    *("<think", "think>", "</think", "<tool_call", "<0x0A>", "▁"),
    *("Ġ", "Ċ", "##ing", "\ufffd", "\u0000", "\u0007", "\u007f"),
    *("https://example.org/a?b=c&d=%20", "user@example.org", "C:\\dir\\file.txt", "f(x)=x**2;", "\\n", "&amp;"),
)
_RANGES = (
    *((0x00, 0x7F), (0x80, 0x24F), (0x250, 0x36F), (0x370, 0x6FF), (0x700, 0xFFF), (0x1000, 0x1FFF)),
    *((0x2000, 0x2BFF), (0x2C00, 0x2FFF), (0x3000, 0x9FFF), (0xA000, 0xD7FF), (0xE000, 0xFFFF)),
    *((0x10000, 0x1FFFF), (0x20000, 0x2FFFF), (0x30000, 0x3FFFF), (0xE0000, 0xE01FF), (0x40000, 0x10FFFF)),
)


def self_test_texts(reference: Any) -> Iterator[str]:
    """All texts of the self-test for a tokenizer of transformers."""
    yield from ("", " ", "\n", "a")
    yield from reference.batch_decode([[number] for number in range(len(reference))])
    added = sorted({str(token) for token in reference.added_tokens_decoder.values()})
    for token in added:
        yield from (token, token * 2, f"a{token}b", f" {token} ", f"\n{token}\n\n", f"{token[:-1]} {token[1:]}")
        yield from (token.upper(), token.lower(), f"{token}1{token}", f"é{token}猫", f"  {token}  {token}  ")
    yield from fuzzed_texts(added, _NUM_FUZZED)


def fuzzed_texts(added_tokens: list[str], num_texts: int, seed: int = 0) -> Iterator[str]:
    """Random texts of up to some hundred characters, among them added tokens, whole and broken."""
    chance = random.Random(seed)
    draws: tuple[Callable[[], str], ...] = (
        lambda: chance.choice(_WORDS),
        lambda: chance.choice(_WORDS),
        lambda: chance.choice(_SPACES),
        lambda: " " + chance.choice(_WORDS),
        lambda: chance.choice(_CONTRACTIONS),
        lambda: _characters(chance, chance.randint(1, 8)),
        lambda: chance.choice((*_WORDS, *_SPACES))[:1] * chance.choice((2, 3, 4, 7, 16, 33)),
        lambda: _broken(chance, chance.choice(added_tokens)) if added_tokens else "",
    )
    for _ in range(num_texts):
        yield "".join(chance.choice(draws)() for _ in range(chance.randint(1, 24)))


def _characters(chance: random.Random, count: int) -> str:
    first, last = chance.choice(_RANGES)
    return "".join(chr(chance.randint(first, last)) for _ in range(count))


def _broken(chance: random.Random, token: str) -> str:
    return chance.choice((token, token, token[1:], token[:-1], token.swapcase(), token.replace("|", " |", 1)))


# --- the result, kept in a file ------------------------------------------------------------------------------


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a self-test: the first difference in words, or empty."""

    key: str
    difference: str


def self_tested(key: str, directory: Path | None, test: Callable[[], str]) -> str:
    """The difference that the self-test finds, read from a file if one of this key exists, and kept in it otherwise.

    If the file cannot be read or written, the test is run each time.
    """
    if directory is None:
        return test()
    path = directory / f"tokenizer-self-test-{key[:32]}.json"
    try:
        kept = msgspec.json.decode(read_file(path), type=Outcome)
        if kept.key == key:
            return kept.difference
    except (OSError, StorageError, msgspec.MsgspecError):
        pass
    outcome = Outcome(key=key, difference=test())
    with contextlib.suppress(OSError, StorageError):
        write_json(path, msgspec.to_builtins(outcome))
    return outcome.difference
