"""Why a row states no pair where fields of it are missing or null, and which setting helps.

A field that is null does not make a row malformed: the row is unlabelled, or a reply or the prompt is empty.
"""

from collections.abc import Callable, Mapping
from typing import Any

from rm_assets.data.formats.conversations.transcripts import begins_nemo_chat, is_transcript
from rm_assets.data.formats.field_names import (
    CONVERSATIONS,
    LABELS,
    PROMPTS,
    RESPONSES,
    SIDES,
    SPELLINGS,
    Row,
    response_fields,
)
from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason
from rm_assets.display_text import as_code

# --- fields that are missing ---------------------------------------------------------------------------------

_MAX_LISTED = 8
_MAX_CHARACTERS = 40
_MAX_WORDS = 4
_SINGLE = ("response", "completion", "output", "answer", *CONVERSATIONS, "conversation")
"""Fields of rows that have one reply, such as those for KTO or for training on demonstrations."""
_NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "plain": (PROMPTS, SPELLINGS["chosen"], SPELLINGS["rejected"]),
    "comparison": (PROMPTS, ("response_a",), ("response_b",), (*LABELS, *SPELLINGS["preference_strength"])),
    "ranking": (PROMPTS, SPELLINGS["responses"]),
    "openai": (("input",), ("preferred_output",), ("non_preferred_output",)),
    "two_lines": (("text",),),
}
"""The fields that formats need, each with its spellings; of equally near formats the first one is named."""


def missing_field(name: str, row: Row) -> str:
    """The detail of a row without a field; of the row's own text it shows only the first few names of fields.

    A name as long as a sentence is left out: it may be somebody's text.
    """
    names = [field for field in row if len(field) <= _MAX_CHARACTERS and len(field.split()) <= _MAX_WORDS]
    listed = ", ".join(map(as_code, names[:_MAX_LISTED]))
    num_more = len(row) - len(names[:_MAX_LISTED])
    listed += f" and {num_more} more" * (num_more > 0) if listed else f"only fields with very long names ({num_more})"
    found = f"the row has {listed}" if row else "the row has no field that is not null"
    holder = next((field for field in names if _holds_rows(row[field])), None)
    if holder and row.keys().isdisjoint(PROMPTS):
        advice = f"{as_code(holder)} holds rows: write one row per line, or a .json file that is a single list of rows"
        return f"no field `{name}`; {found}; {advice}"
    single = [reply for reply in _SINGLE if reply in row]
    if name == "chosen" and len(single) == 1 and "rejected" not in row:
        advice = f"`{single[0]}` holds one reply, and a pair needs two: write both replies to a prompt in one row"
        return f"no field `{name}`; {found}; {advice}"
    return f"no field `{name}`; {found}{_nearest(row)}; map your columns to fields in the setting columns"


def _nearest(row: Row) -> str:
    """The format of which a row has most fields, if it has any, and what it lacks."""
    missing = {
        name: [spellings[0] for spellings in needed if row.keys().isdisjoint(spellings)]
        for name, needed in _NEEDED.items()
    }
    if any(one in row or other in row for one, other in RESPONSES):
        others = [name for name in missing["comparison"] if "response_" not in name]
        missing["comparison"] = others + _other_response(row)
    if not _is_conversation(row.get("text")):
        del missing["two_lines"]
    num_found = {name: len(_NEEDED[name]) - len(fields) for name, fields in missing.items()}
    nearest = max(num_found, key=lambda name: num_found[name])
    if nearest == "two_lines":
        return ", as in files of two lines per pair (two_line_files)"
    lacking = " and ".join(f"`{field}`" for field in missing[nearest])
    return f"; the nearest format is {nearest}, which also needs {lacking}" if num_found[nearest] and lacking else ""


def _is_conversation(text: Any) -> bool:
    return isinstance(text, str) and (is_transcript(text) or begins_nemo_chat(text))


def _holds_rows(value: Any) -> bool:
    """Whether a value is a row with two replies, or a list of such rows."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and any(one in first and other in first for one, other in SIDES)


def _other_response(row: Row) -> list[str]:
    """The missing response of a comparison: `output_2` for a row with only `output_1`; empty if it has both."""
    if any(one in row and other in row for one, other in RESPONSES):
        return []
    return next(([other if one in row else one] for one, other in RESPONSES if one in row or other in row), [])


# --- fields that are null ------------------------------------------------------------------------------------

_DAMAGE = (Reason.MISSING_FIELD, Reason.UNKNOWN_FORMAT)
_REPLIES = frozenset(name for sides in SIDES for name in sides) | {*SPELLINGS["responses"]}
_SCORES = frozenset({*SPELLINGS["scores"], "ranks"})
_VERDICTS = frozenset({*LABELS, *SPELLINGS["preference_strength"], *_SCORES})
_FILLED = _REPLIES.union(_VERDICTS, PROMPTS) - _SCORES


def explain_null_fields(
    error: PreferenceError, row: Row, null_fields: Mapping[str, str], parse: Callable[[Row], object]
) -> PreferenceError:
    """The error to raise for a row with null fields: `error`, unless filling these would make the row valid.

    `null_fields` maps fields to the columns that the file has them in; `parse` parses a row.
    """
    if error.reason not in _DAMAGE or not (problem := _problem_of_nulls(row, null_fields)):
        return error
    try:
        parse(row | {name: _placeholder(name, row) for name in _FILLED.intersection(null_fields)})
    except PreferenceError as other:
        if other.reason in (*_DAMAGE, Reason.WRONG_TYPE) and not _SCORES.intersection(null_fields):
            return error  # more is missing than what they would hold
    return problem


def require_scores(row: Row) -> None:
    """Raise PreferenceError where a ranking has fields of scores or ranks, and each of them is null."""
    items = [item for item in row["responses"] if isinstance(item, dict)]
    lists = [row[name] for name in ("scores", "ranks") if isinstance(row.get(name), list)]
    given = [item[name] for item in items for name in ("score", "rating", "rank") if name in item]
    given += [value for values in lists for value in values]
    if given and all(value is None for value in given):
        raise PreferenceError(Reason.UNLABELLED, "every score or rank of the responses is null")


def _problem_of_nulls(row: Row, null_fields: Mapping[str, str]) -> PreferenceError | None:
    groups = (
        (_VERDICTS - _REPLIES if not response_fields(row) else _VERDICTS, Reason.UNLABELLED, "{} is null: no verdict"),
        (_REPLIES, Reason.EMPTY_REPLY, "{} is null"),
        (frozenset(PROMPTS), Reason.EMPTY_MESSAGE, "{} is null"),
    )
    order = groups if response_fields(row) else (groups[1], groups[0], groups[2])
    for names, reason, detail in order:
        if found := sorted(names.intersection(null_fields)):
            return PreferenceError(
                reason, detail.format(" and ".join(as_code(null_fields[name]) for name in found[:2]))
            )
    return None


def _placeholder(name: str, row: Row) -> Any:
    """An empty value such as the other side would have it."""
    others = (one if other == name else other for one, other in SIDES if name in (one, other))
    return [] if any(isinstance(row.get(other), list) for other in others) else ""
