"""A field that is there and null is not damage: the row is unlabelled, or a reply or prompt of it is empty."""

from collections.abc import Callable, Mapping
from typing import Any

from rm_assets.data.formats.field_names import LABELS, PROMPTS, RESPONSES, SPELLINGS, Row, response_fields
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason
from rm_assets.display_text import as_code

_DAMAGE = (Reason.MISSING_FIELD, Reason.UNKNOWN_FORMAT)
_SIDES = (
    *((one, other) for one in SPELLINGS["chosen"] for other in SPELLINGS["rejected"]),
    ("preferred_output", "non_preferred_output"),
    *RESPONSES,
)
_REPLIES = frozenset(name for sides in _SIDES for name in sides) | {*SPELLINGS["responses"]}
_SCORES = frozenset({*SPELLINGS["scores"], "ranks"})
_VERDICTS = frozenset({*LABELS, *SPELLINGS["preference_strength"], *_SCORES})
_FILLED = _REPLIES.union(_VERDICTS, PROMPTS) - _SCORES


def with_blank_fields(
    error: PreferenceError, row: Row, blank: Mapping[str, str], parse: Callable[[Row], object]
) -> PreferenceError:
    """The error of a row that lacks the blank fields, or what is wrong where only their contents are missing.

    `blank` has the columns of the fields.
    """
    if error.reason not in _DAMAGE or not (reason := _reason(row, blank)):
        return error
    try:
        parse(row | {name: _placeholder(name, row) for name in _FILLED.intersection(blank)})
    except PreferenceError as other:
        if other.reason in (*_DAMAGE, Reason.WRONG_TYPE) and not _SCORES.intersection(blank):
            return error  # more is missing than what they would hold
    return reason


def require_scores(row: Row) -> None:
    """Raise PreferenceError where a ranking has fields of scores or ranks, and each of them is null."""
    items = [item for item in row["responses"] if isinstance(item, dict)]
    lists = [row[name] for name in ("scores", "ranks") if isinstance(row.get(name), list)]
    given = [item[name] for item in items for name in ("score", "rating", "rank") if name in item]
    given += [value for values in lists for value in values]
    if given and all(value is None for value in given):
        raise PreferenceError(Reason.UNLABELLED, "every score or rank of the responses is null")


def _reason(row: Row, blank: Mapping[str, str]) -> PreferenceError | None:
    groups = (
        (_VERDICTS - _REPLIES if not response_fields(row) else _VERDICTS, Reason.UNLABELLED, "{} is null: no verdict"),
        (_REPLIES, Reason.EMPTY_REPLY, "{} is null"),
        (frozenset(PROMPTS), Reason.EMPTY_MESSAGE, "{} is null"),
    )
    order = groups if response_fields(row) else (groups[1], groups[0], groups[2])
    for names, reason, detail in order:
        if found := sorted(names.intersection(blank)):
            return PreferenceError(reason, detail.format(" and ".join(as_code(blank[name]) for name in found[:2])))
    return None


def _placeholder(name: str, row: Row) -> Any:
    """An empty value such as the other side would have it."""
    others = (one if other == name else other for one, other in _SIDES if name in (one, other))
    return [] if any(isinstance(row.get(other), list) for other in others) else ""
