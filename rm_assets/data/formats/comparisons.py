"""Comparisons: two responses to one prompt and a verdict, in the field's spellings. No verdict is guessed.

Which response `"winner": "model_a"`, `"label": "A>B"` or `"preference": 2` beside `output_1` and `output_2` means is
plain. What `"label": 0` means is not: the first response, or that the second one lost? Such labels need the setting
`labels`, for example `{"label": {"0": "first", "1": "second"}}`. A number that names a response keeps that meaning,
unless the labels of its own column or file say another; whether numbers name responses at all is judged over all rows
of the shape (`rm_assets.data.formats.labels.consistency`).
"""

import functools
import json
import operator
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from rm_assets.data.formats.chosen_rejected import Common, preference, stated_margin
from rm_assets.data.formats.conversations.messages import Prompt, Reply, compared
from rm_assets.data.formats.field_names import LABELS, RESPONSES, SPELLINGS, Row, only_value, response_fields
from rm_assets.data.formats.labels.numbers import number_of
from rm_assets.data.formats.labels.strengths import Strength, read_strength
from rm_assets.data.formats.labels.words import ABSENT, SKIPPED, TIES, plain
from rm_assets.data.formats.preferences import Evidence, EvidenceKind, Format, ParsedLine, ParsingRules, PreferenceError
from rm_assets.data.formats.unknown_rows import missing_field
from rm_assets.data.tables.reasons import Reason
from rm_assets.display_text import as_code, shorten
from rm_assets.json_settings import Label


class ComparisonRecord(Common, kw_only=True):
    """`{"prompt": "...", "response_a": "...", "response_b": "...", "label": "A>B"}`, after its verdict is read.

    The size of its `preference_strength` is the margin, else the difference of `score_chosen` and `score_rejected` is.
    Responses may be whole conversations; then there needs to be no prompt.
    """

    prompt: Prompt | None = None
    response_a: Reply
    response_b: Reply
    label: Label
    preference_strength: float = 0.0


def from_comparison(record: ComparisonRecord, rules: ParsingRules) -> ParsedLine:
    """The preference that the verdict states; raises PreferenceError for a tie."""
    if record.label == "tie":
        raise PreferenceError(Reason.TIE, "the verdict prefers neither response")
    sides = (record.response_a, record.response_b)
    chosen, rejected = sides if record.label == "first" else reversed(sides)
    difference = stated_margin(record)
    pair = compared(record.prompt, chosen, rejected)
    return ParsedLine(
        preferences=[preference(record, Format.COMPARISON, pair, record.preference_strength or difference)]
    )


# --- the verdict: the label and the strength -----------------------------------------------------------------


class Verdict(NamedTuple):
    """Which response is better, by which strength, and what that tells of other rows; None where nobody said."""

    better: Label | None
    strength: float
    evidence: tuple[Evidence, ...]


_HIDDEN = frozenset({*LABELS, *SPELLINGS["preference_strength"]})


def with_label(row: Row, rules: ParsingRules) -> Row:
    """The row with its responses under `response_a` and `response_b`, its verdict as `label` and a size of it."""
    return with_verdict(row, rules, verdict_of(row, rules))


def with_verdict(row: Row, rules: ParsingRules, verdict: Verdict) -> Row:
    """The same, of a verdict that is known; raises PreferenceError where there is none."""
    fields = response_fields(row)
    assert fields is not None
    if verdict.better is None:
        raise _without_verdict(row, rules, verdict)
    others = {name: value for name, value in row.items() if name not in fields and name not in _HIDDEN}
    others["response_a"], others["response_b"] = row[fields[0]], row[fields[1]]
    return others | {"label": verdict.better, "preference_strength": verdict.strength}


def verdict_of(row: Row, rules: ParsingRules) -> Verdict:
    """What the label and the strength of a comparison say together; raises PreferenceError where they contradict.

    The error tells of other rows, too, as a verdict does.
    """
    fields = response_fields(row)
    assert fields is not None
    signs: list[Evidence] = []
    try:
        return _verdict(row, fields, rules, signs)
    except PreferenceError as error:
        error.evidence = (*signs, *error.evidence)
        raise


