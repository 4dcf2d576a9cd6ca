"""Whatever names, orders, nulls and files the rows of a comparison come in, the same response is the better one."""

import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from parsed_rows import parse_row

from rm_assets.data.formats.field_names import LABELS, PROMPTS, RESPONSES, SPELLINGS
from rm_assets.data.formats.labels.consistency import (
    EvidenceCounts,
    count_evidence,
    evidence_by_source,
    refusals,
    unclear_labels,
)
from rm_assets.data.formats.parsing import parse_line
from rm_assets.data.formats.preferences import ParsingRules, PreferenceError
from rm_assets.data.tables.reasons import Reason

QUICK = settings(max_examples=150, derandomize=True)
SIDES = sorted(RESPONSES)
SCORES = list(zip(SPELLINGS["score_chosen"], SPELLINGS["score_rejected"], strict=True))
NULLS = sorted(
    {*LABELS, *SPELLINGS["preference_strength"], *SPELLINGS["score_chosen"], "margin", "system", "tools", "ranks"}
)


def spellings(fields: tuple[str, str], better: int) -> list[Any]:
    """Labels for one of two responses."""
    letter, other = ("A", "B") if better == 0 else ("B", "A")
    names = [
        fields[better],
        letter,
        letter.lower(),
        f"model_{letter}",
        f"[[{letter}]]",
        f"{letter}>{other}",
        f"{other} < {letter}",
    ]
    suffix = RESPONSES[fields][better]
    numbers = [suffix, int(suffix), float(suffix), f"{suffix}.0", f"output_{suffix}"] if suffix.isdigit() else []
    return [*names, ("first", "second")[better], *numbers]


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[dict[str, Any], int, tuple[str, str]]:
    """A row, which response is better in it, and the fields of both."""
    fields, better = draw(st.sampled_from(SIDES)), draw(st.integers(0, 1))
    column = draw(st.sampled_from([name for name in LABELS if name not in ("chosen",)]))
    row = {draw(st.sampled_from(PROMPTS)): "Name a tree.", fields[0]: "An oak.", fields[1]: "A fir."}
    row |= {column: draw(st.sampled_from(spellings(fields, better)))}
    if draw(st.booleans()):
        size = draw(st.sampled_from([1, 2.5, 3]))
        row |= {draw(st.sampled_from(SPELLINGS["preference_strength"])): -size if better == 0 else size}
    return row, better, fields


def better_of(row: dict[str, Any]) -> str | None:
    [pair] = parse_row(json.dumps(row))
    return pair.chosen[0].content


@QUICK
@given(case=comparisons(), data=st.data())
def test_no_spelling_order_or_null_changes_which_response_is_better(
    case: tuple[dict[str, Any], int, tuple[str, str]], data: st.DataObject
) -> None:
    row, better, fields = case
    expected = ("An oak.", "A fir.")[better]
    assert better_of(row) == expected
    nulls = [name for name in data.draw(st.lists(st.sampled_from(NULLS), unique=True)) if name not in row]
    reordered = dict(data.draw(st.permutations([*row.items(), *((name, None) for name in nulls)])))
    assert better_of(reordered) == expected
    swapped = row | {fields[0]: row[fields[1]], fields[1]: row[fields[0]]}
    assert better_of(swapped) == ("A fir.", "An oak.")[better]


@QUICK
@given(
    names=st.sampled_from(SCORES),
    values=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    written=st.sampled_from([int, float, str]),
)
def test_scores_of_any_spelling_agree_tie_or_contradict(
    names: tuple[str, str], values: tuple[int, int], written: Any
) -> None:
    def outcome(one: int, other: int) -> float | Reason:
        row = {"prompt": "q", "chosen": "x", "rejected": "y", names[0]: written(one), names[1]: written(other)}
        try:
            return parse_row(json.dumps(row))[0].margin
        except PreferenceError as error:
            return error.reason

    def expected(one: int, other: int) -> float | Reason:
        return one - other if one > other else Reason.TIE if one == other else Reason.SCORES_DISAGREE

    for one, other in (values, values[::-1]):
        assert outcome(one, other) == expected(one, other)


def judged(rows: list[tuple[str, dict[str, Any]]], rules: ParsingRules) -> tuple[set[int], set[int]]:
    """The rows in files that are held back for their labels, and those whose strengths are rejects."""
    signs: dict[str, EvidenceCounts] = {source: {} for source, _ in rows}
    shown = []
    for number, (source, row) in enumerate(rows):
        try:
            found = parse_line(json.dumps(row), rules).evidence
        except PreferenceError as error:
            found = error.evidence
        shown.append(found)
        for sign in found:
            count_evidence(signs[source], sign, number + 1, is_valid=True)
    by_source = evidence_by_source((source, msgspec.to_builtins(own)) for source, own in signs.items())
    unclear, refused = unclear_labels(by_source), refusals(by_source)
    held = {number for number, (source, _) in enumerate(rows) if source in unclear}
    return held, {
        number
        for number, found in enumerate(shown)
        for sign in found
        for refusal in refused
        if sign.shape == refusal.shape and sign.kind in refusal.kinds
    }


@QUICK
@given(
    labels=st.lists(st.sampled_from([0, 1, 2, "1", "2", 1.0]), min_size=1, max_size=6),
    strengths=st.lists(st.sampled_from([-2, 1, 3, 7]), max_size=4),
    flat=st.sampled_from([{}, {"0": "first", "1": "second"}, {"0": "tie"}, {"1": "first", "2": "second", "0": "tie"}]),
    data=st.data(),
)
def test_splitting_a_file_never_changes_a_verdict(
    labels: list[Any], strengths: list[int], flat: dict[str, Any], data: st.DataObject
) -> None:
    sides = {"prompt": "q", "output_1": "x", "output_2": "y"}
    rules = ParsingRules(labels=flat)
    numbers = [sides | {"label": label} for label in labels]
    scales = [sides | {"overall_preference": strength} for strength in strengths]
    files = data.draw(st.lists(st.sampled_from("abc"), min_size=len(labels), max_size=len(labels)))
    parts = data.draw(st.lists(st.sampled_from("def"), min_size=len(scales), max_size=len(scales)))
    whole = judged([("a", row) for row in numbers] + [("d", row) for row in scales], rules)
    split = judged([*zip(files, numbers, strict=True), *zip(parts, scales, strict=True)], rules)
    assert split[1] == whole[1]
    may_name_a_response = {number for number, label in enumerate(labels) if str(label)[0] != "0"}
    assert split[0] & may_name_a_response == whole[0] & may_name_a_response
    assert split[0] <= whole[0]
