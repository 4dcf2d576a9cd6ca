"""The scores of `chosen` and `rejected` where one list holds both, and a row that says itself that it is a tie."""

from typing import Any

from rm_assets.data.formats.field_names import Row
from rm_assets.data.formats.label_words import TIES, plain
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.records import Reason

_LISTS = ("rating", "ratings", "score", "scores")


def with_side_scores(row: Row) -> Row:
    """The row with both scores of a list such as `"rating": [9, 7]` beside `chosen` and `rejected`, unless it has both.

    The first is that of `chosen`. Where the row has `generations` in another order, as distilabel's do, each score is
    that of the text at its place. Raises PreferenceError for a tie.
    """
    status = row.get("status")
    if isinstance(status, str) and plain(status) in TIES:
        raise PreferenceError(Reason.TIE, "`status` is tie")
    if "score_chosen" in row and "score_rejected" in row:
        return row
    scores = next((row[name] for name in _LISTS if _is_pair(row.get(name))), None)
    if scores is None or isinstance(row["chosen"], list) != isinstance(row["rejected"], list):
        return row
    if scores[0] == scores[1]:
        raise PreferenceError(Reason.TIE, "the scores of both sides are equal")
    place = _place_of_chosen(row)
    return row if place is None else row | {"score_chosen": scores[place], "score_rejected": scores[1 - place]}


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(score) in (int, float) for score in value)


def _place_of_chosen(row: Row) -> int | None:
    """Which of two scores is that of `chosen`; None where the row does not tell."""
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
