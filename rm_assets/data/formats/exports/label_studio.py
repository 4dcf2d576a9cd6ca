"""Label Studio's exports: tasks with their annotations, and JSON_MIN, with one row per annotation.

A task is `{"data": {...}, "annotations": [{"result": [...]}]}` (the guide's "task format"). The results of the tags
Pairwise (`selected`: left or right), Ranker (over a List of items), Choices and Rating are read; skipped annotations
(`was_cancelled`) and model predictions are ignored. If any annotations are marked as `ground_truth`, only those count.
"""

import re
from typing import Any

from rm_assets.data.formats.exports.answers import (
    label_standings,
    only_question,
    ranking_standings,
    response_names,
    suffix_of,
)
from rm_assets.data.formats.exports.ballots import Ballots, Standings
from rm_assets.data.formats.field_names import LABELS, SPELLINGS, Row, response_fields
from rm_assets.data.formats.preferences import ParsingRules, PreferenceError
from rm_assets.data.tables.reasons import Reason

MARKS = frozenset({"annotations", "completions", "annotation_id"})
"""Every task and every JSON_MIN row has one of these; tasks of version 0 have `completions`."""
FIELDS = MARKS | {"data", "result", "value", "type", "from_name", "to_name", "selected", "choices", "rating"}
FIELDS |= {"was_cancelled", "skipped", "ground_truth", "ranker", "body"}

# --- tasks -----------------------------------------------------------------------------------------------------


def ballots_of_label_studio(row: Row, rules: ParsingRules) -> Ballots | None:
    """The votes of a task; None for a row that is not one."""
    annotations = row.get("annotations", row.get("completions"))
    data = row.get("data")
    if not isinstance(data, dict) or not isinstance(annotations, list):
        return None
    results = _results(annotations)
    if not results:
        raise PreferenceError(Reason.UNLABELLED, "the task has no annotation, or only skipped ones")
    for type_name, read in _READ.items():
        found = [[item for item in result if item.get("type") == type_name] for result in results]
        if any(found):
            fields = _with_items(data) if type_name == "ranker" else data
            names, standings = read([items for items in found if items], fields, rules)
            others = {name: value for name, value in fields.items() if name not in names and value is not None}
            responses = [fields[name] for name in names]
            return Ballots(row=others, responses=responses, standings=standings, scored=type_name == "rating")
    problem = "the annotations have no result of Pairwise, Ranker, Choices or Rating, which compare responses"
    raise PreferenceError(Reason.MISSING_FIELD, problem)


def _results(annotations: list[Any]) -> list[list[Row]]:
    """The results of each annotation that counts."""
    given = [item for item in annotations if isinstance(item, dict)]
    given = [item for item in given if not item.get("was_cancelled") and not item.get("skipped")]
    true = [item for item in given if item.get("ground_truth") is True]
    listed = [result for item in true or given if isinstance(result := item.get("result"), list)]
    found = [[part for part in result if isinstance(part, dict)] for result in listed]
    return [result for result in found if result]


Read = tuple[list[str], list[Standings]]
"""The fields of the responses, and each annotation's standings."""


def _pairwise(results: list[list[Row]], data: Row, rules: ParsingRules) -> Read:
    names: list[str] = []
    standings: list[Standings] = []
    for item in _of_one_tag(results, rules):
        sides = _sides(item, data, rules)
        names = names or sides
        if sorted(sides) != sorted(names):
            raise PreferenceError(Reason.AMBIGUOUS_FIELD, "the annotations compare different fields of `data`")
        selected = _value(item).get("selected")
        if selected not in ("left", "right"):
            raise PreferenceError(Reason.WRONG_TYPE, "`selected` is neither left nor right")
        better = sides[selected == "right"]
        standings.append([float(name == better) for name in names])
    return names, standings


def _choices(results: list[list[Row]], data: Row, rules: ParsingRules) -> Read:
    names = _responses(data, rules)
    standings = []
    for item in _of_one_tag(results, rules):
        choices = _value(item).get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], str):
            raise PreferenceError(Reason.WRONG_TYPE, "`choices` is not a list of one string")
        standings.append(label_standings(choices[0], names, rules))
    return names, standings


def _ratings(results: list[list[Row]], data: Row, rules: ParsingRules) -> Read:
    names = _responses(data, rules)
    standings: list[Standings] = []
    for items in results:
        ratings: dict[str, float] = {}
        for item in items:
            rating = _value(item).get("rating")
            if isinstance(rating, bool) or not isinstance(rating, int | float):
                raise PreferenceError(Reason.WRONG_TYPE, "`rating` is not a number")
            if ratings.setdefault(str(item.get("to_name")), rating) != rating:
                raise PreferenceError(
                    Reason.AMBIGUOUS_FIELD, "an annotation rates the same response twice, with different ratings"
                )
        standings.append([ratings.get(name) for name in names])
    if not any(value is not None for given in standings for value in given):
        problem = "`to_name` of the ratings names no response; name response_a and response_b in the setting columns"
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, problem)
    return names, standings


_ITEM = "item "