def _verdict(row: Row, fields: tuple[str, str], rules: ParsingRules, signs: list[Evidence]) -> Verdict:
    read: dict[str, Label | Literal["skipped"]] = {}
    for name in LABELS:
        if name in row:
            reading = read_label(row[name], _LabelColumn(name, fields, rules))
            if reading.better:
                read[name] = reading.better
            if reading.sign:
                signs.append(reading.sign)
    label = only_value(read, "label") if read else None
    if label == "skipped":
        return Verdict(None, 0.0, tuple(signs))
    strength = _strength_of(row, fields, rules, next(iter(read), None), label)
    if strength is None or strength.better is None:
        return Verdict(label, 0.0, tuple(signs))
    if strength.sign:
        signs.append(strength.sign)
    if label is not None and strength.better != label:
        problem = "`label` and `preference_strength` differ; the setting columns says which is `label`"
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, problem)
    return Verdict(strength.better, strength.margin, tuple(signs))


def _without_verdict(row: Row, rules: ParsingRules, verdict: Verdict) -> PreferenceError:
    """A field of a label that is there, but blank, is no damage."""
    columns: Mapping[Any, str] = rules.columns
    blank = next((name for name in (*LABELS, *SPELLINGS["preference_strength"]) if name in row), None)
    if blank is None:
        error = PreferenceError(Reason.MISSING_FIELD, f"two responses, but {missing_field('label', row)}")
    else:
        error = PreferenceError(Reason.UNLABELLED, f"{as_code(columns.get(blank, blank))} holds no verdict")
    error.evidence = verdict.evidence
    return error


def _strength_of(
    row: Row, fields: tuple[str, str], rules: ParsingRules, label_name: str | None, label: Label | None
) -> Strength | None:
    given = {name: row[name] for name in SPELLINGS["preference_strength"] if name in row}
    value = number_of(only_value(given, "preference_strength"), "preference_strength") if given else None
    if value is None:
        return None
    name = next(iter(given))
    columns: Mapping[Any, str] = rules.columns
    shape = shape_of(name, fields, rules)
    if label_name:
        shape += f" beside {as_code(columns.get(label_name, label_name))}"
    scale = rules.column_labels.get(columns.get("preference_strength", name), {})
    return read_strength(value, shape, label, scale)


def shape_of(name: str, fields: tuple[str, str], rules: ParsingRules) -> str:
    """What rows are judged together by: the column of their verdict, and those of their responses."""
    columns: Mapping[Any, str] = rules.columns
    return _shape(*(columns.get(field, field) for field in (name, *fields)))


@functools.lru_cache(maxsize=1024)
def _shape(*columns: str) -> str:
    name, first, second = map(as_code, columns)
    return f"{name} of {first} and {second}"


# --- the label -----------------------------------------------------------------------------------------------

_STEM = re.compile(r"(?:response|model|output|answer|completion|conversation|assistant|option)?(.*?)(?:response)?")
_ORDER = re.compile(r"(.+?)(>+|<+|=+)(.+)")
_POSITIONS: dict[str, Label] = {"a": "first", "b": "second", "first": "first", "second": "second"}
_POSITIONS |= {"left": "first", "right": "second"}
_SIDES: tuple[Label, Label] = ("first", "second")
_NUMBER = re.compile(r"-?\d+|true|false", re.ASCII)
_FRACTION = re.compile(r"-?\d{1,9}\.\d{1,9}", re.ASCII)


class _LabelColumn(NamedTuple):
    """Where a label stands: its column, beside two responses."""

    name: str
    fields: tuple[str, str]
    rules: ParsingRules

    @property
    def own_name(self) -> str:
        """The column as the file names it."""
        columns: Mapping[Any, str] = self.rules.columns
        return columns.get(self.name, self.name)

    @property
    def shape(self) -> str:
        """The shape of the row."""
        return shape_of(self.name, self.fields, self.rules)

    def meanings(self) -> tuple[Mapping[str, Label], Mapping[str, Label]]:
        """What the setting says of labels: those of this column or file, and of all others that have no own ones."""
        own = self.rules.column_labels.get(self.own_name)
        if own is None and self.rules.labels_are_own:
            own = self.rules.labels
        return ({}, self.rules.labels) if own is None else (own, {})

    def positions(self) -> Mapping[str, Label]:
        """What names a response plainly: `a`, `first`, or its field, which is its own column where it has one."""
        columns: Mapping[Any, str] = self.rules.columns
        return _positions(self.fields, tuple(columns.get(field, field) for field in self.fields))

    def numbers(self) -> dict[str, Label]:
        """The numbers that name a response: 1 and 2 for `output_1` and `output_2`."""
        suffixes = RESPONSES[self.fields]
        return dict(zip(suffixes, _SIDES, strict=True)) if suffixes[0].isdigit() else {}


