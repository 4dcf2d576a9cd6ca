"""Arrow parses a line exactly as `simple_pair` does, or leaves it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import plain_row, rejects, silent, write_lines

from rm_assets.data.formats import message_batches
from rm_assets.data.formats.fast_path import simple_pair
from rm_assets.data.formats.message_batches import parse_messages
from rm_assets.data.formats.preferences import Format
from rm_assets.data.stages import statements
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.data.tables import schemas
from rm_assets.settings import Settings


@pytest.fixture(autouse=True, scope="module")
def halve_to_single_lines() -> Iterator[None]:
    """Otherwise one damaged line of a short batch would leave all of it to others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(message_batches, "_MIN_LINES", 1)
        yield


TEXT = st.sampled_from(["a", "b: c", "{}", '}\n{"', "\u00e9", "\U0001f600", "\u3042", " d", "\u3000e", "\x00"])
BLANK = st.sampled_from(["", " ", "\n", "\u00a0", "\u3000 ", "\x85"])
TOKENS = [
    "",
    '"',
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "}{",
    "{}",
    "null",
    "5",
    "\\u003a",
    "\\ud800",
    "\r",
    "\x00",
    "\t",
    "\\",
]


def messages(*contents: str, first: str = "user") -> list[dict[str, str]]:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(contents)]


def line(row: dict[str, Any], *, escaped: bool = False) -> str:
    return json.dumps(row, ensure_ascii=escaped)


@st.composite
def sound_rows(draw: st.DrawFn) -> dict[str, Any]:
    prompt = messages(*(draw(TEXT) for _ in range(draw(st.sampled_from([1, 3])))))
    if draw(st.booleans()):
        prompt.insert(0, {"role": "system", "content": draw(TEXT)})
    sides = {side: messages(draw(TEXT), first="assistant") for side in ("chosen", "rejected")}
    return dict(draw(st.permutations([("prompt", prompt), *sides.items()])))


@st.composite
def odd_rows(draw: st.DrawFn) -> dict[str, Any]:
    row = draw(sound_rows())
    side = draw(st.sampled_from(["prompt", "chosen", "rejected"]))
    message = row[side][0]
    changes: list[dict[str, Any]] = [
        {side: draw(st.sampled_from([None, "a", [], [None], 5, {}]))},
        {side: [message | {"content": draw(BLANK)}]},
        {side: [message | {"content": draw(st.sampled_from([None, 5, [], True]))}]},
        {side: [message | {"role": draw(st.sampled_from(["tool", "developer", "", None, "system", "assistant"]))}]},
        {side: [message | {"name": "ann"}]},
        {side: [message, message]},
        {"margin": 1.0},
        {"other": {"a": [1, {"b": None}]}},
        {"rejected": row["chosen"]},
    ]
    return row | draw(st.sampled_from(changes))


@st.composite
def damaged_lines(draw: st.DrawFn) -> str:
    text = line(draw(sound_rows()), escaped=draw(st.booleans()))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 8)))
        text = text[:start] + draw(st.sampled_from([*TOKENS, text[start:end] * 2])) + text[end:]
    return text


def lines() -> st.SearchStrategy[str]:
    halves = sound_rows().map(line).map(lambda text: text[: text.index('"content"')] + "}")
    several = st.tuples(sound_rows(), sound_rows()).map(lambda rows: "".join(map(line, rows)))
    rows = st.one_of(sound_rows(), odd_rows())
    return st.one_of(
        st.builds(lambda row, escaped: line(row, escaped=escaped), rows, st.booleans()), damaged_lines()
    ) | (halves | several)


def parsed(texts: list[str]) -> dict[int, Any]:
    """The messages of the lines that Arrow parsed, by row."""
    found = parse_messages(pa.array(texts, pa.string()))
    if found is None:
        return {}
    rows = zip(*(side.to_pylist() for side in found.sides), strict=True)
    return dict(zip(found.is_parsed.nonzero()[0].tolist(), rows, strict=True))


