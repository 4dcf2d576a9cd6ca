"""From one line of JSON to its preferences.

line -> JSON object -> fields of the usual names -> format -> typed record -> preferences, or an error with one reason

A format is a msgspec record, whose type is its documentation, and a function from this record to preferences. The
format is detected row by row: one file may hold several. See the README.md of this folder for how to add one.
"""

from collections.abc import Callable
from typing import Any, get_args

import msgspec
from msgspec import Struct

from rm_assets.data.formats.chosen_rejected import (
    ConversationsRecord,
    MessagesRecord,
    OpenAIRecord,
    PlainRecord,
    ShareGPTRecord,
    TranscriptRecord,
    from_openai,
    from_sides,
)
from rm_assets.data.formats.comparisons import ComparisonRecord, from_comparison
from rm_assets.data.formats.conversations.messages import MessageRecord
from rm_assets.data.formats.conversations.written_lists import parse_written_lists
from rm_assets.data.formats.exports import argilla, label_studio, public_sets
from rm_assets.data.formats.exports.ballots import Ballots, voted_pairs
from rm_assets.data.formats.field_names import KNOWN, NUMBERS, Row, use_own_columns
from rm_assets.data.formats.file_rules import rules_of_row
from rm_assets.data.formats.json_lines import json_object
from rm_assets.data.formats.labels.values import parse_numbers
from rm_assets.data.formats.missing_fields import explain_null_fields
from rm_assets.data.formats.preferences import Evidence, Format, ParsedLine, ParsingRules, PreferenceError
from rm_assets.data.formats.rankings import (
    RankingRecord,
    ReplyListsRecord,
    ScoredListsRecord,
    from_ranking,
    from_reply_lists,
    from_scored_lists,
)
from rm_assets.data.formats.row_formats import detect_format
from rm_assets.data.formats.unread_fields import require_only_read_fields
from rm_assets.data.tables.reasons import Reason

FORMATS: dict[Format, tuple[type[Struct], Callable[[Any, Format, ParsingRules], ParsedLine]]] = {
    Format.PLAIN: (PlainRecord, from_sides),
    Format.MESSAGES: (MessagesRecord, from_sides),
    Format.CONVERSATIONS: (ConversationsRecord, from_sides),
    Format.TRANSCRIPT: (TranscriptRecord, from_sides),
    Format.SHAREGPT: (ShareGPTRecord, from_sides),
    Format.OPENAI: (OpenAIRecord, from_openai),
    Format.COMPARISON: (ComparisonRecord, from_comparison),
    Format.RANKING: (RankingRecord, from_ranking),
    Format.SCORED_LISTS: (ScoredListsRecord, from_scored_lists),
    Format.REPLY_LISTS: (ReplyListsRecord, from_reply_lists),
}
EXPORT_MARKS = argilla.MARKS | label_studio.MARKS | public_sets.MARKS
"""A row without any of these fields is not an export of an annotation tool, nor of a public set."""
EXPORT_FIELDS = argilla.FIELDS | label_studio.FIELDS | public_sets.FIELDS
"""The fields that are read of exports: none of them may be given twice in one object."""


def parse_line(text: str | bytes, rules: ParsingRules) -> ParsedLine:
    """The preferences of one line of JSON, text or UTF-8; raises PreferenceError where it states none."""
    row = json_object(text, KNOWN, EXPORT_FIELDS, rules.columns.values())
    if row.keys().isdisjoint(EXPORT_MARKS):
        return _parse_object(row, rules)
    if ballots := argilla.ballots_of_argilla(row, rules) or label_studio.ballots_of_label_studio(row, rules):
        return _parse_votes(ballots, rules)
    return _parse_object(public_sets.normalize_row(label_studio.normalize_row(row), rules.columns.values()), rules)


def _parse_votes(ballots: Ballots, rules: ParsingRules) -> ParsedLine:
    """The pairs that several annotators voted for, each parsed as a row of its own."""
    voted = voted_pairs(ballots, rules)
    preferences = [
        msgspec.structs.replace(preference, num_annotators=vote.num_annotators, num_agreeing=vote.num_agreeing)
        for row, vote in voted.pairs
        for preference in _parse_object(row, rules).preferences
    ]
    counts = {name: getattr(voted, name) for name in ("num_tied", "num_not_taken", "num_left_out")}
    return ParsedLine(preferences=preferences, **counts)


def _parse_object(row: Row, rules: ParsingRules) -> ParsedLine:
    if rules.columns:
        rules, row = rules_of_row(row, rules), use_own_columns(row, rules.columns)
    require_only_read_fields(row)
    row = parse_numbers(parse_written_lists(row), NUMBERS)
    given = {name: value for name, value in row.items() if value is not None}
    try:
        return _parse_fields(given, rules)
    except PreferenceError as error:
        if len(given) == len(row):
            raise
        null_fields = {name: rules.column_of(name) for name in row if name not in given}
        raise explain_null_fields(error, given, null_fields, lambda filled: _parse_fields(filled, rules)) from None


def _parse_fields(row: Row, rules: ParsingRules) -> ParsedLine:
    """The preferences of a row without nulls, whose fields have known names."""
    evidence: list[Evidence] = []
    try:
        format_name, row = detect_format(row, rules, evidence)
        record_type, from_record = FORMATS[format_name]
        parsed = from_record(_record(row, record_type), format_name, rules)
    except PreferenceError as error:
        error.evidence = tuple(evidence)
        raise
    return msgspec.structs.replace(parsed, evidence=tuple(evidence)) if evidence else parsed


def _record(row: Row, record_type: type[Struct]) -> Struct:
    """The row as a record; raises PreferenceError with msgspec's message, but without any text of the row.

    The message names types and our own fields, but it quotes the values of enums.
    """
    try:
        return msgspec.convert(row, record_type)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at ")
    where = f" at {place}" if place else ""
    if problem.startswith("Object missing required field"):
        raise PreferenceError(Reason.MISSING_FIELD, f"{problem}{where}")
    if found := _not_one_text(place.strip("`$."), row):
        raise PreferenceError(Reason.WRONG_TYPE, found)
    if problem.startswith("Invalid enum value"):
        problem = f"a value other than {_ALLOWED.get(place.strip('`').rpartition('.')[2], 'those allowed')}"
    elif not problem.startswith("Expected"):
        problem = "a value that is not allowed"
    raise PreferenceError(Reason.WRONG_TYPE, f"{problem}{where}")


def _not_one_text(field: str, row: Row) -> str:
    """Why a field holds an object where a text belongs, if a tool wrote it so; empty for any other field."""
    value = row.get(field)
    names = value.keys() if isinstance(value, dict) else ()
    if set(names) == {"num_bytes", "sha256"}:
        return f"`{field}` holds bytes instead of text: write the column as strings"
    if names and all(name.isdecimal() for name in names):
        return f"`{field}` holds a whole column: write one row per line, in pandas with orient='records', lines=True"
    return ""


_ALLOWED = {
    name: ", ".join(get_args(get_args(MessageRecord.__annotations__[field])[0]))
    for name, field in (("role", "role"), ("from", "speaker"))
}
"""The values that these fields of a message may have."""
