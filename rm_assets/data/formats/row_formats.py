"""Detects the format of a row by its fields, and renames them to those of that format's record."""

from typing import Any

from rm_assets.data.formats.comparisons import read_verdict
from rm_assets.data.formats.conversations.messages import has_turns
from rm_assets.data.formats.conversations.turn_markers import require_no_marker
from rm_assets.data.formats.field_names import (
    CONVERSATIONS,
    SPELLINGS,
    Row,
    is_blank,
    is_whole,
    join_prompt,
    only_value,
    require_no_third,
    response_fields,
    use_canonical_names,
)
from rm_assets.data.formats.labels.side_scores import add_side_scores
from rm_assets.data.formats.labels.values import parse_numbers
from rm_assets.data.formats.missing_fields import missing_field, require_scores
from rm_assets.data.formats.preferences import Evidence, Format, ParsingRules, PreferenceError
from rm_assets.data.tables.reasons import Reason


def detect_format(row: Row, rules: ParsingRules, evidence: list[Evidence]) -> tuple[Format, Row]:
    """The format of a row, and the row with the fields of that format's record.

    What the label of a comparison implies for other rows is appended to `evidence`. Raises PreferenceError for a row of
    no known format.
    """
    row = use_canonical_names(row, "chosen", "rejected", "system", "score_chosen", "score_rejected")
    has_sides = "chosen" in row and "rejected" in row
    if has_sides:
        row = join_prompt(add_side_scores(row), "chosen", "rejected")
    if "preferred_output" in row and "non_preferred_output" in row:
        return Format.OPENAI, row
    responses = response_fields(row)
    if has_sides:
        if responses:
            _require_agreement(row, responses, rules)
        format_name = _format_of_sides(row)
        if format_name is Format.SHAREGPT:
            given = {name: row[name] for name in CONVERSATIONS if name in row}
            row = row | {"conversations": only_value(given, "prompt")}
        return format_name, row
    if responses:
        require_no_third(row, responses)
        return Format.COMPARISON, join_prompt(read_verdict(row, responses, rules, evidence), "response_a", "response_b")
    lists = [row[name] for name in SPELLINGS["responses"] if isinstance(row.get(name), list)]
    if not lists:
        missing = "rejected" if "chosen" in row else "chosen"
        reason = Reason.MISSING_FIELD if "chosen" in row or "rejected" in row else Reason.UNKNOWN_FORMAT
        raise PreferenceError(reason, missing_field(missing, row))
    row = join_prompt(use_canonical_names(_lists_as_plural(row), "responses", "scores"))
    format_name = Format.SCORED_LISTS if _are_texts(lists[0]) else Format.RANKING
    if format_name is Format.RANKING:
        row = row | {"responses": [_with_number(response) for response in row["responses"]]}
    require_scores(row)
    return format_name, row


def _lists_as_plural(row: Row) -> Row:
    """The row with lists called `score`, `rating` or `rank`, as distilabel 0 has them, as `scores` and so on."""
    return {f"{name}s": row[name] for name in ("score", "rating", "rank") if isinstance(row.get(name), list)} | row


def _with_number(response: Any) -> Any:
    return parse_numbers(response, ("score", "rating", "rank")) if isinstance(response, dict) else response


_NOT_LABELS = frozenset({"chosen", "rejected", *SPELLINGS["preference_strength"]})
"""Fields that are not a second label beside `chosen` and `rejected`: a strength there is the size of the preference."""


def _require_agreement(row: Row, responses: tuple[str, str], rules: ParsingRules) -> None:
    """Raise PreferenceError where `chosen` and `rejected` are not the two responses, or a label prefers another one."""
    sides = (row["chosen"], row["rejected"])
    if sorted(map(repr, map(row.get, responses))) != sorted(map(repr, sides)):
        problem = "`chosen` and `rejected` are not the two responses; name the right fields in the setting columns"
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, problem)
    try:
        others = {name: value for name, value in row.items() if name not in _NOT_LABELS}
        label = read_verdict(others, responses, rules, []).get("label")
    except PreferenceError:  # the field is not a label
        return
    better = dict(zip(("first", "second"), responses, strict=True)).get(label or "")
    if better and row[better] != row["chosen"]:
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, "`chosen` and the label of the row name different responses")


def _format_of_sides(row: Row) -> Format:
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if _are_texts(chosen) or _are_texts(rejected):
        return Format.REPLY_LISTS
    if not is_whole(chosen) and any(isinstance(row.get(name), list) for name in CONVERSATIONS):
        if not (is_blank(prompt) or _ends_conversation(prompt, row)):
            raise PreferenceError(Reason.AMBIGUOUS_FIELD, "both a prompt and earlier messages are given")
        return Format.SHAREGPT
    if isinstance(chosen, list) and prompt is None:
        return Format.CONVERSATIONS
    if isinstance(chosen, list | dict) or isinstance(prompt, list):
        return Format.MESSAGES
    if isinstance(chosen, str) and isinstance(prompt, str | None) and has_turns(prompt, chosen):
        return Format.TRANSCRIPT
    if prompt is None:
        require_no_marker(None, chosen, rejected)
        problem = f"`chosen` is not a conversation, and {missing_field('prompt', row)}"
        raise PreferenceError(Reason.MISSING_FIELD, problem)
    return Format.PLAIN


def _ends_conversation(prompt: Any, row: Row) -> bool:
    """Whether the prompt only repeats the user's message with which the row's conversation ends."""
    last = next((row[name][-1] for name in CONVERSATIONS if isinstance(row.get(name), list) and row[name]), None)
    if not (isinstance(prompt, str) and isinstance(last, dict)):
        return False
    content = last.get("content", last.get("value"))
    is_asked = last.get("role", last.get("from")) in ("user", "human")
    return is_asked and isinstance(content, str) and content.strip() == prompt.strip()


def _are_texts(value: Any) -> bool:
    """Whether a value is a list of texts and nulls, judged by its first item that is not null."""
    return isinstance(value, list) and isinstance(next((item for item in value if item is not None), None), str)
