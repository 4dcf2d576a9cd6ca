"""Which format a row of a preference file has, and the preferences that it states.

A format is a msgspec record, whose type is its documentation, and a function from that record to what it states. Rows
are told apart by the fields they have, each for itself: several formats may stand in one file. To add a format, write
both and name them in `FORMATS`.
"""

import functools
from collections.abc import Callable
from typing import Any, get_args

import msgspec
from msgspec import Struct

from rm_assets.data.formats.blank_fields import require_scores, with_blank_fields
from rm_assets.data.formats.chosen_rejected import (
    ConversationsRecord,
    MessagesRecord,
    OpenAIRecord,
    PlainRecord,
    ShareGPTRecord,
    TranscriptRecord,
    from_conversations,
    from_messages,
    from_openai,
    from_plain,
    from_sharegpt,
    from_transcript,
)
from rm_assets.data.formats.comparisons import (
    ComparisonRecord,
    Verdict,
    from_comparison,
    verdict_of,
    with_label,
    with_verdict,
)
from rm_assets.data.formats.conversations.media import require_no_media
from rm_assets.data.formats.conversations.messages import MessageRecord, has_turns, parse_transcript
from rm_assets.data.formats.conversations.turn_markers import require_no_marker
from rm_assets.data.formats.conversations.written_lists import with_lists_read
from rm_assets.data.formats.exports.ballots import Ballots, voted_pairs
from rm_assets.data.formats.exports.dispatch import FIELDS, unwrapped
from rm_assets.data.formats.field_names import (
    CONVERSATIONS,
    KNOWN,
    NUMBERS,
    SPELLINGS,
    Row,
    is_blank,
    is_whole,
    only_value,
    require_no_template_kwargs,
    response_fields,
    with_one_name,
    with_own_columns,
    with_prompt,
)
from rm_assets.data.formats.file_rules import rules_of_row
from rm_assets.data.formats.json_lines import json_object
from rm_assets.data.formats.labels.numbers import with_numbers
from rm_assets.data.formats.labels.side_scores import with_side_scores
from rm_assets.data.formats.preferences import Format, Message, ParsedLine, ParsingRules, Preference, PreferenceError
from rm_assets.data.formats.rankings import (
    RankingRecord,
    ReplyListsRecord,
    ScoredListsRecord,
    from_ranking,
    from_reply_lists,
    from_scored_lists,
)
from rm_assets.data.formats.unknown_rows import missing_field
from rm_assets.data.formats.unread_fields import require_no_functions
from rm_assets.data.tables.reasons import Reason

__all__ = [
    "FORMATS",
    "Format",
    "Message",
    "ParsingRules",
    "Preference",
    "PreferenceError",
    "parse_line",
    "parse_row",
    "parse_transcript",
    "row_format",
]

FORMATS: dict[Format, tuple[type[Struct], Callable[[Any, ParsingRules], ParsedLine]]] = {
    Format.PLAIN: (PlainRecord, from_plain),
    Format.MESSAGES: (MessagesRecord, from_messages),
    Format.CONVERSATIONS: (ConversationsRecord, from_conversations),
    Format.TRANSCRIPT: (TranscriptRecord, from_transcript),
    Format.SHAREGPT: (ShareGPTRecord, from_sharegpt),
    Format.OPENAI: (OpenAIRecord, from_openai),
    Format.COMPARISON: (ComparisonRecord, from_comparison),
    Format.RANKING: (RankingRecord, from_ranking),
    Format.SCORED_LISTS: (ScoredListsRecord, from_scored_lists),
    Format.REPLY_LISTS: (ReplyListsRecord, from_reply_lists),
}


_DEFAULTS = ParsingRules()


def parse_row(text: str, rules: ParsingRules = _DEFAULTS) -> list[Preference]:
    """The preferences that one line of JSON states; raises PreferenceError where it states none."""
    return parse_line(text, rules).preferences


def parse_line(text: str | bytes, rules: ParsingRules) -> ParsedLine:
    """What one line of JSON states, with the pairs of a ranking that are no preferences or were left out."""
    found = unwrapped(json_object(text, KNOWN, FIELDS, rules.columns.values()), rules)
    return _stated_by_votes(found, rules) if isinstance(found, Ballots) else _stated_by_object(found, rules)


