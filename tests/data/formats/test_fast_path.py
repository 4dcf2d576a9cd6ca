"""The short way reads a line exactly as the formats do, or leaves it to them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.data.formats.fast_path import SimplePair, simple_pair
from rm_assets.data.formats.parsing import parse_line
from rm_assets.data.formats.preferences import Format, Message, ParsingRules, Preference, PreferenceError
from rm_assets.data.formats.validity import require_valid

LIST = '[{"role": "assistant", "content": "%s"}]'
MARKED = ["Human: hi Assistant:", "hi\n<extra_id_1>Assistant\nho\n<extra_id_1>User\nso?", "[INST] hi", "Assistant: ho"]
REPEATED = [
    "hi my friend",
    "hi my friend: a",
    "hi my friend\n\nb",
    LIST % "a",
    LIST % "b",
    LIST.replace('"', "'") % "c",
]
TEXT = st.one_of(
    st.sampled_from(MARKED + REPEATED),
    st.sampled_from(["", " ", "a", "a: b", "\n\nHuman: hi", "Human: hi", "\n\nAssistant: ho", "\u00a0", 'x"y'])
    | st.text(max_size=8),
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "developer"]), "content": TEXT},
    optional={"name": st.sampled_from(["", "ann"])},
)
CONVERSATION = st.lists(MESSAGE, max_size=4)
WORDS = st.sampled_from(["a", "b: c", "Human: hi", 'x"y', "\u00e9", " d\n"])


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A row that is mostly sound, in one of four formats; then, often, one thing of it is changed."""
    num_turns = draw(st.integers(0, 2))
    turns = [{"role": role, "content": draw(WORDS)} for role in ("user", "assistant") * num_turns + ("user",)]
    if draw(st.booleans()):
        turns.insert(0, {"role": "system", "content": draw(WORDS)})
    replies = {side: {"role": "assistant", "content": draw(WORDS)} for side in ("chosen", "rejected")}
    texts = {side: reply["content"] for side, reply in replies.items()}
    beginning = "".join(f"\n\n{'Human' if t['role'] == 'user' else 'Assistant'}: {t['content']}" for t in turns)
    row: dict[str, Any] = draw(
        st.sampled_from(
            [
                {"prompt": turns} | {side: [reply] for side, reply in replies.items()},
                {side: [*turns, reply] for side, reply in replies.items()},
                {"prompt": turns[-1]["content"]} | texts,
                {side: f"{beginning}\n\nAssistant: {text}" for side, text in texts.items()},
                {"prompt": f"{beginning}\n\nAssistant:"} | {side: f" {text}" for side, text in texts.items()},
            ]
        )
    )
    changes = st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("prompt", "chosen", "rejected"), st.one_of(TEXT, CONVERSATION, st.none())),
            "margin": st.sampled_from([None, 1.0]),
            "subset": st.just("x"),
            "other": TEXT,
        },
    )
    return row | draw(st.one_of(st.just({}), changes))


def by_formats(line: bytes) -> Preference | None:
    """The one sound preference of a line; None where it states none."""
    try:
        [preference] = parse_line(line, ParsingRules()).preferences
        require_valid(preference)
    except PreferenceError:
        return None
    return preference


def as_preference(pair: SimplePair) -> Preference:
    sides = [
        tuple(Message(role=role, content=content) for role, content in zip(*side, strict=True))
        for side in (pair.prompt, pair.chosen, pair.rejected)
    ]
    return Preference(prompt=sides[0], chosen=sides[1], rejected=sides[2], format=pair.format)


def check(line: bytes) -> SimplePair | None:
    pair = simple_pair(line)
    if pair is not None:
        assert as_preference(pair) == by_formats(line)
    return pair


@given(rows(), st.booleans())
def test_what_the_short_way_reads_is_what_the_formats_read(row: dict[str, Any], escaped: bool) -> None:
    check(json.dumps(row, ensure_ascii=escaped).encode("utf-8", "surrogatepass"))


def sound(**changes: Any) -> bytes:
    turns = [{"role": "system", "content": "Be: kind."}, {"role": "user", "content": "Why?"}]
    sides = {side: [{"role": "assistant", "content": f"{side}: because"}] for side in ("chosen", "rejected")}
    return json.dumps({"prompt": turns, **sides} | changes).encode()


def conversations() -> bytes:
    row = json.loads(sound())
    return json.dumps({side: row["prompt"] + row[side] for side in ("chosen", "rejected")}).encode()


@pytest.mark.parametrize(
    ("line", "format_name"),
    [
        (sound(), Format.MESSAGES),
        (b'{"prompt": "q: r", "chosen": "a\\nb", "rejected": "\\u4f60"}', Format.PLAIN),
        (b'{"rejected": "b", "chosen": "a", "prompt": "Human to ape:"}', Format.PLAIN),
        (
            b'{"chosen": "\\n\\nHuman: q\\n\\nAssistant: a:", "rejected": "\\n\\nHuman: q\\n\\nAssistant: b"}',
            Format.TRANSCRIPT,
        ),
        (
            b'{"chosen": "\\n\\nHuman: q\\n\\nAssistant: a:", "rejected": "Human: q\\n\\nAssistant: b"}',
            Format.TRANSCRIPT,
        ),
        (conversations(), Format.CONVERSATIONS),
    ],
)
def test_usual_lines_take_the_short_way(line: bytes, format_name: Format) -> None:
    pair = check(line)
    assert pair is not None
    assert pair.format == format_name


@pytest.mark.parametrize(
    "line",
    [
        sound(margin=1.0),
        sound(tools=[]),
        sound(prompt=None),
        sound(prompt="q"),
        sound(chosen=[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]),
        sound(rejected=[{"role": "assistant", "content": " "}]),
        sound().replace(b"rejected: b", b"chosen: b"),
        sound().replace(b'"chosen"', b'"prompt": [], "chosen"'),
        sound().replace(b'"role": "user"', b'"role": "system", "role": "user"'),
        # a field given twice, and a colon that is escaped: as many colons as there should be
        sound().replace(b'"content": "Why?"', b'"content": "Who", "content": "\\u003a\\u003a"'),
        sound() + b" x",
        b'{"chosen": "a", "rejected": "b"}',
        b'{"chosen": "\\n\\nHuman: q", "rejected": "\\n\\nHuman: q\\n\\nAssistant: b"}',
        conversations().replace(b"rejected: ", b"chosen: "),
        b'{"chosen": [], "rejected": []}',
        b'{"prompt": "q", "chosen": "a", "rejected": "a"}',
        b"[" * 100_000,
    ],
)
def test_all_other_lines_are_left_to_the_formats(line: bytes) -> None:
    assert simple_pair(line) is None
