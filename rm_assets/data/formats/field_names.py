"""One name for each field: how files spell them, and the user's own columns.

`{"instruction": "Add.", "input": "2+2", "chosen": ...}` becomes `{"prompt": "Add.\n\n2+2", "chosen": ...}`. Where two
spellings of one field have different values, the row is a reject, and the setting `columns` chooses one.
"""

from collections.abc import Mapping
from typing import Any

from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason
from rm_assets.json_settings import Column

Row = dict[str, Any]


def _scores_of(side: str) -> tuple[str, ...]:
    """`score_chosen`, `chosen_score`, `chosen-rating`, `chosen_avg_rating` and the like."""
    stems = ("score", "rating", "reward", "avg_score", "avg_rating", "overall_score", "overall_rating")
    return tuple(
        name for stem in stems for mark in ("_", "-") for name in (f"{stem}{mark}{side}", f"{side}{mark}{stem}")
    )


SPELLINGS = {
    "chosen": ("chosen", "chosen_messages"),
    "rejected": ("rejected", "rejected_messages"),
    "system": ("system", "system_prompt"),
    "score_chosen": _scores_of("chosen"),
    "score_rejected": _scores_of("rejected"),
    "responses": ("responses", "completions", "answers", "generations"),
    "scores": ("scores", "ratings"),
    "preference_strength": ("preference_strength", "overall_preference"),
}
"""Fields with more than one name."""
_OTHER_NAMES = frozenset(name for names in SPELLINGS.values() for name in names[1:])

PROMPTS = ("prompt", "instruction", "question", "context", "input")
PROMPTS_IN_TWO_FIELDS = (("instruction", "input"), ("context", "question"), ("instruction", "context"))
"""Alpaca's, that of question answering over documents, and Dolly's, in the order in which they are joined."""
CONVERSATIONS = ("conversations", "messages")
LABELS = (
    "label",
    "preference",
    "winner",
    "preferred",
    "chosen",
    "verdict",
    "choice",
    "better",
    "comparison",
    "better_response",
    "better_response_id",
    "preferred_response",
)

TIE_FLAGS = ("is_tie", "tie")
"""Fields that are true if neither `chosen` nor `rejected` is better."""

_PLACES = ("", "_path", "_paths", "_url", "_urls", "_file", "_files")
MEDIA = {
    f"{stem}{plural}{place}": f"<{stem}>"
    for stem in ("image", "video", "audio")
    for plural in ("", "s")
    for place in _PLACES
} | {
    **dict.fromkeys(("img", "imgs", "img_path", "img_url", "pixel_values"), "<image>"),
    **{f"image{mark}{number}": "<image>" for mark in ("", "_") for number in range(10)},
}
"""The fields of a row or message that hold media, each with the placeholder that marks its position in a text."""

_STEMS = ("response", "output", "answer", "completion", "conversation")
_RESPONSE_NAMES = [f"{stem}{mark}{{}}" for stem in _STEMS for mark in ("_", "", " ")]
_RESPONSE_NAMES += ["messages_{}", "model_{}_response"]
SUFFIXES = (("a", "b"), ("A", "B"), ("1", "2"), ("0", "1"))
RESPONSES = {
    (name.format(first), name.format(second)): (first, second) for name in _RESPONSE_NAMES for first, second in SUFFIXES
}
"""The two response fields of a comparison, and their suffixes."""
_THIRD = {
    (name.format(first), name.format(second)): name.format(chr(ord(second) + 1))
    for name in _RESPONSE_NAMES
    for first, second in SUFFIXES
}
"""The field of a third response: `response_c` after `response_a` and `response_b`."""
SIDES = (
    *((chosen, rejected) for chosen in SPELLINGS["chosen"] for rejected in SPELLINGS["rejected"]),
    ("preferred_output", "non_preferred_output"),
    *RESPONSES,
)
"""The two fields of the replies, in every format that has two."""
_SECOND = dict(RESPONSES.keys())

KNOWN = frozenset(
    {name for names in SPELLINGS.values() for name in names}
    | {*PROMPTS, *CONVERSATIONS, *LABELS, "margin", "subset", "tools", "ranks", "history"}
    | {"preferred_output", "non_preferred_output", "role", "content", "from", "value", "type", "text", "name"}
    | {"tool_calls", "tool_call_id", "reasoning_content", "score", "rating", "rank", "response", "completion"}
    | {"answer", "output", "status", "order", "generations", "reasoning", "thinking", "chat_template_kwargs"}
    | {*MEDIA, *TIE_FLAGS}
    | {name for pair in RESPONSES for name in pair}
)
"""Every field that some format reads: none of them may be given twice in one object."""


NUMBERS = frozenset(
    {"margin", "scores", "ratings", "ranks", "score", "rating", "rank"}
    | {*SPELLINGS["score_chosen"], *SPELLINGS["score_rejected"], *SPELLINGS["preference_strength"]}
)
"""Fields that hold numbers or lists of numbers, which tables may write as text."""


# --- own columns ---------------------------------------------------------------------------------------------