def _with_items(data: Row) -> Row:
    """The task with the `body` of each item of its list as a field: `item a` of `[{"id": "a", "body": "4."}]`."""
    lists = [name for name, value in data.items() if value and isinstance(value, list) and all(map(_is_item, value))]
    if len(lists) != 1:
        problem = f"`data` has {len(lists)} lists of items with `id` and `body`, instead of exactly one"
        raise PreferenceError(Reason.MISSING_FIELD, problem)
    items = {f"{_ITEM}{item['id']}": item["body"] for item in data[lists[0]]}
    return {name: value for name, value in data.items() if name != lists[0]} | items


def _is_item(value: Any) -> bool:
    return isinstance(value, dict) and {"id", "body"} <= value.keys()


def _ranks(results: list[list[Row]], data: Row, rules: ParsingRules) -> Read:
    names = sorted(name for name in data if name.startswith(_ITEM))
    standings = []
    for item in _of_one_tag(results, rules):
        ranker = _value(item).get("ranker")
        ranked = list(ranker.values()) if isinstance(ranker, dict) else []
        order = [f"{_ITEM}{name}" for name in ranked[0]] if len(ranked) == 1 and isinstance(ranked[0], list) else None
        if not (found := ranking_standings(order, names)):
            raise PreferenceError(Reason.WRONG_TYPE, "`ranker` is not a single list of two or more item ids")
        standings.append(found)
    return names, standings


_READ = {"pairwise": _pairwise, "ranker": _ranks, "choices": _choices, "rating": _ratings}
"""How the results of each type of tag are read; if there are several types, the first listed here is used."""


def _of_one_tag(results: list[list[Row]], rules: ParsingRules) -> list[Row]:
    """The results of the single tag, by `from_name`, that compares the responses."""
    tag = only_question({str(item.get("from_name")) for items in results for item in items}, rules)
    found = [[item for item in items if str(item.get("from_name")) == tag] for items in results]
    if any(len(items) > 1 for items in found):
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, "an annotation has several results of the same tag")
    return [items[0] for items in found if items]


def _value(item: Row) -> Row:
    value = item.get("value")
    return value if isinstance(value, dict) else {}


def _responses(data: Row, rules: ParsingRules) -> list[str]:
    names = response_names(data, rules)
    if len(names) < 2:
        problem = (
            "no two fields of `data` are recognized as responses; name response_a and response_b in the setting columns"
        )
        raise PreferenceError(Reason.MISSING_FIELD, problem)
    return names


def _sides(item: Row, data: Row, rules: ParsingRules) -> list[str]:
    """The fields of `data` on the left and on the right: the first name in the tag's `toName` is on the left.

    `to_name` holds these two names of tags, usually the names of the fields; otherwise their suffixes must match
    (`txt-1` shows `answer1`). If it holds the Pairwise tag's own name, as in some versions, `answer1` is left.
    """
    to_name = item.get("to_name")
    tags = [tag.strip() for tag in to_name.split(",")] if isinstance(to_name, str) else []
    if len(set(tags)) == 2 and all(tag in data for tag in tags):
        return tags
    names = _responses(data, rules)
    if len(names) > 2:
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, f"{len(names)} responses, and `to_name` names none of them")
    if len(tags) != 2 or names == [rules.columns.get("response_a"), rules.columns.get("response_b")]:
        return names
    ends, tag_ends = ([suffix_of(name).lower() for name in given] for given in (names, tags))
    if sorted(ends) != sorted(tag_ends):
        problem = (
            "`to_name` names no fields of `data`; name response_a (on the left) and response_b in the setting columns"
        )
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, problem)
    return names if ends == tag_ends else names[::-1]


# --- JSON_MIN --------------------------------------------------------------------------------------------------


def normalize_row(row: Row) -> Row:
    """Renames a JSON_MIN row's verdict field, which is named after the tag, to `comparison`; leaves other rows alone.

    `convert_to_json_min` writes `"pw": [{"selected": "left"}]`, which is a text in a CSV file; older versions wrote
    `"pw": "left"`. A task that nobody has annotated has a row without an `annotation_id`.
    """
    found = {name: side for name, value in row.items() if (side := _selected(value))} if "annotation_id" in row else {}
    if len(found) != 1:
        if row.get("annotation_id", 0) in (None, "") and not found and _is_unlabelled(row):
            raise PreferenceError(Reason.UNLABELLED, "the task has no annotation")
        return row
    [(tag, side)] = found.items()
    return {name: value for name, value in row.items() if name != tag} | {"comparison": side}


_WRITTEN = re.compile(r"""\[?\s*+\{\s*+['"]selected['"]\s*+:\s*+['"](left|right)['"]\s*+\}\s*+\]?""")
"""A verdict as a table holds it: JSON, or as str() writes it."""


def _is_unlabelled(row: Row) -> bool:
    """Whether a row has two responses, and no verdict."""
    given = {name: value for name, value in row.items() if value not in (None, "")}
    return response_fields(given) is not None and given.keys().isdisjoint(
        {*LABELS, *SPELLINGS["preference_strength"], "rejected"}
    )


def _selected(value: Any) -> str | None:
    if isinstance(value, str) and (written := _WRITTEN.fullmatch(value.strip())):
        return written[1]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("selected")
    return value if value in ("left", "right") else None
