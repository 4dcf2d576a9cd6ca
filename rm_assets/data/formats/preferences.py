"""What every format is turned into: a preference between two continuations of one prompt, as messages."""

from enum import StrEnum

from msgspec import Struct

from rm_assets.data.records import Reason
from rm_assets.settings import Annotators, Column, Label


class PreferenceError(ValueError):
    """A row that states no usable preference. The detail never holds the row's own text."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


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
    prefer `chosen`; both are 0 where the row does not say.
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


class Stated(Struct, frozen=True, kw_only=True):
    """What one row states: its preferences, and how many pairs of a ranking are none or were left out."""

    preferences: list[Preference]
    num_tied: int = 0
    num_not_taken: int = 0
    num_left_out: int = 0


class ParsingRules(Struct, frozen=True, kw_only=True):
    """The settings that decide what a row states."""

    columns: dict[Column, str] = {}
    labels: dict[str, Label] = {}
    annotators: Annotators = "majority"
    max_pairs_per_prompt: int = 10
    two_line_files: bool = False
