"""Files of two lines a pair: by setting only, and a lost line never shifts the others."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import rejects, rows, run_stages, silent, violations, write_lines

from rm_assets.data.formats.preferences import Message, Preference, PreferenceError
from rm_assets.data.formats.two_lines import pairs_of_lines, parse_two_lines
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=20).filter(
    lambda text: text.strip() == text and "\n" not in text
)


def sides(number: int) -> list[object]:
    """The two lines of one pair, as transcripts."""
    return [{"text": f"\n\nHuman: {number}?\n\nAssistant: {reply} {number}."} for reply in ("Yes", "No")]


def nemo(system: str, user: str, reply: str, end: str = "") -> str:
    turns = f"<extra_id_0>System\n{system}\n<extra_id_1>User\n{user}\n<extra_id_1>Assistant\n{reply}\n{end}"
    return json.dumps({"text": turns})


@given(system=st.just("") | TEXT, user=TEXT, chosen=TEXT, rejected=TEXT, end=st.sampled_from(["", "<extra_id_1>"]))
def test_nemos_chat_comes_back_as_messages(system: str, user: str, chosen: str, rejected: str, end: str) -> None:
    rejected = rejected if rejected != chosen else chosen + "!"
    [pair] = parse_two_lines((1, nemo(system, user, chosen, end)), (2, nemo(system, user, rejected, end))).preferences
    opening = (Message(role="system", content=system),) if system else ()
    assert pair.prompt == (*opening, Message(role="user", content=user))
    assert pair.chosen == (Message(role="assistant", content=chosen),)
    assert pair.rejected == (Message(role="assistant", content=rejected),)
    lines = (1, nemo(system, user, rejected, end)), (2, nemo(system, user, chosen, end))
    [swapped] = parse_two_lines(*lines).preferences
    assert (swapped.chosen, swapped.rejected) == (pair.rejected, pair.chosen)


def test_lines_are_paired_by_their_order_in_the_file() -> None:
    assert list(pairs_of_lines([(4, "d"), (1, "a"), (3, None), (9, "e")])) == [
        ((1, "a"), (3, None)),
        ((4, "d"), (9, "e")),
    ]
    assert list(pairs_of_lines([(1, "a")])) == [((1, "a"), None)]


@pytest.fixture
def two_lines(settings: Settings) -> Settings:
    return settings.model_copy(update={"two_line_files": True, "max_malformed_fraction": 1.0, "shard_bytes": 150})


def several_pairs(prompt: str, num_pairs: int) -> list[Any]:
    """Lines of several pairs of one prompt."""
    return [
        {"text": f"\n\nHuman: {prompt}\n\nAssistant: {reply} {number}."}
        for number in range(num_pairs)
        for reply in ("Good", "Bad")
    ]


def first_stages(settings: Settings) -> dict[Stage, Snapshot]:
    raw = publish_raw(settings, silent)
    return {Stage.RAW: raw, Stage.VALIDATED: publish_validated(settings, raw, silent)}


def written(settings: Settings, lines: list[Any]) -> None:
    write_lines(Path(settings.annotations_path) / "a.jsonl", lines)


def test_pairs_are_read_whatever_the_shards_and_blank_lines(two_lines: Settings) -> None:
    lines = [line for number in range(20) for line in (*sides(number), b"")]
    written(two_lines, lines)
    stages = run_stages(two_lines)
    assert len(stages[Stage.RAW].manifest.shards) > 5
    found = rows(stages[Stage.VALIDATED])
    assert [row["chosen"][0]["content"] for row in found] == [f"Yes {number}." for number in range(20)]
    assert [row["line"] for row in found] == [3 * number + 1 for number in range(20)]
    assert set(violations(stages).values()) == {0}


def test_without_the_setting_such_lines_are_no_known_format(settings: Settings) -> None:
    lines = [*sides(1), {"prompt": "q", "chosen": "a", "rejected": "b"}]
    written(settings, lines)
    stages = run_stages(settings.model_copy(update={"max_malformed_fraction": 1.0}))
    assert [reject[2] for reject in rejects(stages[Stage.VALIDATED])] == ["unknown_format"] * 2


def test_a_line_that_is_no_text_costs_its_pair_and_no_other(two_lines: Settings) -> None:
    written(two_lines, [*sides(1), sides(2)[0], b"\xff", *sides(3), {"txt": 1}, sides(4)[1], *sides(5)])
    stages = run_stages(two_lines)
    assert [row["line"] for row in rows(stages[Stage.VALIDATED])] == [1, 5, 9]
    assert rejects(stages[Stage.VALIDATED]) == [
        ("a.jsonl", 3, "incomplete_pair"),
        ("a.jsonl", 7, "missing_field"),
        ("a.jsonl", 8, "missing_field"),
    ]
    assert set(violations(stages).values()) == {0}


def test_a_missing_line_makes_rejects_of_what_follows_and_never_a_wrong_pair(two_lines: Settings) -> None:
    lines = [line for number in range(10) for line in sides(number)]
    written(two_lines, lines[:5] + lines[6:])
    stages = run_stages(two_lines)
    assert [row["line"] for row in rows(stages[Stage.VALIDATED])] == [1, 3]
    reasons = [reject[2] for reject in rejects(stages[Stage.VALIDATED])]
    assert reasons == ["unshared_prompt"] * 14 + ["incomplete_pair"]
    assert set(violations(stages).values()) == {0}


@pytest.mark.parametrize("shard_bytes", [150, 2**20])
@pytest.mark.parametrize("spoil", ["lost", "torn", "doubled"])
@pytest.mark.parametrize("prompts", [1, 3])
def test_a_line_too_few_or_too_many_among_pairs_of_one_prompt_turns_none_round(
    two_lines: Settings, prompts: int, spoil: str, shard_bytes: int
) -> None:
    lines = [line for prompt in range(prompts) for line in several_pairs(f"{prompt}?", 6)]
    lines[7:8] = {"lost": [], "torn": [b'{"te', lines[7]], "doubled": [lines[7], lines[7]]}[spoil]
    written(two_lines, lines)
    stages = first_stages(two_lines.model_copy(update={"shard_bytes": shard_bytes}))
    assert rows(stages[Stage.VALIDATED]) == []
    assert list(stages[Stage.VALIDATED].manifest.facts["held_back"]) == ["a.jsonl"]
    assert set(violations(stages).values()) == {0}


@pytest.mark.parametrize("shard_bytes", [150, 2**20])
def test_a_reject_or_an_open_end_among_pairs_of_one_prompt_costs_its_own_pair_alone(
    two_lines: Settings, shard_bytes: int
) -> None:
    lines = [*several_pairs("a?", 3), *several_pairs("b?", 3), *sides(1)]
    lines[5] = b"\xff"
    written(two_lines, lines[:-1])
    stages = first_stages(two_lines.model_copy(update={"shard_bytes": shard_bytes}))
    assert [row["line"] for row in rows(stages[Stage.VALIDATED])] == [1, 3, 7, 9, 11]
    assert all(row["chosen"][0]["content"].startswith("Good") for row in rows(stages[Stage.VALIDATED]))


@pytest.mark.parametrize("spaces", [301, 302, 400])
@pytest.mark.parametrize("content", [b"", b'{"text": ""}'])
def test_a_line_too_long_that_begins_blank_is_a_line_of_its_pair(
    two_lines: Settings, content: bytes, spaces: int
) -> None:
    lines = several_pairs("a?", 12)
    lines[7] = b" " * spaces + content
    written(two_lines, lines)
    stages = first_stages(two_lines.model_copy(update={"max_line_bytes": 300}))
    found = rows(stages[Stage.VALIDATED])
    assert [row["line"] for row in found] == [number for number in range(1, 25, 2) if number != 7]
    assert all(row["chosen"][0]["content"].startswith("Good") for row in found)
    assert set(violations(stages).values()) == {0}


def test_a_blank_line_as_long_as_lines_may_be_is_no_line_of_a_pair(two_lines: Settings) -> None:
    lines = several_pairs("a?", 12)
    written(two_lines, [*lines[:7], b" " * 300 + b"\r", *lines[7:]])
    stages = first_stages(two_lines.model_copy(update={"max_line_bytes": 300}))
    assert [row["line"] for row in rows(stages[Stage.VALIDATED])] == [1, 3, 5, 7, *range(10, 26, 2)]
    assert rejects(stages[Stage.VALIDATED]) == []


def stated(first: dict[str, Any], second: dict[str, Any]) -> Preference:
    texts = [f"\n\nHuman: q\n\nAssistant: {reply}" for reply in "ab"]
    lines = [json.dumps({"text": text} | more) for text, more in zip(texts, (first, second), strict=True)]
    return parse_two_lines((1, lines[0]), (2, lines[1])).preferences[0]


def test_what_a_pair_has_besides_may_stand_in_either_line() -> None:
    tools = [{"name": "f"}]
    one = stated({"margin": 2, "system": "s"}, {"subset": "easy", "tools": tools, "history": [["u", "v"]]})
    assert (one.margin, one.subset, one.tools) == (2, "easy", '[{"name":"f"}]')
    assert [message.content for message in one.prompt] == ["s", "u", "v", "q"]
    assert stated({"margin": 2}, {"margin": 2.0}).margin == 2
    assert stated({"score_chosen": 3}, {"score_rejected": 1}).margin == 2


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ({"margin": 2}, {"margin": 3}, "ambiguous_field: the two lines have different values of `margin`"),
        ({"subset": "a"}, {"subset": "b"}, "ambiguous_field: .* `subset`"),
        ({"score_chosen": 1}, {"score_rejected": 3}, "scores_disagree: "),
        ({"margin": "2"}, {}, "wrong_type: a field other than `text` has the wrong type"),
    ],
)
def test_two_lines_that_contradict_each_other_are_rejects(first: Any, second: Any, problem: str) -> None:
    with pytest.raises(PreferenceError, match=problem):
        stated(first, second)
