"""Comparisons: two responses to one prompt and a verdict, in the field's spellings. No verdict is guessed.

`"winner": "model_a"`, `"label": "A>B"`, and `"preference": 2` beside `output_1` and `output_2` are clear. `"label": 0`
is not: it may name the first response, or say that the first one is not better. Such labels need the setting `labels`,
for example `{"label": {"0": "first", "1": "second"}}`. A number that names a response keeps that meaning unless the
labels of its own column or file give it another. Whether numbers name responses at all is decided over all rows of the
shape (`rm_assets.data.formats.labels.consistency`).
"""

import functools
import json
import operator
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from rm_assets.data.formats.chosen_rejected import Common, preference, score_margin
from rm_assets.data.formats.conversations.messages import Prompt, Reply, split_sides
from rm_assets.data.formats.field_names import LABELS, RESPONSES, SPELLINGS, Row, only_value
from rm_assets.data.formats.labels.strengths import read_strength
from rm_assets.data.formats.labels.values import ABSENT, SKIPPED, TIES, number_of, plain
from rm_assets.data.formats.missing_fields import missing_field
from rm_assets.data.formats.preferences import Evidence, EvidenceKind, Format, ParsedLine, ParsingRules, PreferenceError
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


def from_comparison(record: ComparisonRecord, format_name: Format, rules: ParsingRules) -> ParsedLine:
    """The preference that the verdict states; raises PreferenceError for a tie."""
    if record.label == "tie":
        raise PreferenceError(Reason.TIE, "the verdict prefers neither response")
    sides = (record.response_a, record.response_b)
    chosen, rejected = sides if record.label == "first" else reversed(sides)
    difference = score_margin(record)
    pair = split_sides(record.prompt, chosen, rejected)
    return ParsedLine(preferences=[preference(record, format_name, pair, record.preference_strength or difference)])


# --- the verdict: the label and the strength -----------------------------------------------------------------

_VERDICTS = (*LABELS, *SPELLINGS["preference_strength"])


def read_verdict(row: Row, fields: tuple[str, str], rules: ParsingRules, evidence: list[Evidence]) -> Row:
    """The row with `response_a`, `response_b`, and its verdict as `label` and `preference_strength`.

    `fields` are the two responses. Raises PreferenceError where the label and the strength contradict each other, or
    where there is no verdict. What the verdict implies for other rows is appended to `evidence`, even before an error.
    """
    better, strength = _verdict(row, fields, rules, evidence)
    if better is None:
        raise _no_verdict(row, rules)
    others = {name: value for name, value in row.items() if name not in fields and name not in _VERDICTS}
    sides = {"response_a": row[fields[0]], "response_b": row[fields[1]]}
    return others | sides | {"label": better, "preference_strength": strength}


def _verdict(
    row: Row, fields: tuple[str, str], rules: ParsingRules, evidence: list[Evidence]
) -> tuple[Label | None, float]:
    """Which response is better and by how much; None where nobody judged."""
    labels: dict[str, Label | Literal["skipped"]] = {}
    for name in LABELS:
        if name in row and (better := read_label(row[name], _LabelColumn(name, fields, rules), evidence)):
            labels[name] = better
    label = only_value(labels, "label") if labels else None
    if label == "skipped":
        return None, 0.0
    given = {name: row[name] for name in SPELLINGS["preference_strength"] if name in row}
    value = number_of(only_value(given, "preference_strength"), "preference_strength") if given else None
    if value is None:
        return label, 0.0
    name = next(iter(given))
    shape = _shape(name, fields, rules)
    if labels:
        shape += f" beside {as_code(rules.column_of(next(iter(labels))))}"
    scale = rules.column_labels.get(rules.columns.get("preference_strength", name), {})
    better, strength = read_strength(value, shape, label, scale, evidence)
    if better is None:
        return label, 0.0
    if label is not None and better != label:
        problem = "`label` and `preference_strength` differ; name the right one as `label` in the setting columns"
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, problem)
    return better, strength


def _no_verdict(row: Row, rules: ParsingRules) -> PreferenceError:
    """The error of a row without a verdict; a label that is present but blank does not count as malformed."""
    blank = next((name for name in _VERDICTS if name in row), None)
    if blank is None:
        return PreferenceError(Reason.MISSING_FIELD, f"two responses, but {missing_field('label', row)}")
    return PreferenceError(Reason.UNLABELLED, f"{as_code(rules.column_of(blank))} contains no verdict")


def _shape(name: str, fields: tuple[str, str], rules: ParsingRules) -> str:
    """The shape that a row is judged with: the column of its verdict, and those of its responses."""
    return _shape_of_columns(*map(rules.column_of, (name, *fields)))


