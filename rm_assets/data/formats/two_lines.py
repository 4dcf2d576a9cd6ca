r"""NeMo-Aligner's files with two lines per pair: `{"text": "<prompt, chosen>"}`, then `{"text": "<prompt, rejected>"}`.

Read by the setting `two_line_files` only: nothing in a line says which of the two it is, and a lost line would swap or
mismatch all pairs after it. So a pair is made of the 1st and 2nd, the 3rd and 4th non-blank line of a file, rejected
ones included, and two texts that do not share their prompt are rejects, never matched with others. Where a line is lost
among several pairs of one prompt, those after it share their prompt, but are swapped: the last line of that prompt
then has no partner, and the file is held back. A text is a transcript (`\n\nHuman:`) or NeMo's chat
(`<extra_id_0>System\n...\n<extra_id_1>User\n...\n<extra_id_1>Assistant\n`).
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec

from rm_assets.data.formats.chosen_rejected import Common, preference, score_margin
from rm_assets.data.formats.conversations.messages import Sides, split_at_difference
from rm_assets.data.formats.conversations.transcripts import (
    begins_nemo_chat,
    is_transcript,
    nemo_messages,
    parse_transcript,
)
from rm_assets.data.formats.field_names import MEDIA
from rm_assets.data.formats.json_lines import json_object
from rm_assets.data.formats.preferences import Format, Message, ParsedLine, PreferenceError
from rm_assets.data.formats.unread_fields import require_no_media, require_no_template_kwargs
from rm_assets.data.tables.reasons import Reason

NumberedLine = tuple[int, str | bytes | None]
"""A line's number and its text, or the text's UTF-8; None where it was rejected before."""
PairOfLines = tuple[NumberedLine, NumberedLine | None]
"""Two lines that follow each other; None where an odd last one has no partner."""


class TwoLineRecord(Common, kw_only=True):
    """One side of a pair: its whole conversation. Its other fields may be in one line, or in both."""

    text: str


def pairs_of_lines(lines: list[NumberedLine]) -> Iterator[PairOfLines]:
    """Non-blank lines two by two, in the order of their numbers."""
    ordered = sorted(lines, key=lambda line: line[0])
    for place in range(0, len(ordered), 2):
        yield ordered[place], ordered[place + 1] if place + 1 < len(ordered) else None


def num_broken_prompts(pairs: Sequence[PairOfLines], unmatched: Collection[int], before: PairOfLines | None) -> int:
    """How many prompts have lost a line, which may have swapped some of their pairs.

    The pair before a line without a partner has the same prompt then. `unmatched` are the first lines of pairs whose
    two lines do not match; `before` is the pair before the first one.
    """
    return sum(
        previous is not None and _share_prompt(*previous) and _share_prompt(previous[1], first)
        for previous, (first, second) in zip([before, *pairs], pairs, strict=False)
        if first[0] in unmatched and not (second and second[1] is None)  # its line was rejected, not lost
    )


def _share_prompt(one: NumberedLine | None, other: NumberedLine | None) -> bool:
    if one is None or other is None or one[1] is None or other[1] is None:
        return False
    try:
        _compared(one[1], other[1])
    except PreferenceError as error:
        return error.reason is Reason.IDENTICAL_REPLIES
    return True


def parse_two_lines(first: NumberedLine, second: NumberedLine | None) -> ParsedLine:
    """What two lines state together; raises PreferenceError for both where one of them is missing or invalid."""
    if second is None:
        raise PreferenceError(Reason.INCOMPLETE_PAIR, "the file has an odd number of lines")
    if first[1] is None or second[1] is None:
        raise PreferenceError(Reason.INCOMPLETE_PAIR, "the other line of the pair was rejected")
    sides, records = _compared(first[1], second[1])
    common = _common(*records)
    return ParsedLine(preferences=[preference(common, Format.TWO_LINES, sides, score_margin(common))])


def _compared(one: str | bytes, other: str | bytes) -> tuple[Sides, tuple[TwoLineRecord, TwoLineRecord]]:
    first, second = _record(one), _record(other)
    return split_at_difference(_conversation(first.text), _conversation(second.text)), (first, second)


def _record(line: str | bytes) -> TwoLineRecord:
    row = json_object(line, TwoLineRecord.__struct_fields__, MEDIA)
    require_no_media(row)
    require_no_template_kwargs(row)
    if "text" not in row:
        raise PreferenceError(Reason.MISSING_FIELD, "no field `text`, which each line of two-line files has")
    try:
        return msgspec.convert(row, TwoLineRecord)
    except msgspec.ValidationError:
        problem = (
            "a field other than `text` has the wrong type" if isinstance(row["text"], str) else "`text` is not a string"
        )
        raise PreferenceError(Reason.WRONG_TYPE, problem) from None


def _common(*records: TwoLineRecord) -> Common:
    """The fields of a pair besides its texts, from both of its lines."""
    found: dict[str, Any] = {}
    for name in Common.__struct_fields__:
        given = [value for record in records if (value := getattr(record, name)) is not None]
        if any(value != given[0] for value in given):
            raise PreferenceError(Reason.AMBIGUOUS_FIELD, f"the two lines have different values of `{name}`")
        found[name] = given[0] if given else None
    return Common(**found)


def _conversation(text: str) -> tuple[Message, ...]:
    if is_transcript(text):
        return parse_transcript(text)
    if not begins_nemo_chat(text) or "<extra_id_2>" in text:
        raise PreferenceError(Reason.UNKNOWN_FORMAT, "`text` is neither a transcript nor a NeMo chat")
    return nemo_messages(text)
