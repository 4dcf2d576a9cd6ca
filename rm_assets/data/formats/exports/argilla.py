"""Argilla's exports: what annotators submitted, as votes on the responses of a record.

Four forms of a record are read: 2.x nested (`Record.to_dict`, `records.to_json`), 2.x flat (`GenericIO`'s flattened,
`records.to_datasets`), 1.x nested (`FeedbackRecord`), and 1.x flat (`FeedbackDataset.format_as("datasets")`). A
question may be a label (`response_1`, `A`, `tie`), a ranking of the response fields, or a rating of each. Only
submitted responses count: discarded ones and drafts do not, nor do suggestions, which are a model's.
"""

from typing import Any

from rm_assets.data.formats.exports.answers import (
    label_standings,
    only_question,
    ranking_standings,
    rating_standings,
    response_names,
)
from rm_assets.data.formats.exports.ballots import Ballots, Standings
from rm_assets.data.formats.field_names import LABELS, Row
from rm_assets.data.formats.preferences import ParsingRules, PreferenceError
from rm_assets.data.tables.reasons import Reason
from rm_assets.display_text import as_code

MARKS = frozenset({"fields", "_server_id", "external_id"})
"""One of them is in every form of a record."""
FIELDS = MARKS | {"responses", "suggestions", "values", "value", "rank", "status", "user_id"}

Answers = dict[str, Any]
"""One annotator's, by question."""
_QUESTIONS = frozenset({*LABELS, "best", "best_response", "chosen_response", "ranking"})
_RESPONSES = ".responses"


def ballots_of_argilla(row: Row, rules: ParsingRules) -> Ballots | None:
    """The votes of a record; None for a row that is not one of Argilla's."""
    record = _record(row)
    if record is None:
        return None
    fields, answers = record
    if not answers:
        raise PreferenceError(Reason.UNLABELLED, "the record has no submitted response")
    names = response_names(fields, rules) or _ranked_fields(fields, answers)
    if len(names) < 2:
        problem = "no two fields are recognized as responses; name response_a and response_b in the setting columns"
        raise PreferenceError(Reason.MISSING_FIELD, problem)
    standings, scored = _standings(answers, names, rules)
    others = {name: value for name, value in fields.items() if name not in names and value is not None}
    return Ballots(row=others, responses=[fields[name] for name in names], standings=standings, scored=scored)


# --- the annotators' answers -----------------------------------------------------------------------------------


def _standings(answers: list[Answers], names: list[str], rules: ParsingRules) -> tuple[list[Standings], bool]:
    """Each annotator's standings, by the one question that compares responses, else by ratings; True for ratings."""
    compared: dict[str, list[Standings]] = {}
    for given in answers:
        for question, value in given.items():
            if standings := _compared(question, value, names, rules):
                compared.setdefault(question, []).append(standings)
    if compared:
        return compared[only_question(compared, rules)], False
    ratings = [rated for given in answers if (rated := rating_standings(given, names))]
    if not ratings:
        problem = "no question is recognized as comparing the responses; name one as `label` in the setting columns"
        raise PreferenceError(Reason.MISSING_FIELD, problem)
    return ratings, True


def _compared(question: str, value: Any, names: list[str], rules: ParsingRules) -> Standings | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        return ranking_standings(value, names)
    is_label = question in _QUESTIONS or question == rules.columns.get("label") or value in names
    return label_standings(value, names, rules) if is_label else None


def _ranked_fields(fields: Row, answers: list[Answers]) -> list[str]:
    """The fields that some annotator ranked, where no common stem marks the responses."""
    for given in answers:
        for value in given.values():
            items = value.get("value") if isinstance(value, dict) else value
            listed = items if isinstance(items, list) else []
            ranked = [item.get("value") if isinstance(item, dict) else item for item in listed]
            names = sorted(name for name in ranked if isinstance(name, str) and name in fields)
            if len(names) == len(ranked) > 1:
                return names
    return []


# --- the forms of a record -------------------------------------------------------------------------------------