def expected(text: str) -> Any:
    pair = simple_pair(text.encode("utf-8", "surrogatepass"))
    if pair is None or pair.format != Format.MESSAGES:
        return None
    sides = (pair.prompt, pair.chosen, pair.rejected)
    return tuple([{"role": role, "content": content} for role, content in zip(*side, strict=True)] for side in sides)


@given(sound_rows(), st.lists(lines(), max_size=6))
def test_what_arrow_parses_is_what_the_short_way_reads(first: dict[str, Any], others: list[str]) -> None:
    texts = [line(first), *others]
    for row, found in parsed(texts).items():
        assert found == expected(texts[row])


@given(st.lists(sound_rows(), min_size=1, max_size=5), st.booleans())
def test_usual_lines_are_parsed(rows: list[dict[str, Any]], escaped: bool) -> None:
    texts = [line(row, escaped=escaped) for row in rows]
    sound = {row: pair for row, text in enumerate(texts) if (pair := expected(text))}
    found = parsed(texts)
    if 0 not in sound:
        assert not found
        return
    # an escape that may be a colon's is left to the others, and so is one that follows a backslash
    assert found == {row: pair for row, pair in sound.items() if "\\u003" not in texts[row]}


SOUND = line(
    {
        "prompt": messages("Why?"),
        "chosen": messages("a", first="assistant"),
        "rejected": messages("b", first="assistant"),
    }
)


@pytest.mark.parametrize(
    "odd",
    [
        SOUND.replace('"chosen"', '"prompt": [], "chosen"'),
        SOUND.replace('"role": "user"', '"role": "system", "role": "user"'),
        SOUND.replace('"content": "Why?"', '"content": "Who", "content": "\\u003a\\u003a"'),
        SOUND.replace("Why?", "\\ud800"),
        SOUND.replace("Why?", "\t"),
        SOUND[:-1],
        SOUND + SOUND,
        SOUND + " x",
        "",
        "{}",
        "[]",
        "not JSON",
    ],
)
def test_one_odd_line_leaves_the_others_of_its_batch_parsed(odd: str) -> None:
    texts = [SOUND] * 700
    texts[500] = odd
    found = parsed(texts)
    assert 500 not in found
    assert len(found) == 699
    assert set(map(str, found.values())) == {str(expected(SOUND))}


def test_a_value_does_not_go_on_in_the_next_line() -> None:
    half = SOUND.index('"chosen"')
    opened = SOUND[:half].rstrip(" ,").removesuffix("]")
    assert opened.endswith("}")
    message = line(messages("What?")[0])
    # each time as many objects as lines, if lines counted for nothing
    assert [*parsed([SOUND, SOUND[:half], SOUND[half:], SOUND + SOUND])] == [0]
    assert [*parsed([SOUND, opened, message + "], " + SOUND[half:], SOUND + SOUND])] == [0]


def rows_of(snapshot: Snapshot) -> pa.Table:
    return read_table(snapshot.paths(), schemas.VALIDATED)


def test_a_stage_writes_the_same_with_and_without_arrow(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(number: int) -> dict[str, Any]:
        sides = {side: messages(f"{side} {number}", first="assistant") for side in ("chosen", "rejected")}
        usual = {"prompt": messages(f"question: {number}")} | sides
        if number % 7 == 3:
            return usual | {"margin": 1.5, "tools": []} if number % 2 else plain_row(number)
        return usual | {"rejected": sides["chosen"]} if number % 11 == 5 else usual

    write_lines(Path(settings.annotations_path) / "a.jsonl", map(row, range(400)))
    raw = publish_raw(settings, silent)
    with_arrow = publish_validated(settings, raw, silent)
    monkeypatch.setattr(statements, "parse_messages", lambda _: None)
    other = settings.model_copy(update={"storage": str(Path(settings.storage).with_name("other"))})
    without = publish_validated(other, publish_raw(other, silent), silent)
    assert rows_of(with_arrow).num_rows > 300
    assert with_arrow.manifest.snapshot == without.manifest.snapshot
    assert rejects(with_arrow) == rejects(without)
    assert [shard.stats for shard in with_arrow.manifest.shards] == [shard.stats for shard in without.manifest.shards]
