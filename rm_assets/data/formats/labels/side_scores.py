"""The scores of `chosen` and `rejected` where one list holds both, and rows that are marked as ties."""

from typing import Any

import msgspec

from rm_assets.data.formats.field_names import LABELS, TIE_FLAGS, Row
from rm_assets.data.formats.labels.values import TIES, plain
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason

_LISTS = ("rating", "ratings", "score", "scores")
_TRUE = ("true", "1", "1.0")


def add_side_scores(row: Row) -> Row:
    """The row with both scores of a list such as `"rating": [9, 7]` beside `chosen` and `rejected`, unless it has both.

    Of a list the first is that of `chosen`. Where the row has `generations` in another order, as distilabel's do, each
    score belongs to the text at the same index. `"score": {"chosen": 9, "rejected": 7}` names them. Raises
    PreferenceError for a tie.
    """
    _require_no_tie(row)
    if "score_chosen" in row and "score_rejected" in row:
        return row
    given = [_read(row[name]) for name in _LISTS if name in row]
    if named := next((value for value in given if _is_named(value)), None):
        return row | {"score_chosen": named["chosen"], "score_rejected": named["rejected"]}
    scores = next(filter(_is_pair, given), None)
    if scores is None or isinstance(row["chosen"], list) != isinstance(row["rejected"], list):
        return row
    if scores[0] == scores[1]:
        raise PreferenceError(Reason.TIE, "the scores of both sides are equal")
    place = _place_of_chosen(row)
    return row if place is None else row | {"score_chosen": scores[place], "score_rejected": scores[1 - place]}


def _require_no_tie(row: Row) -> None:
    for name in ("status", *LABELS):
        if name != "chosen" and isinstance(row.get(name), str) and plain(row[name]) in TIES:
            raise PreferenceError(Reason.TIE, f"`{name}` says that neither reply is better")
    if is_tie := next((name for name in TIE_FLAGS if str(row.get(name)).strip().lower() in _TRUE), None):
        raise PreferenceError(Reason.TIE, f"`{is_tie}` is true")


def _read(value: Any) -> Any:
    """The list or object that a text of JSON holds; every other value as it is."""
    if not isinstance(value, str) or not value.startswith(("[", "{")):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return value


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and all(type(value.get(side)) in (int, float) for side in ("chosen", "rejected"))


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(score) in (int, float) for score in value)


def _place_of_chosen(row: Row) -> int | None:
    """The index of the score of `chosen`; None if the row does not show it."""
    generations = row.get("generations")
    if generations is None and row.get("order") is None:
        return 0
    sides = [row["chosen"], row["rejected"]]
    if isinstance(generations, list) and generations in (sides, sides[::-1]):
        return generations.index(row["chosen"])
    if row.get("order") in (["chosen", "rejected"], ["rejected", "chosen"]):
        is_first = row["order"][0] == "chosen"
        return int(is_first == (row.get("status") == "swapped"))
    return None
