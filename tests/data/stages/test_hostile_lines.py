"""Lines that somebody wrote to take long: twice as much of anything is at most about twice the work.

Work is counted, not timed: lines of Python, calls of functions in C, and the steps of what is known to be slow in one
call. What fills megabytes stands in thousands here, as growth shows early.
"""

import functools
import gc
import json
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from normalization import counted_steps
from support import keys_of

from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.chat.pair_rendering import SIDES, flatten_pair, lost_parts, require_no_control_tokens
from rm_assets.data.chat.template_renderer import Columns, TemplateRenderer
from rm_assets.data.chat.tokenizer import ChatTokenizer, encode, load_chat_tokenizer
from rm_assets.data.formats.fast_path import simple_pair
from rm_assets.data.formats.parsing import parse_line
from rm_assets.data.formats.preferences import ParsingRules, Preference, PreferenceError
from rm_assets.data.formats.validity import require_valid
from rm_assets.data.pairs.contamination import prompt_grams
from rm_assets.settings import Settings

RULES = ParsingRules(labels={"x": "first"})


def text(content: str, **others: object) -> bytes:
    return json.dumps({"prompt": content, "chosen": "yes", "rejected": "no"} | others, ensure_ascii=False).encode()


def reply(content: object, **others: object) -> list[object]:
    return [{"role": "assistant", "content": content, **others}]


def compared(label: str) -> bytes:
    return text("q", chosen=None, rejected=None, response_a="a", response_b="b", label=label)


def number(digits: str) -> bytes:
    return b'{"prompt": "q", "chosen": "yes", "rejected": "no", "margin": %s}' % digits.encode()


LINES: dict[str, Callable[[int], bytes]] = {
    "combining marks": lambda n: text("a" + "\u0301" * n + "\u0316" * n),
    "marks that hide in letters": lambda n: text("a" + "\u0344\u0f73\u0316" * n),
    "one word": lambda n: text("a" * n),
    "words": lambda n: text("a " * n),
    "another alphabet": lambda n: text("ж " * n + "a"),
    "look-alikes": lambda n: text("\u0430b " * n),
    "ideographs": lambda n: text("字" * n),
    "invisible characters": lambda n: text("a\u200b" * n),
    "spaces": lambda n: text("a" + " " * n + "b"),
    "spaces at the end": lambda n: text("a" + " " * n),
    "other white space": lambda n: text("a" + "\u3000\t" * n + "b"),
    "newlines": lambda n: text("a" + "\n" * n + "b"),
    "indented newlines": lambda n: text("a" + "\n b" * n),
    "line separators": lambda n: text("a" + "\u2028" * n + "b"),
    "brackets": lambda n: text("[" * n + "<|" * n),
    "digits": lambda n: text("7" * n),
    "emoji": lambda n: text("👩\u200d" * n),
    "hangul": lambda n: text("\u1112\u1161\u11ab" * n),
    "expanding letters": lambda n: text("\ufdfa" * n),
    "escaped quotes": lambda n: text('"\\' * n),
    "colons": lambda n: text(":" * n),
    "markers without a turn": lambda n: text("\n\nHuman" * n),
    "turns": lambda n: text("\n\nHuman: a\n\nAssistant: b" * n + "\n\nHuman: c\n\nAssistant:"),
    "messages": lambda n: text(
        "", prompt=[{"role": role, "content": "a"} for role in ("user", "assistant") * n + ("user",)]
    ),
    "parts of a message": lambda n: text("q", chosen=reply([{"type": "text", "text": "a"}] * n)),
    "tool calls": lambda n: text("q", chosen=reply("a", tool_calls=[{"function": {"name": "f", "arguments": {}}}] * n)),
    "fields": lambda n: text("q", **{f"field {number}": number for number in range(n)}),
    "known fields": lambda n: text("q")[:-1] + b', "text": {"role": "user"}' * n + b"}",
    "an unknown list": lambda n: text("q", unknown=[{}] * n),
    "nested lists": lambda n: text("q")[:-1] + b', "unknown": ' + b"[" * n + b"]" * n + b"}",
    "digits of a number": lambda n: number("1" * n),
    "decimals of a number": lambda n: number("0." + "1" * n),
    "a label of signs": lambda n: compared("a" + ">" * n),
    "a label of one letter": lambda n: compared("a" * n),
    "a label of stems": lambda n: compared("response" * n),
    "history": lambda n: text("q", history=[["a", "b"]] * n),
    "messages in a text": lambda n: text("q", **{side: json.dumps(reply(side) * n) for side in ("chosen", "rejected")}),
    "quotes after a printed message": lambda n: text("[{'role': " + "'\"" * n, chosen="[{'role': " + "'\"" * n),
    "marks of NeMo's chat": lambda n: text("a" + "\n<extra_id_1>Assistant\na\n<extra_id_1>User\na" * n),
    "a prompt that the replies repeat": lambda n: text("a " * n, chosen="a " * n + "b", rejected="a " * n + "c"),
    "letters where JSON breaks off": lambda n: b'{"a": ' + b"N" * n,
}
MANY_MESSAGES = {
    "turns",
    "messages",
    "history",
    "messages in a text",
    "marks of NeMo's chat",
}  # how those are rendered is tested with the templates