@functools.lru_cache(maxsize=1024)
def _positions(*names: tuple[str, str]) -> Mapping[str, Label]:
    """Those of the fields, and of their columns, which count more."""
    of_names = (dict(zip(map(plain, fields), _SIDES, strict=True)) for fields in names)
    return functools.reduce(operator.or_, of_names, _POSITIONS)


class Reading(NamedTuple):
    """Which response a label prefers, None where it says nothing, and what that tells of other rows."""

    better: Label | Literal["skipped"] | None
    sign: Evidence | None = None


def read_label(value: Any, column: _LabelColumn) -> Reading:
    """Which response a label prefers. `"[[A>>B]]"`, `"model_a"` and `"A"` are the first, `"tie (bothbad)"` a tie."""
    if value in ([], {}):
        return Reading(None)
    if not isinstance(value, str | int | float):
        raise PreferenceError(Reason.WRONG_TYPE, f"{as_code(column.own_name)} is neither a text nor a number")
    word = _word(value)
    if _NUMBER.fullmatch(word):
        return _read_number(word, column)
    for meanings in column.meanings():
        if word in meanings:
            return Reading(meanings[word])
    word = plain(word)
    order = _ORDER.fullmatch(word)
    if not order:
        return _read_word(word, column)
    left, right = (_position(side, column) for side in order.group(1, 3))
    if left.better == right.better:
        raise PreferenceError(Reason.WRONG_TYPE, "a label that compares a response with itself")
    better = "tie" if "=" in order[2] else left.better if ">" in order[2] else right.better
    return Reading(better, left.sign or right.sign)


def _read_word(word: str, column: _LabelColumn) -> Reading:
    if word in ABSENT:
        return Reading(None)
    if word in SKIPPED:
        return Reading("skipped")
    return Reading("tie") if word in TIES else _position(word, column)


def _read_number(word: str, column: _LabelColumn) -> Reading:
    """A number: as the labels of its own column or file have it, else as a response's name, else by the others."""
    (own, flat), numbers = column.meanings(), column.numbers()
    named = numbers.get(word)
    better = own.get(word) or named or flat.get(word)
    if better is None:
        raise _unclear(word, column)
    if word in own or not named:
        kind = EvidenceKind.OWN if word in own else EvidenceKind.OTHER
        tells = bool(numbers) and better != named and (named or better != "tie")
    else:
        kind, tells = EvidenceKind.NAMED, flat.get(word) != named
    return Reading(better, Evidence(column.shape, kind, word) if tells else None)


def _unclear(word: str, column: _LabelColumn) -> PreferenceError:
    shown = word if len(word) <= 20 else "a long number"
    problem = f"{column.shape} is {shown}, which may mean either; {label_advice(column.own_name)}"
    error = PreferenceError(Reason.AMBIGUOUS_LABEL, problem)
    error.evidence = (Evidence(column.shape, EvidenceKind.UNCLEAR, shown),)
    return error


def label_advice(name: str) -> str:
    """How to say what the numbers of a column mean."""
    example = json.dumps({shorten(name): {"0": "first", "1": "second"}}, ensure_ascii=False)
    return f"the setting labels says which, by the column: {example}"


def _word(value: str | float) -> str:
    """A label as the setting spells it: `1.0` and `"1.0"` are `1`, `true` and `True` are `true`."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return re.sub(r"^\+?(-?\d+)\.0+$", r"\1", str(value).strip().lower())


def _position(word: str, column: _LabelColumn) -> Reading:
    stem = _STEM.fullmatch(word)
    name = stem[1] if stem else word
    positions, numbers = column.positions(), column.numbers()
    if word in positions or name in positions:
        return Reading(positions.get(word) or positions[name])
    if name in numbers:
        return Reading(numbers[name], Evidence(column.shape, EvidenceKind.NAMED, name))
    if _NUMBER.fullmatch(name):
        raise _unclear(name, column)
    found = word if _FRACTION.fullmatch(word) else f"a word of {len(word)} letters"
    problem = (
        f"{as_code(column.own_name)} is {found}, which is no known label; the setting labels can say what it means"
    )
    raise PreferenceError(Reason.WRONG_TYPE, problem)