def _stated_by_votes(ballots: Ballots, rules: ParsingRules) -> ParsedLine:
    """The pairs that annotators voted for, each read as a row of its own."""
    voted = voted_pairs(ballots, rules)
    stated = [_stated_by_object(pair.row, rules) for pair in voted.pairs]
    preferences = [
        msgspec.structs.replace(read, num_annotators=pair.num_annotators, num_agreeing=pair.num_agreeing)
        for pair, found in zip(voted.pairs, stated, strict=True)
        for read in found.preferences
    ]
    return ParsedLine(
        preferences=preferences,
        num_tied=voted.num_tied,
        num_not_taken=voted.num_not_taken,
        num_left_out=voted.num_left_out,
        evidence=tuple(sign for found in stated for sign in found.evidence),
    )


def _stated_by_object(row: Row, rules: ParsingRules) -> ParsedLine:
    require_no_template_kwargs(row)
    if rules.columns:
        rules, row = rules_of_row(row, rules), with_own_columns(row, rules.columns)
    require_no_functions(row)
    require_no_media(row)
    row = with_numbers(with_lists_read(row), NUMBERS)
    given = {name: value for name, value in row.items() if value is not None}
    if len(given) == len(row):
        return _stated_by_row(row, rules)
    try:
        return _stated_by_row(given, rules)
    except PreferenceError as error:
        parse = functools.partial(_stated_by_row, rules=rules)
        blank = {name: rules.columns.get(name, name) for name in row.keys() - given.keys()}  # type: ignore[call-overload]
        raise with_blank_fields(error, given, blank, parse) from None


def _stated_by_row(row: Row, rules: ParsingRules) -> ParsedLine:
    """What a row states, whose fields have the names of this project or known spellings of them, and none is null."""
    row = _with_usual_names(row)
    format_name = _format_of(row, rules)
    record_type, stated_by_record = FORMATS[format_name]
    verdict = verdict_of(row, rules) if format_name is Format.COMPARISON else None
    signs = verdict.evidence if verdict else ()
    try:
        record = msgspec.convert(_in_form(row, format_name, rules, verdict), record_type)
        stated = stated_by_record(record, rules)
    except msgspec.ValidationError as error:
        problem = _wrong_field(error)
        problem.evidence = signs
        raise problem from None
    except PreferenceError as error:
        error.evidence = signs
        raise
    return msgspec.structs.replace(stated, evidence=signs) if signs else stated


def _in_form(row: Row, format_name: Format, rules: ParsingRules, verdict: Verdict | None) -> Row:
    """A row with the names that the record of its format has; a comparison has a verdict."""
    match format_name:
        case Format.OPENAI:
            return row
        case Format.SHAREGPT:
            given = {name: row[name] for name in CONVERSATIONS if name in row}
            return row | {"conversations": only_value(given, "prompt")}
        case Format.COMPARISON:
            assert verdict is not None
            return with_prompt(with_verdict(row, rules, verdict), "response_a", "response_b")
        case Format.RANKING:
            row = with_prompt(with_one_name(row, "responses", "scores"))
            row |= {"responses": list(map(_with_numbers_inside, row["responses"]))}
            require_scores(row)
            return row
        case Format.SCORED_LISTS:
            row = with_prompt(with_one_name(row, "responses", "scores"))
            require_scores(row)
            return row
        case _:
            return row


def _with_numbers_inside(response: Any) -> Any:
    return with_numbers(response, ("score", "rating", "rank")) if isinstance(response, dict) else response


def _with_usual_names(row: Row) -> Row:
    row = with_one_name(row, "chosen", "rejected", "system", "score_chosen", "score_rejected")
    return with_prompt(with_side_scores(row), "chosen", "rejected") if "chosen" in row and "rejected" in row else row


# --- which format a row has ----------------------------------------------------------------------------------


def row_format(row: Row) -> Format:
    """The format of a row, by the fields it has and whether they are texts or lists."""
    return _format_of(_with_usual_names(row), _DEFAULTS)