def use_own_columns(row: Row, columns: Mapping[Column, str]) -> Row:
    """The row with the user's columns under the names of this project; other spellings of those fields are not read.

    With `{"prompt": "query"}`, `{"query": "2+2?", "context": "c"}` becomes `{"prompt": "2+2?"}`. A row without the
    column stays unchanged: files with and without it may be mixed. But one row must not mix them: if the setting names
    columns for both sides, a row with only one of these, `{"winner": "4.", "rejected": "5."}`, is a reject.
    """
    for sides in (("chosen", "rejected"), ("response_a", "response_b")):
        there = [name for name in sides if columns.get(name) in row]
        missing = [name for name in sides if name in columns and name in row and name not in there]
        if there and missing:
            problem = f"the row has the column for `{there[0]}`, but for `{missing[0]}` only a field of that name"
            raise PreferenceError(Reason.AMBIGUOUS_FIELD, problem)
    given = {name: row[column] for name, column in columns.items() if column in row}
    hidden = {columns[name] for name in given}.union(*(_spellings(name) for name in given))
    return {name: value for name, value in row.items() if name not in hidden} | given


def _spellings(name: str) -> set[str]:
    if name in ("response_a", "response_b", "chosen", "rejected"):
        return {field for pair in RESPONSES for field in pair}.union(_THIRD.values(), SPELLINGS.get(name, ()))
    if name == "prompt":
        return {*PROMPTS, *CONVERSATIONS}
    if name == "label":
        return {*LABELS, *SPELLINGS["preference_strength"]} - {"chosen"}
    return set(SPELLINGS.get(name, (name,)))


# --- one name for each field ---------------------------------------------------------------------------------


def use_canonical_names(row: Row, *names: str) -> Row:
    """The row with each of these fields of `SPELLINGS` under its first name."""
    if row.keys().isdisjoint(_OTHER_NAMES):
        return row
    row = dict(row)
    for name in names:
        given = {spelling: row.pop(spelling) for spelling in SPELLINGS[name] if spelling in row}
        if given:
            row[name] = only_value(given, name)
    return row


def join_prompt(row: Row, *sides: str) -> Row:
    """The row with its prompt under `prompt`: an instruction and its input, or a context and its question, are joined.

    Sides that are whole conversations state their prompt themselves: beside them only a `prompt` with text is read.
    """
    if row.keys().isdisjoint(PROMPTS):
        return row
    if sides and all(is_whole(row.get(side)) for side in sides):
        is_stated = not is_blank(row.get("prompt"))
        return row if is_stated else {name: value for name, value in row.items() if name != "prompt"}
    given = {name: row[name] for name in PROMPTS if name in row}
    stated = {name: value for name, value in given.items() if not is_blank(value)} or dict(list(given.items())[:1])
    stated = _joined(stated)
    others = {name: value for name, value in row.items() if name not in PROMPTS}
    return others | ({"prompt": only_value(stated, "prompt")} if stated else {})


def _joined(stated: Row) -> Row:
    """The two fields of one prompt as one, with an empty line between them, or the one that holds both."""
    for pair in PROMPTS_IN_TWO_FIELDS:
        first, second = (stated.get(name) for name in pair)
        if isinstance(first, str) and isinstance(second, str):
            others = {name: value for name, value in stated.items() if name not in pair}
            return others | {pair[0]: second if pair[0] == "context" and first in second else f"{first}\n\n{second}"}
    return stated


def is_blank(value: Any) -> bool:
    return value in (None, []) or (isinstance(value, str) and not value.strip())


def is_whole(side: Any) -> bool:
    """Whether a side is a conversation from its start, and so does not begin with a reply."""
    if isinstance(side, str):
        return side.startswith("\n\nHuman:")
    first = side[0] if isinstance(side, list) and side else None
    return isinstance(first, dict) and first.get("role", first.get("from")) not in ("assistant", "gpt", "function_call")


def only_value(given: Mapping[str, Any], name: str) -> Any:
    """The one value of several spellings; raises PreferenceError if they differ by more than outer white space."""
    values = [value.strip() if isinstance(value, str) else value for value in given.values()]
    if any(value != values[0] for value in values):
        spelled = " and ".join(f"`{spelling}`" for spelling in given)
        raise PreferenceError(
            Reason.AMBIGUOUS_FIELD, f"{spelled} differ; name the right one as `{name}` in the setting columns"
        )
    return next(iter(given.values()))


def response_fields(row: Row) -> tuple[str, str] | None:
    """The two response fields that a row has, or None; raises PreferenceError if it has two such pairs."""
    found = [(name, _SECOND[name]) for name in row if name in _SECOND and _SECOND[name] in row]
    if len(found) > 1:
        raise _more_than_two()
    return found[0] if found else None


def require_no_third(row: Row, responses: tuple[str, str]) -> None:
    """Raise PreferenceError where a row has a third response, `output_3`, which no pair of the first two would show."""
    if _THIRD[responses] in row:
        raise _more_than_two()


def _more_than_two() -> PreferenceError:
    advice = "name response_a and response_b in the setting columns, or write a list of `responses` with `scores`"
    return PreferenceError(Reason.AMBIGUOUS_FIELD, f"more than two responses; {advice}")