def _record(row: Row) -> tuple[Row, list[Answers]] | None:
    """The fields of a record, and what each annotator submitted; None for a row of another shape."""
    fields, responses = row.get("fields"), row.get("responses")
    if isinstance(fields, dict):
        if row.keys().isdisjoint({"responses", "suggestions", "_server_id"}):
            return None
        answers = _of_users(responses) if isinstance(responses, list) else _by_user(_nested(row, responses))
        return fields, answers
    if any(name.endswith(_RESPONSES) for name in row):
        others = {name: value for name, value in row.items() if "." not in name}
        return others, _by_user(_flat(row))
    return _flat_record(row)


def _of_users(responses: list[Any]) -> list[Answers]:
    """1.x nested: `[{"values": {"ranking": {"value": ...}}, "status": "submitted", "user_id": ...}]`."""
    found = []
    for response in _objects(responses):
        values = response.get("values")
        if response.get("status") in (None, "submitted") and isinstance(values, dict):
            found.append({name: item.get("value") for name, item in values.items() if isinstance(item, dict)})
    return [given for given in found if given]


def _nested(row: Row, responses: Any) -> dict[str, list[Row]]:
    """2.x nested: `{"ranking": [{"value": ..., "user_id": ...}]}`, whose responses have no status of their own.

    A record that is `pending` has too few submitted responses: those that it has may be drafts, and do not count.
    """
    is_completed = row.get("status") in (None, "completed")
    return {
        question: [item for item in _objects(given) if is_completed or item.get("status") == "submitted"]
        for question, given in (responses.items() if isinstance(responses, dict) else ())
    }


def _flat(row: Row) -> dict[str, list[Row]]:
    """2.x flat: `label.responses`, `label.responses.users` and `label.responses.status`, three lists."""
    questions = [name.removesuffix(_RESPONSES) for name in row if name.endswith(_RESPONSES)]
    _require_no_printed_list({name: row[name] for name in row if name.endswith(_RESPONSES)})
    ends = {"value": _RESPONSES, "user_id": ".responses.users", "status": ".responses.status"}
    return {
        question: _transposed({name: row.get(question + end) for name, end in ends.items()}) for question in questions
    }


def _flat_record(row: Row) -> tuple[Row, list[Answers]] | None:
    """1.x flat: `label`, a list of `user_id`, `value` and `status`, beside `label-suggestion`."""
    names = {name.removesuffix("-suggestion") for name in row if name.endswith("-suggestion")}
    if not names.intersection(row):
        return None
    _require_no_printed_list({name: row.get(name) for name in names})
    questions = {name: _transposed(value) if isinstance(value := row.get(name), dict) else value for name in names}
    asked = {f"{name}{end}" for name in names for end in ("", "-suggestion", "-suggestion-metadata")}
    fields = {name: value for name, value in row.items() if name not in asked}
    return fields, _by_user({name: _objects(given) for name, given in questions.items()})


def _require_no_printed_list(responses: Row) -> None:
    """Raise PreferenceError where the responses of a question are a text, as a CSV file has them."""
    for name in sorted(responses):
        if isinstance(responses[name], str) and responses[name].lstrip().startswith(("[", "{")):
            problem = f"{as_code(name)} is a list written as text; export the records as JSON or Parquet"
            raise PreferenceError(Reason.WRONG_TYPE, problem)


def _transposed(lists: Row) -> list[Row]:
    """`{"value": ["A", "B"], "user_id": ["u", "v"]}` as one row per item; short lists are padded with nulls."""
    columns = {name: values for name, values in lists.items() if isinstance(values, list)}
    length = len(columns.get("value", []))
    return [{name: values[place] for name, values in columns.items() if place < len(values)} for place in range(length)]


def _by_user(questions: dict[str, list[Row]]) -> list[Answers]:
    """What each user submitted; responses without a user are taken for those of different ones."""
    found: dict[Any, Answers] = {}
    for question, responses in questions.items():
        for place, response in enumerate(responses):
            if response.get("status") in (None, "submitted") and response.get("value") is not None:
                user = response.get("user_id")
                found.setdefault(place if user is None else str(user), {})[question] = response["value"]
    return list(found.values())


def _objects(value: Any) -> list[Row]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
