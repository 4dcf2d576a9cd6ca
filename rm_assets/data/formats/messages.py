"""Messages as files write them, and two conversations as one prompt with two continuations."""

import re
from typing import Literal

import msgspec
from msgspec import Struct

from rm_assets.data.formats.preferences import Message, PreferenceError
from rm_assets.data.formats.tool_texts import Listed, calls_text, function_call_text, same_message, same_messages
from rm_assets.data.records import Reason

# --- the records, as they stand in files ---------------------------------------------------------------------


class ContentPart(Struct, kw_only=True):
    """`{"type": "text", "text": "..."}`, or with `value`; a message's parts are joined without a separator.

    Or reasoning, before all texts: `{"type": "thinking", "thinking": "..."}`, in which Mistral has a list of texts, or
    `{"type": "reasoning", "text": "..."}`.
    """

    type: str
    text: str | None = None
    value: str | None = None
    thinking: "str | list[ContentPart] | None" = None
    reasoning: str | None = None


class MessageRecord(Struct, kw_only=True):
    """A message in OpenAI's form (`role`, `content`) or in ShareGPT's (`from`, `value`); other keys are not read."""

    role: Literal["system", "developer", "user", "assistant", "tool"] | None = None
    content: str | list[ContentPart] | None = None
    speaker: (
        Literal[
            "system", "human", "user", "gpt", "assistant", "function_call", "observation", "function_response", "tool"
        ]
        | None
    ) = msgspec.field(name="from", default=None)
    value: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    tool_calls: Listed = None
    tool_call_id: str | None = None


Prompt = list[MessageRecord] | str
Reply = list[MessageRecord] | MessageRecord | str

_ROLES = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}


# --- from records to messages --------------------------------------------------------------------------------


def messages_of(records: Reply, role_of_text: str) -> tuple[Message, ...]:
    """The messages that a side holds; a text stands for one message."""
    if isinstance(records, str):
        return (Message(role=role_of_text, content=records),)
    return tuple([_message(record) for record in (records if isinstance(records, list) else [records])])


def _message(record: MessageRecord) -> Message:
    if (record.role is None) == (record.speaker is None):
        known = "no `role`" if record.role is None else "both `role` and `from`"
        reason = Reason.MISSING_FIELD if record.role is None else Reason.AMBIGUOUS_FIELD
        raise PreferenceError(reason, f"a message has {known}")
    if record.speaker == "function_call":
        calls, reasoning = function_call_text(record.value or ""), _reasoning(record, None)
        return Message(role="assistant", reasoning_content=reasoning, tool_calls=calls)
    spoken = record.role or record.speaker or ""
    content, thought = (record.content if record.role else record.value), None
    if isinstance(content, list):
        content, thought = _joined_parts(content)
    return Message(
        role=_ROLES.get(spoken, spoken),
        content=content,
        name=record.name,
        reasoning_content=_reasoning(record, thought),
        tool_calls=calls_text(record.tool_calls),
        tool_call_id=record.tool_call_id,
    )


def _reasoning(record: MessageRecord, thought: str | None) -> str | None:
    """The reasoning of a message, which stands under one of several names, or in parts of its content."""
    if record.reasoning is None and record.thinking is None and thought is None:  # most messages
        return record.reasoning_content
    places = {"reasoning_content": record.reasoning_content, "reasoning": record.reasoning, "thinking": record.thinking}
    given = {f"`{name}`": text for name, text in places.items() if text is not None}
    if thought is not None:
        given["a part of the content"] = thought
    told = {place: text for place, text in given.items() if text.strip()} or given
    if len(set(told.values())) > 1:
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, f"{' and '.join(told)} of a message give different reasoning")
    return next(iter(told.values()), None)


_TEXTS = ("text", "input_text", "output_text")
_THOUGHTS = ("thinking", "reasoning")


def _joined_parts(content: list[ContentPart]) -> tuple[str | None, str | None]:
    """The text and the reasoning of a message in parts."""
    num_thoughts = next((n for n, part in enumerate(content) if part.type not in _THOUGHTS), len(content))
    if any(part.type in _THOUGHTS for part in content[num_thoughts:]):
        raise PreferenceError(Reason.NOT_TEXT, "a message has a part of reasoning after its text")
    thoughts, texts = content[:num_thoughts], content[num_thoughts:]
    if not thoughts:
        return "".join(map(_part, texts)), None
    return "".join(map(_part, texts)) if texts else None, "".join(map(_thought, thoughts))


def _part(part: ContentPart) -> str:
    if part.type not in _TEXTS:
        raise PreferenceError(Reason.NOT_TEXT, "a message has a part whose `type` is not text")
    if (part.text is None) == (part.value is None):
        raise PreferenceError(Reason.MISSING_FIELD, "a text part needs either `text` or `value`")
    return part.text if part.text is not None else part.value or ""


