"""Comparisons: two responses to one prompt and a verdict, in the field's spellings. No verdict is guessed.

Which response `"winner": "model_a"`, `"label": "A>B"` or `"preference": 2` beside `output_1` and `output_2` means is
plain. What `"label": 0` means is not: the first response, or that the second one lost? Such labels need the setting
`labels`, for example `{"0": "first", "1": "second"}`.
"""

import re
from collections.abc import Mapping
from typing import Any

from rm_assets.data.formats.chosen_rejected import Common, preference, stated_margin
from rm_assets.data.formats.field_names import LABELS, RESPONSES, Row, only_value, response_fields, with_one_name
from rm_assets.data.formats.messages import Prompt, Reply, compared
from rm_assets.data.formats.preferences import Format, ParsingRules, PreferenceError, Stated
from rm_assets.data.records import Reason
from rm_assets.settings import Label


class ComparisonRecord(Common, kw_only=True):
    """`{"prompt": "...", "response_a": "...", "response_b": "...", "label": "A>B"}`, after its label is read.

    With `preference_strength` (HelpSteer's, -3 to 3; negative: the first response is better) its absolute value is
    the margin, else the difference of `score_chosen` and `score_rejected` is.
    Responses may be whole conversations; then there needs to be no prompt.
    """

    prompt: Prompt | None = None
    response_a: Reply
    response_b: Reply
    label: Label | None = None
    preference_strength: float | None = None


def from_comparison(record: ComparisonRecord, rules: ParsingRules) -> Stated:
    """The preference that the verdict states; raises PreferenceError for a tie."""
    better = _agreed(record)
    if better == "tie":
        raise PreferenceError(Reason.TIE, "the verdict prefers neither response")
    sides = (record.response_a, record.response_b)
    chosen, rejected = sides if better == "first" else reversed(sides)
    difference = stated_margin(record)
    margin = abs(record.preference_strength or 0.0) or difference
    pair = compared(record.prompt, chosen, rejected)
    return Stated(preferences=[preference(record, Format.COMPARISON, pair, margin)])


def _agreed(record: ComparisonRecord) -> Label:
    verdicts: dict[str, Label] = {"label": record.label} if record.label else {}
    strength = record.preference_strength
    if strength is not None:
        verdicts["preference_strength"] = "tie" if strength == 0 else "first" if strength < 0 else "second"
    if not verdicts:
        raise PreferenceError(Reason.MISSING_FIELD, "two responses, but no field `label` that says which is better")
    agreed: Label = only_value(verdicts, "label")
    return agreed


# --- the label -----------------------------------------------------------------------------------------------

_TIES = {"tie", "tiebothbad", "bothbad", "bothgood", "both", "neither", "equal", "same", "draw"}
_STEM = re.compile(r"(?:response|model|output|answer|completion|conversation|assistant|option)?(.*?)(?:response)?")
_ORDER = re.compile(r"(.+?)(>+|<+|=+)(.+)")
_POSITIONS: dict[str, Label] = {"a": "first", "b": "second", "first": "first", "second": "second"}
_POSITIONS |= {"left": "first", "right": "second"}


def with_label(row: Row, rules: ParsingRules) -> Row:
    """The row with its responses under `response_a` and `response_b`, and its label as first, second or tie."""
    fields = response_fields(row)
    assert fields is not None
    own_names: dict[str, Label] = {_plain(fields[0]): "first", _plain(fields[1]): "second"}
    positions = _POSITIONS | _numbered(RESPONSES[fields], rules.labels) | own_names
    given = {name: read_label(row[name], positions, rules.labels) for name in LABELS if name in row}
    row = with_one_name(row, "preference_strength")
    others = {name: value for name, value in row.items() if name not in (*fields, *LABELS)}
    sides = {"response_a": row[fields[0]], "response_b": row[fields[1]]}
    return others | sides | ({"label": only_value(given, "label")} if given else {})


def _numbered(suffixes: tuple[str, str], labels: Mapping[str, Label]) -> dict[str, Label]:
    """The numbers that name a response: 1 and 2 for `output_1`, `output_2`, unless the setting reads numbers."""
    if not suffixes[0].isdigit() or any(label.isdigit() for label in labels):
        return {}
    return {suffixes[0]: "first", suffixes[1]: "second"}


def read_label(value: Any, positions: Mapping[str, Label], labels: Mapping[str, Label]) -> Label:
    """Which response a label prefers. `"[[A>>B]]"`, `"model_a"` and `"A"` are the first, `"tie (bothbad)"` a tie."""
    if not isinstance(value, str | int | float):
        raise PreferenceError(Reason.WRONG_TYPE, "a label that is neither a text nor a number")
    word = _word(value)
    if word in labels:
        return labels[word]
    word = _plain(word)
    order = _ORDER.fullmatch(word)
    if not order:
        return "tie" if word in _TIES else _position(word, positions)
    left, right = (_position(side, positions) for side in order.group(1, 3))
    if left == right:
        raise PreferenceError(Reason.WRONG_TYPE, "a label that compares a response with itself")
    return "tie" if "=" in order[2] else left if ">" in order[2] else right


def _plain(word: str) -> str:
    """A word without what only parts or surrounds it: `tie (both bad)` is `tiebothbad`; the sign of `-1` stays."""
    return re.sub(r"[\s_()\[\]]|(?<=[a-z])-", "", word.lower())


def _word(value: str | float) -> str:
    """A label as the setting spells it: `1.0` is `1`, `true` and `True` are `true`."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 10:
        value = int(value)
    return str(value).strip().lower()


def _position(word: str, positions: Mapping[str, Label]) -> Label:
    stem = _STEM.fullmatch(word)
    name = stem[1] if stem else word
    if word in positions or name in positions:
        return positions.get(word) or positions[name]
    if name in ("0", "1", "2", "true", "false"):
        problem = "a label that may mean either response; the setting labels says which"
        raise PreferenceError(Reason.AMBIGUOUS_LABEL, problem)
    raise PreferenceError(Reason.WRONG_TYPE, "a label of no known spelling; the setting labels can say what it means")
