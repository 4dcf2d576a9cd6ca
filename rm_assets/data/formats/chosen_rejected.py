"""The formats that name a chosen and a rejected reply: a typed record each, and its pair."""

import msgspec
from msgspec import Struct

from rm_assets.data.formats.conversations.messages import (
    MessageRecord,
    Prompt,
    Reply,
    Sides,
    equal_but_for_space,
    split_sides,
    split_system,
)
from rm_assets.data.formats.conversations.tool_texts import Listed, sorted_json, tools_text
from rm_assets.data.formats.preferences import Format, Message, ParsedLine, ParsingRules, Preference, PreferenceError
from rm_assets.data.tables.reasons import Reason

# --- the records, as files have them -------------------------------------------------------------------------


class Common(Struct, kw_only=True):
    """What a row of any format may have besides; the difference of both scores is the margin of a row without one."""

    system: str | None = None
    history: list[tuple[str, str]] | None = None
    tools: Listed = None
    margin: float | None = None
    score_chosen: float | None = None
    score_rejected: float | None = None
    subset: str | None = None


class PlainRecord(Common, kw_only=True):
    """`{"prompt": "...", "chosen": "...", "rejected": "..."}`"""

    prompt: str
    chosen: str
    rejected: str


class MessagesRecord(Common, kw_only=True):
    """`prompt`, `chosen` and `rejected` as lists of messages; a text is one message of its side.

    Where the replies are whole conversations that begin with the prompt, the prompt is checked against them.
    """

    prompt: Prompt
    chosen: Reply
    rejected: Reply


class ConversationsRecord(Common, kw_only=True):
    """`chosen` and `rejected` as lists of messages that share their beginning, which is the prompt."""

    chosen: list[MessageRecord]
    rejected: list[MessageRecord]


class TranscriptRecord(Common, kw_only=True):
    r"""`\n\nHuman: ...\n\nAssistant: ...` texts; with `prompt`, the replies continue it, or repeat it."""

    prompt: str | None = None
    chosen: str
    rejected: str


class ShareGPTRecord(Common, kw_only=True):
    """`{"conversations": [{"from": "human", "value": "..."}], "chosen": {"from": "gpt", "value": "..."}, ...}`"""

    conversations: list[MessageRecord]
    chosen: Reply
    rejected: Reply


class OpenAIInput(Struct, kw_only=True):
    """The request whose two outputs are compared."""

    messages: list[MessageRecord]
    tools: Listed = None


class OpenAIRecord(Common, kw_only=True):
    """`{"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}`"""

    input: OpenAIInput
    preferred_output: list[MessageRecord]
    non_preferred_output: list[MessageRecord]


# --- from a record to preferences ----------------------------------------------------------------------------


SidesRecord = PlainRecord | MessagesRecord | ConversationsRecord | TranscriptRecord | ShareGPTRecord


def from_sides(record: SidesRecord, format_name: Format, rules: ParsingRules) -> ParsedLine:
    """The pair of a row with `chosen` and `rejected`, and what comes before them."""
    prompt: Prompt | None = None
    match record:
        case ShareGPTRecord():
            prompt = record.conversations
        case PlainRecord() | MessagesRecord() | TranscriptRecord():
            prompt = record.prompt
    return one_pair(record, format_name, split_sides(prompt, record.chosen, record.rejected))


def from_openai(record: OpenAIRecord, format_name: Format, rules: ParsingRules) -> ParsedLine:
    """The pair of a row in OpenAI's preference format."""
    tools = [text for text in map(tools_text, (record.input.tools, record.tools)) if text]
    if len(set(map(sorted_json, tools))) > 1:
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, "`tools` and the `tools` of `input` differ")
    record = msgspec.structs.replace(record, tools=tools[0] if tools else None)
    sides = split_sides(record.input.messages, record.preferred_output, record.non_preferred_output)
    return one_pair(record, format_name, sides)


def one_pair(record: Common, format_name: Format, sides: Sides) -> ParsedLine:
    """The pair of a row that has one, with the margin of its scores."""
    return ParsedLine(preferences=[preference(record, format_name, sides, score_margin(record))])


def preference(record: Common, format_name: Format, sides: Sides, margin: float) -> Preference:
    """One preference with the tools, subset and margin of its row; a `margin` field overrides any other margin."""
    if record.margin is not None and record.margin < 0:
        raise PreferenceError(Reason.SCORES_DISAGREE, "`margin` is negative")
    prompt, chosen, rejected = sides
    return Preference(
        prompt=_with_opening(record, prompt),
        chosen=chosen,
        rejected=rejected,
        tools=tools_text(record.tools),
        margin=margin if record.margin is None else record.margin,
        subset=record.subset or "",
        format=format_name,
    )


def score_margin(record: Common) -> float:
    """The difference of the scores of a row that has both; it must agree with the labels."""
    if record.score_chosen is None or record.score_rejected is None:
        return 0.0
    difference = record.score_chosen - record.score_rejected
    if difference == 0:
        raise PreferenceError(Reason.TIE, "`score_chosen` and `score_rejected` are equal")
    if difference < 0:
        raise PreferenceError(Reason.SCORES_DISAGREE, "`score_chosen` is below `score_rejected`")
    return difference


def _with_opening(record: Common, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt after the row's system text and earlier turns, unless it begins with them itself."""
    if record.system is None and record.history is None:
        return prompt
    system, turns = split_system(prompt)
    if (record.system or "").strip():
        stated = (Message(role="system", content=record.system),)
        if system and not equal_but_for_space(system, stated):
            raise PreferenceError(Reason.AMBIGUOUS_FIELD, "`system` differs from the system message of the prompt")
        system = system or stated
    roles = ("user", "assistant")
    history = tuple(
        Message(role=role, content=content)
        for pair in record.history or []
        for role, content in zip(roles, pair, strict=True)
    )
    begins_with_history = equal_but_for_space(history, turns[: len(history)])
    return system + (() if begins_with_history else history) + turns
