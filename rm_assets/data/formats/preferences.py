"""The common form of all formats: a preference between two continuations of one prompt, as messages."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from msgspec import UNSET, Struct, UnsetType

from rm_assets.data.tables.reasons import Reason
from rm_assets.json_settings import Column, Label
from rm_assets.settings import Annotators


class PreferenceError(ValueError):
    """A row without a usable preference. The detail never quotes the row's own text."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.evidence: tuple[Evidence, ...] = ()


class EvidenceKind(StrEnum):
    """What a verdict implies for other rows of its shape; see `rm_assets.data.formats.labels.consistency`."""

    # of numeric labels
    NAMED = "named"
    """read as the name of a response"""
    OTHER = "other"
    """names no response, and the setting `labels` says what it means"""
    OWN = "own"
    """does not name a response, by the labels of its own column or file"""
    UNCLEAR = "unclear"
    """may mean either response"""
    # of strengths without a label
    NEGATIVE = "negative"
    POSITIVE = "positive"
    BEYOND = "beyond"
    # of strengths beside a label
    SIGNED = "signed"
    """below zero"""
    SIZE = "size"
    """has no sign of its own, unless others of the shape have one"""


class Evidence(NamedTuple):
    """What one verdict implies for the others of its shape, which have the same columns for verdict and responses."""

    shape: str
    kind: EvidenceKind
    value: str


class Format(StrEnum):
    """The formats a row can have."""

    PLAIN = "plain"
    MESSAGES = "messages"
    CONVERSATIONS = "conversations"
    TRANSCRIPT = "transcript"
    SHAREGPT = "sharegpt"
    OPENAI = "openai"
    COMPARISON = "comparison"
    RANKING = "ranking"
    SCORED_LISTS = "scored_lists"
    REPLY_LISTS = "reply_lists"
    TWO_LINES = "two_lines"


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of a conversation; `tool_calls` is JSON text in the file's order. Keys that are None are absent."""

    role: str
    content: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: str | None = None
    tool_call_id: str | None = None


class Preference(Struct, frozen=True, kw_only=True):
    """One comparison in canonical form: two continuations of one prompt.

    `tools` is JSON text in the order of the file, or empty. `num_annotators` judged the pair and `num_agreeing` of them
    prefer `chosen`; both are 0 where the row has no such counts.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: str = ""
    margin: float = 0.0
    subset: str = ""
    num_annotators: int = 0
    num_agreeing: int = 0
    format: Format


class ParsedLine(Struct, frozen=True, kw_only=True):
    """The preferences of one row.

    For a ranking also how many pairs are tied (`num_tied`) or over the limit (`num_not_taken`), and how many responses
    are empty or unranked (`num_left_out`). `equal_cells` are the indices of a chosen and a rejected reply, in a line of
    an evaluation set, that are equal, which counts as a tie.
    """

    preferences: list[Preference]
    num_tied: int = 0
    num_not_taken: int = 0
    num_left_out: int = 0
    equal_cells: tuple[tuple[int, int], ...] = ()
    evidence: tuple[Evidence, ...] = ()


class ParsingRules(Struct, frozen=True, kw_only=True):
    """The settings that decide how a row of one file is read.

    `labels` apply to all labels or, with `labels_are_own`, to those of this file; `column_labels` to those of a column.
    `is_evaluation` is true for files of an evaluation set.
    """

    columns: dict[Column, str] = {}
    labels: dict[str, Label] = {}
    annotators: Annotators = "majority"
    labels_are_own: bool = False
    column_labels: dict[str, dict[str, Label]] = {}
    max_pairs_per_prompt: int = 10
    two_line_files: bool = False
    is_evaluation: bool | UnsetType = UNSET  # unset for annotations, so the keys of their shards stay as they were

    def column_of(self, name: str) -> str:
        """The user's own column for a field, or the field's own name."""
        columns: Mapping[Any, str] = self.columns
        return columns.get(name, name)