@functools.lru_cache(maxsize=1024)
def _shape_of_columns(*columns: str) -> str:
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
    """The column of a label, beside two responses."""

    name: str
    fields: tuple[str, str]
    rules: ParsingRules

    @property
    def own_name(self) -> str:
        """The column as the file names it."""
        return self.rules.column_of(self.name)

    @property
    def shape(self) -> str:
        return _shape(self.name, self.fields, self.rules)

    def meanings(self) -> tuple[Mapping[str, Label], Mapping[str, Label]]:
        """The labels of the settings: those of this column or file, and those that hold wherever there are none."""
        own = self.rules.column_labels.get(self.own_name)
        if own is None and self.rules.labels_are_own:
            own = self.rules.labels
        return ({}, self.rules.labels) if own is None else (own, {})

    def positions(self) -> Mapping[str, Label]:
        """What names a response plainly: `a`, `first`, or its field, which is its own column where it has one."""
        return _positions(self.fields, tuple(map(self.rules.column_of, self.fields)))

    def numbers(self) -> dict[str, Label]:
        """The numbers that name a response: 1 and 2 for `output_1` and `output_2`."""
        suffixes = RESPONSES[self.fields]
        return dict(zip(suffixes, _SIDES, strict=True)) if suffixes[0].isdigit() else {}


@functools.lru_cache(maxsize=1024)
def _positions(*names: tuple[str, str]) -> Mapping[str, Label]:
    """Those of the fields, and of their columns, which count more."""
    of_names = (dict(zip(map(plain, fields), _SIDES, strict=True)) for fields in names)
    return functools.reduce(operator.or_, of_names, _POSITIONS)


Meaning = Label | Literal["skipped"] | None
"""Which response a label prefers; None for an empty label."""


def read_label(value: Any, column: _LabelColumn, evidence: list[Evidence]) -> Meaning:
    """Which response a label prefers. `"[[A>>B]]"`, `"model_a"` and `"A"` are the first, `"tie (bothbad)"` a tie."""
    if value in ([], {}):
        return None
    if not isinstance(value, str | int | float):
        raise PreferenceError(Reason.WRONG_TYPE, f"{as_code(column.own_name)} is neither a string nor a number")
    word = _word(value)
    if _NUMBER.fullmatch(word):
        return _read_number(word, column, evidence)
    for meanings in column.meanings():
        if word in meanings:
            return meanings[word]
    word = plain(word)
    if not (order := _ORDER.fullmatch(word)):
        return _read_word(word, column, evidence)
    first, second = list[Evidence](), list[Evidence]()
    left, right = _position(order[1], column, first), _position(order[3], column, second)
    if left == right:
        raise PreferenceError(Reason.WRONG_TYPE, "the label compares a response with itself")
    evidence += first or second
    return "tie" if "=" in order[2] else left if ">" in order[2] else right


def _read_word(word: str, column: _LabelColumn, evidence: list[Evidence]) -> Meaning:
    if word in ABSENT:
        return None
    if word in SKIPPED:
        return "skipped"
    return "tie" if word in TIES else _position(word, column, evidence)


def _read_number(word: str, column: _LabelColumn, evidence: list[Evidence]) -> Label:
    """A number: by the labels of its own column or file, else as a response's name, else by the general labels."""
    (own, flat), numbers = column.meanings(), column.numbers()
    named = numbers.get(word)
    better = own.get(word) or named or flat.get(word)
    if better is None:
        raise _unclear(word, column, evidence)
    if word in own or not named:
        kind = EvidenceKind.OWN if word in own else EvidenceKind.OTHER
        is_evidence = bool(numbers) and better != named and (named or better != "tie")
    else:
        kind, is_evidence = EvidenceKind.NAMED, flat.get(word) != named
    if is_evidence:
        evidence.append(Evidence(column.shape, kind, word))
    return better


def _unclear(word: str, column: _LabelColumn, evidence: list[Evidence]) -> PreferenceError:
    shown = word if len(word) <= 20 else "a long number"
    evidence.append(Evidence(column.shape, EvidenceKind.UNCLEAR, shown))
    problem = f"{column.shape} is {shown}, which could mean either response; {label_advice(column.own_name)}"
    return PreferenceError(Reason.AMBIGUOUS_LABEL, problem)


def label_advice(name: str) -> str:
    """How to say what the numbers of a column mean."""
    example = json.dumps({shorten(name): {"0": "first", "1": "second"}}, ensure_ascii=False)
    return f"define these values in the setting labels, for example {example}"


def _word(value: str | float) -> str:
    """A label as the setting spells it: `1.0` and `"1.0"` are `1`, `true` and `True` are `true`."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return re.sub(r"^\+?(-?\d+)\.0+$", r"\1", str(value).strip().lower())


def _position(word: str, column: _LabelColumn, evidence: list[Evidence]) -> Label:
    stem = _STEM.fullmatch(word)
    name = stem[1] if stem else word
    positions, numbers = column.positions(), column.numbers()
    if word in positions or name in positions:
        return positions.get(word) or positions[name]
    if name in numbers:
        evidence.append(Evidence(column.shape, EvidenceKind.NAMED, name))
        return numbers[name]
    if _NUMBER.fullmatch(name):
        raise _unclear(name, column, evidence)
    found = word if _FRACTION.fullmatch(word) else f"a word of {len(word)} letter{'s' * (len(word) != 1)}"
    problem = f"{as_code(column.own_name)} is {found}, which is not a known label"
    raise PreferenceError(Reason.WRONG_TYPE, f"{problem}; define it in the setting labels")