def _format_of(row: Row, rules: ParsingRules) -> Format:
    if "preferred_output" in row and "non_preferred_output" in row:
        return Format.OPENAI
    responses = response_fields(row)
    if "chosen" in row and "rejected" in row:
        if responses and sorted(map(repr, map(row.get, responses))) != sorted(map(repr, _sides(row))):
            problem = "`chosen` and `rejected` are not the two responses; the setting columns says which are meant"
            raise PreferenceError(Reason.AMBIGUOUS_FIELD, problem)
        if responses:
            _require_no_other_label(row, responses, rules)
        return _format_of_sides(row)
    if responses:
        return Format.COMPARISON
    lists = [row[name] for name in SPELLINGS["responses"] if isinstance(row.get(name), list)]
    if lists:
        return Format.SCORED_LISTS if _are_texts(lists[0]) else Format.RANKING
    missing = "rejected" if "chosen" in row else "chosen"
    known = "chosen" in row or "rejected" in row
    raise PreferenceError(Reason.MISSING_FIELD if known else Reason.UNKNOWN_FORMAT, missing_field(missing, row))


_NO_LABELS = frozenset({"chosen", "rejected", *SPELLINGS["preference_strength"]})
"""Fields beside two sides that are no other label of theirs: a strength there is their size."""


def _require_no_other_label(row: Row, responses: tuple[str, str], rules: ParsingRules) -> None:
    """Raise PreferenceError where a label of known spelling names another of the two responses than `chosen` is."""
    try:
        label = with_label({name: row[name] for name in row if name not in _NO_LABELS}, rules).get("label")
    except PreferenceError:  # that field says something else
        return
    better = dict(zip(("first", "second"), responses, strict=True)).get(label or "")
    if better and row[better] != row["chosen"]:
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, "`chosen` and the label of the row name different responses")


def _format_of_sides(row: Row) -> Format:
    chosen, rejected = _sides(row)
    if _are_texts(chosen) or _are_texts(rejected):
        return Format.REPLY_LISTS
    prompt = row.get("prompt")
    if not is_whole(chosen) and any(isinstance(row.get(name), list) for name in CONVERSATIONS):
        if not (is_blank(prompt) or _is_asked_last(prompt, row)):
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
        problem = f"`chosen` holds no conversation, and {missing_field('prompt', row)}"
        raise PreferenceError(Reason.MISSING_FIELD, problem)
    return Format.PLAIN


def _is_asked_last(prompt: Any, row: Row) -> bool:
    """Whether a prompt is the text of the user's message that ends the row's conversation, which then says it all."""
    last = next((row[name][-1] for name in CONVERSATIONS if isinstance(row.get(name), list) and row[name]), None)
    if not (isinstance(prompt, str) and isinstance(last, dict) and last.get("role", last.get("from")) in _ASKING):
        return False
    content = last.get("content", last.get("value"))
    return isinstance(content, str) and content.strip() == prompt.strip()


_ASKING = ("user", "human")


def _sides(row: Row) -> tuple[Any, Any]:
    return row["chosen"], row["rejected"]


def _are_texts(value: Any) -> bool:
    """Whether a list is one of texts, of which some may be null."""
    return isinstance(value, list) and isinstance(next((item for item in value if item is not None), None), str)


def _wrong_field(error: msgspec.ValidationError) -> PreferenceError:
    """msgspec's message without any text of the row: it names types and our own fields, but quotes enum values."""
    problem, _, place = str(error).partition(" - at ")
    where = f" at {place}" if place else ""
    if problem.startswith("Object missing required field"):
        return PreferenceError(Reason.MISSING_FIELD, f"{problem}{where}")
    if problem.startswith("Invalid enum value"):
        problem = f"a value that is none of {_ALLOWED.get(place.strip('`').rpartition('.')[2], 'those allowed')}"
    elif not problem.startswith("Expected"):
        problem = "a value that is not allowed"
    return PreferenceError(Reason.WRONG_TYPE, f"{problem}{where}")


_ALLOWED = {
    name: ", ".join(get_args(get_args(MessageRecord.__annotations__[field])[0]))
    for name, field in (("role", "role"), ("from", "speaker"))
}
"""The values that these fields of a message may have."""
