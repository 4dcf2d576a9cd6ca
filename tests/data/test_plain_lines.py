"""The short way reads a line exactly as the formats do, or leaves it to them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_assets.data.formats import PreferenceError, stated_by
from rm_assets.data.plain_lines import PlainPair, plain_pair
from rm_assets.data.preferences import Format, Message, ParsingRules, Preference
from rm_assets.data.soundness import require_sound

TEXT = st.one_of(
    st.sampled_from(["", " ", "a", "a: b", "\n\nHuman: hi", "Human: hi", "\n\nAssistant: ho", "\u00a0", 'x"y'])
    | st.text(max_size=8)
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "developer"]), "content": TEXT},
    optional={"name": st.sampled_from(["", "ann"])},
)
CONVERSATION = st.lists(MESSAGE, max_size=4)
USER, REPLY = ({"role": role, "content": "a:b"} for role in ("user", "assistant"))
SIDE = st.one_of(TEXT, CONVERSATION, st.just([REPLY]), st.just([USER, REPLY]), st.none())
ROW = st.fixed_dictionaries(
    {"prompt": SIDE, "chosen": SIDE, "rejected": SIDE},
    optional={"margin": st.sampled_from([None, 1.0]), "subset": st.just("x"), "other": TEXT},
)


def by_formats(line: bytes) -> Preference | None:
    """The one sound preference of a line; None where it states none."""
    try:
        [preference] = stated_by(line, ParsingRules()).preferences
        require_sound(preference)
    except PreferenceError:
        return None
    return preference


def as_preference(pair: PlainPair) -> Preference:
    sides = [
        tuple(Message(role=role, content=content) for role, content in zip(*side, strict=True))
        for side in (pair.prompt, pair.chosen, pair.rejected)
    ]
    return Preference(prompt=sides[0], chosen=sides[1], rejected=sides[2], format=pair.format)


def check(line: bytes) -> PlainPair | None:
    pair = plain_pair(line)
    if pair is not None:
        assert as_preference(pair) == by_formats(line)
    return pair


@given(ROW, st.booleans())
def test_what_the_short_way_reads_is_what_the_formats_read(row: dict[str, Any], escaped: bool) -> None:
    check(json.dumps(row, ensure_ascii=escaped).encode("utf-8", "surrogatepass"))


def sound(**changes: Any) -> bytes:
    turns = [{"role": "system", "content": "Be: kind."}, {"role": "user", "content": "Why?"}]
    sides = {side: [{"role": "assistant", "content": f"{side}: because"}] for side in ("chosen", "rejected")}
    return json.dumps({"prompt": turns, **sides} | changes).encode()


@pytest.mark.parametrize(
    ("line", "format_name"),
    [
        (sound(), Format.MESSAGES),
        (b'{"prompt": "q: r", "chosen": "a\\nb", "rejected": "\\u4f60"}', Format.PLAIN),
        (b'{"rejected": "b", "chosen": "a", "prompt": "Human to ape:"}', Format.PLAIN),
    ],
)
def test_usual_lines_take_the_short_way(line: bytes, format_name: Format) -> None:
    pair = check(line)
    assert pair is not None
    assert pair.format == format_name


REPEATED = b', "prompt": "again", "chosen"'


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
        b'{"prompt": "\\n\\nHuman: q\\n\\nAssistant:", "chosen": "a", "rejected": "b"}',
        b'{"prompt": "q", "chosen": "a", "rejected": "a"}',
        b"[" * 100_000,
    ],
)
def test_all_other_lines_are_left_to_the_formats(line: bytes) -> None:
    assert plain_pair(line) is None
