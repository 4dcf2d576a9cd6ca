"""Annotators' answers as standings: which fields are the responses, and how a label, a ranking or ratings order them.

Beside `response_1` and `response_2` the label "response_2" gives [0, 1], the ranking ["response_1", "response_2"] gives
[-1, -2], and the ratings 4 and 2 give [4, 2]: higher is better.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rm_assets.data.formats.comparisons import read_verdict
from rm_assets.data.formats.exports.ballots import Standings
from rm_assets.data.formats.field_names import SUFFIXES, Row, response_fields
from rm_assets.data.formats.preferences import ParsingRules, PreferenceError
from rm_assets.data.tables.reasons import Reason

_STEMS = "response|generation|generations|completion|output|answer|reply|candidate|summary"
_NUMBERED = re.compile(rf"({_STEMS})[-_ ]?([0-9]{{1,3}}|[A-Za-z])")
_RATING = re.compile(r"(?:(?:rating|score|quality)(?:[-_ ](?:of|for))?[-_ ])?(.+?)(?:[-_ ](?:rating|score|quality))?")
_LABEL_STANDINGS: dict[str, Standings] = {"first": [1.0, 0.0], "second": [0.0, 1.0], "tie": [0.0, 0.0]}

# --- which fields are the responses ----------------------------------------------------------------------------


def response_names(fields: Row, rules: ParsingRules) -> list[str]:
    """The fields that are responses: those of the setting, or of one stem such as `response_1`, `response_2`, ..."""
    own = [rules.columns[name] for name in ("response_a", "response_b") if name in rules.columns]
    if len(own) == 2 and all(name in fields for name in own):
        return own
    stems: dict[str, list[str]] = {}
    for name in fields:
        if numbered := _NUMBERED.fullmatch(name):
            stems.setdefault(numbered[1], []).append(name)
    found = [names for names in stems.values() if len(names) > 1]
    if len(found) > 1:
        problem = "several groups of responses; name response_a and response_b in the setting columns"
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, problem)
    return sorted(found[0], key=_in_order) if found else list(response_fields(fields) or ())


def _in_order(name: str) -> tuple[int, str]:
    suffix = suffix_of(name)
    return (int(suffix) if suffix.isdigit() else 0), suffix


def suffix_of(name: str) -> str:
    """The suffix of a response: `1` of `response_1`, `a` of `answer-a`, `2` of `text2`."""
    found = re.search(r"[0-9]+$|[A-Za-z]$", name)
    return found[0] if found else ""


# --- how an answer orders them ---------------------------------------------------------------------------------


def label_standings(value: str, names: Sequence[str], rules: ParsingRules) -> Standings:
    """The standings of a label: a field's name, or for two responses any spelling that comparisons have."""
    if value in names:
        return [float(name == value) for name in names]
    if len(names) != 2:
        problem = "the label names none of the responses; other spellings are known only for two responses"
        raise PreferenceError(Reason.WRONG_TYPE, problem)
    suffixes = (suffix_of(names[0]), suffix_of(names[1]))
    first, second = suffixes if suffixes in SUFFIXES else ("a", "b")
    try:
        responses = (f"response_{first}", f"response_{second}")
        row = read_verdict(dict.fromkeys(responses, "") | {"label": value}, responses, rules, [])
    except PreferenceError as error:
        if error.reason is Reason.UNLABELLED:  # this annotator did not judge them
            return [None, None]
        problem = "an annotator's label is not known or could mean either response; define it in the setting labels"
        raise PreferenceError(error.reason, problem) from None
    return _LABEL_STANDINGS[row["label"]]


def ranking_standings(value: Any, names: Sequence[str]) -> Standings | None:
    """The standings of a ranking: names, the best first, or a `value` and a `rank` each; None for any other value."""
    if isinstance(value, dict) and isinstance(value.get("value"), list) and isinstance(value.get("rank"), list):
        value = [{"value": name, "rank": rank} for name, rank in zip(value["value"], value["rank"], strict=False)]
    if not isinstance(value, list):
        return None
    ranks: dict[str, float | None] = {}
    for place, item in enumerate(value, start=1):
        name, rank = (item.get("value"), item.get("rank", place)) if isinstance(item, dict) else (item, place)
        if not isinstance(name, str) or name not in names or name in ranks:
            return None
        ranks[name] = None if rank is None else -_number(rank)
    return [ranks.get(name) for name in names] if len(ranks) > 1 else None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PreferenceError(Reason.WRONG_TYPE, "a rank is not a number")
    return value


def rating_standings(answers: Mapping[str, Any], names: Sequence[str]) -> Standings | None:
    """The ratings of an annotator, by response; None where fewer than two responses are rated."""
    ratings: dict[str, float] = {}
    for question, value in answers.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and (name := _rated_response(question, names)):
            if name in ratings:
                raise PreferenceError(Reason.AMBIGUOUS_FIELD, "several questions rate the same response")
            ratings[name] = value
    return [ratings.get(name) for name in names] if len(ratings) > 1 else None


def _rated_response(question: str, names: Sequence[str]) -> str | None:
    """The response that a question rates: `generations-0` of `generations-0-rating`, `response_2` of `rating_2`."""
    found = _RATING.fullmatch(question)
    rated = found[1] if found else question
    if rated in names:
        return rated
    return next((name for name in names if suffix_of(name) == rated != question), None)


def only_question(questions: Collection[str], rules: ParsingRules) -> str:
    """The question that compares the responses; raises PreferenceError where there are several."""
    own = {rules.columns["label"]} if "label" in rules.columns else set()
    found = own.intersection(questions) or questions
    if len(found) > 1:
        problem = f"{len(found)} questions compare the responses; name one of them as `label` in the setting columns"
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, problem)
    return next(iter(found))