@pytest.fixture(scope="module")
def chat() -> ChatTokenizer:
    return load_chat_tokenizer(find_tokenizer(Settings()))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of what is slow in one call: to normalize a text."""
    return counted_steps(monkeypatch)


def processed(line: bytes, chat: ChatTokenizer | None) -> None:
    """A line through all that looks at its texts."""
    simple_pair(line)
    try:
        for preference in parse_line(line, RULES).preferences:
            require_valid(preference)
            keys_of(preference)
            prompt_grams([message.content or "" for message in preference.prompt])
            if chat is not None:
                render(preference, chat)
    except PreferenceError:
        pass


def render(preference: Preference, chat: ChatTokenizer) -> None:
    sides = {
        side: [{"role": m.role, "content": m.content or ""} for m in getattr(preference, side)]
        for side in ("prompt", *SIDES)
    }
    require_no_control_tokens(chat, sides, preference.tools)
    flat = flatten_pair(chat, sides, preference.tools)
    encode(chat, [flat.prompt + flat.chosen, flat.prompt + flat.rejected])


def work(call: Callable[[], None], steps: list[int]) -> int:
    """Lines and calls that it takes, and the steps of slow calls."""
    count = 0

    def trace(frame: Any, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    def profile(frame: Any, event: str, argument: object) -> None:
        nonlocal count
        count += event == "c_call"

    steps.clear()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
        sys.settrace(None)
    return count + sum(steps)


@pytest.mark.parametrize("name", LINES)
def test_twice_as_much_is_twice_the_work(name: str, chat: ChatTokenizer, steps: list[int]) -> None:
    rendering = None if name in MANY_MESSAGES else chat
    processed(LINES[name](10), rendering)  # what is done once
    found = [work(lambda n=n: processed(LINES[name](n), rendering), steps) for n in (500, 1_000)]
    assert found[1] < 2.5 * found[0]


def test_the_work_of_two_loops_in_each_other_is_noticed(steps: list[int]) -> None:
    def loops(n: int) -> None:
        for _ in range(n):
            for _ in range(n):
                pass

    found = [work(lambda n=n: loops(n), steps) for n in (100, 200)]
    assert found[1] > 3.5 * found[0]


# --- what is kept from line to line --------------------------------------------------------------------------


def turns(number: int) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": "a"} for place in range(number)]


def read_plain(number: int) -> None:
    assert simple_pair(json.dumps({"prompt": turns(number), "chosen": reply("x"), "rejected": reply("y")}).encode())


def read_any(number: int) -> None:
    line = json.dumps({"prompt": turns(number + 100), "chosen": "x", "rejected": "y"})  # other lengths than above
    [preference] = parse_line(line, RULES).preferences
    require_valid(preference)


def render_many(number: int) -> None:
    roles = tuple(message["role"] for message in turns(number))
    renderer().pieces_for(roles, Columns([pa.array(["a"])] * number))
    lost_parts(renderer().chat, turns(number), "")


def compare_words(number: int) -> None:
    assert prompt_grams(["а" * 10 * number])  # Cyrillic


@functools.cache
def renderer() -> TemplateRenderer:
    return TemplateRenderer(load_chat_tokenizer(find_tokenizer(Settings())))


@pytest.mark.parametrize("read", [read_plain, read_any, render_many, compare_words])
def test_of_long_conversations_and_words_nothing_is_kept(read: Callable[[int], None]) -> None:
    read(1001)  # what is kept from one call to the next
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(1003, 1023, 2):
            read(number)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 40_000