def _thought(part: ContentPart) -> str:
    given = [thought for thought in (part.thinking, part.reasoning, part.text) if thought is not None]
    if len(given) != 1:
        raise PreferenceError(
            Reason.MISSING_FIELD, "a part of reasoning needs either `thinking`, `reasoning` or `text`"
        )
    return given[0] if isinstance(given[0], str) else "".join(map(_part, given[0]))


# --- two conversations ---------------------------------------------------------------------------------------

Sides = tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]
"""The prompt and its two continuations."""


def compared(prompt: Prompt | None, chosen: Reply, rejected: Reply) -> Sides:
    """The prompt and both continuations, from sides that are texts, replies, or whole conversations.

    Replies that begin with a user or system message repeat the prompt; `prompt`, where there is one, is checked
    against them. Without a prompt it is what both conversations share.
    """
    if isinstance(chosen, str) and isinstance(rejected, str) and not isinstance(prompt, list):
        if is_transcript(prompt if prompt is not None else chosen):
            return _split_transcripts(prompt or "", chosen, rejected)
        if prompt is None:
            raise PreferenceError(Reason.MISSING_FIELD, "no field `prompt`, and the replies hold no conversation")
    first, second = (messages_of(side, "assistant") for side in (chosen, rejected))
    if prompt is None:
        return split_shared(first, second)
    stated = messages_of(prompt, "user")
    if not (first and second and first[0].role != "assistant" and second[0].role != "assistant"):
        return stated, first, second
    shared, first, second = split_shared(first, second)
    if not same_messages(shared, stated) and not (isinstance(prompt, str) and shared and shared[-1].content == prompt):
        raise PreferenceError(Reason.UNSHARED_PROMPT, "the replies repeat another prompt than `prompt`")
    return shared, first, second


def _split_transcripts(prompt: str, chosen: str, rejected: str) -> Sides:
    repeated = chosen.startswith(prompt) and rejected.startswith(prompt)
    return split_shared(*_parse_two(*(side if repeated else prompt + side for side in (chosen, rejected))))


def split_shared(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Sides:
    """Two conversations cut where they part: the shared beginning and the two rests.

    For [u1, a1, u2, a2] and [u1, a1, u2, a3] it is [u1, a1, u2], [a2] and [a3]. What they share is given as the chosen
    side writes it: tool calls may have their members in another order on the rejected one.
    """
    num_shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one is not other and one != other and not (one.tool_calls and same_message(one, other)):
            break
        num_shared += 1
    if num_shared == len(chosen) == len(rejected):
        raise PreferenceError(Reason.IDENTICAL_REPLIES, "both conversations are equal")
    if num_shared == min(len(chosen), len(rejected)):
        shorter = "chosen" if len(chosen) == num_shared else "rejected"
        raise PreferenceError(Reason.EMPTY_REPLY, f"the {shorter} conversation is the beginning of the other")
    if chosen[num_shared].role != "assistant" or rejected[num_shared].role != "assistant":
        raise PreferenceError(
            Reason.UNSHARED_PROMPT, f"the conversations part at message {num_shared + 1}, which is no reply"
        )
    return chosen[:num_shared], chosen[num_shared:], rejected[num_shared:]


# --- transcripts ---------------------------------------------------------------------------------------------

# A marker stands at the start of the text or after an empty line; "What is a Human: label?" holds none.
_MARKER = re.compile(r"\n\n(Human|Assistant):")
_AT_START = ("\n\nHuman:", "\n\nAssistant:", "Human:", "Assistant:")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    r"""Whether a text begins with `Human:` or `Assistant:`, as a whole conversation does."""
    return text.startswith(_AT_START)


def parse_transcript(text: str) -> tuple[Message, ...]:
    r"""The messages of a `\n\nHuman: ...\n\nAssistant: ...` text; one space after a marker belongs to the marker."""
    return _messages_between(_split_at_markers(text))


def _parse_two(one: str, other: str) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Both transcripts; what they share before the last turn of the first one is read once."""
    parts = _split_at_markers(one)
    messages = _messages_between(parts)
    start = len(one) - len(parts[-1])
    if len(messages) > 1 and other.startswith(one[:start]):
        return messages, messages[:-1] + parse_transcript(f"{parts[-2]}:{other[start:]}")
    return messages, parse_transcript(other)


def _split_at_markers(text: str) -> list[str]:
    """For "Human: Hi" it is ["", "Human", " Hi"]; raises PreferenceError for a text that begins otherwise."""
    if not is_transcript(text):
        raise PreferenceError(Reason.UNKNOWN_FORMAT, "text before the first `Human:` or `Assistant:`")
    return _MARKER.split(text if text.startswith("\n\n") else f"\n\n{text}")


def _messages_between(parts: list[str]) -> tuple[Message, ...]:
    speakers, contents = parts[1::2], parts[2::2]
    return tuple(
        [
            Message(role=_SPEAKERS[speaker], content=content.removeprefix(" "))
            for speaker, content in zip(speakers, contents, strict=True)
        ]
    )
