"""Messages as files write them, and two conversations as one prompt with two continuations."""

import re
from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import Struct, structs

from rm_assets.data.formats.conversations.repeated_prompts import without_prompt, without_repeated_prompt
from rm_assets.data.formats.conversations.tool_texts import Listed, calls_text, function_call_text, same_message
from rm_assets.data.formats.conversations.turn_markers import (
    begins_nemo_chat,
    has_no_marker,
    may_be_marked,
    nemo_messages,
    open_nemo_prompt,
    require_no_marker,
)
from rm_assets.data.formats.preferences import Message, PreferenceError
from rm_assets.data.tables.reasons import Reason

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
    """The messages that a side holds, without an empty system message; a text stands for one message."""
    if isinstance(records, str):
        return (Message(role=role_of_text, content=records),)
    messages = tuple([_message(record) for record in (records if isinstance(records, list) else [records])])
    has_empty_system = messages and messages[0].role == "system" and not (messages[0].content or "").strip()
    return messages[1:] if has_empty_system else messages


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
        return _compared_texts(prompt, chosen, rejected)
    first, second = (messages_of(side, "assistant") for side in (chosen, rejected))
    if prompt is None:
        return split_shared(first, second)
    stated = _prompt_messages(prompt) if isinstance(prompt, str) else messages_of(prompt, "user")
    if not (first and second and first[0].role != "assistant" and second[0].role != "assistant"):
        return stated, first, second
    shared, first, second = split_shared(first, second)
    return joined_prompt(stated, shared), first, second


def _prompt_messages(prompt: str) -> tuple[Message, ...]:
    """A prompt that is a text: a transcript, NeMo's chat, or the user's message."""
    if has_no_marker(prompt):
        return (Message(role="user", content=prompt),)
    if is_transcript(prompt):
        messages = parse_transcript(_opened(prompt))
        if not _has_answer(messages) and "Assistant:" in prompt:
            raise _unreadable_transcript()
    elif opened := open_nemo_prompt(prompt):
        messages = nemo_messages(opened)
    else:
        require_no_marker(prompt, None, None)
        messages = (Message(role="user", content=prompt),)
    is_open = messages[-1].role == "assistant" and not (messages[-1].content or "").strip()
    return messages[:-1] if is_open else messages


def has_turns(prompt: str | None, chosen: str) -> bool:
    """Whether a prompt and its reply, or a reply alone, have turn markers that are read."""
    if prompt is None:
        return is_transcript(chosen) or begins_nemo_chat(chosen)
    return not has_no_marker(prompt) and (are_transcripts(prompt, chosen) or bool(open_nemo_prompt(prompt)))


def are_single_messages(prompt: str, chosen: str, rejected: str) -> bool:
    """Whether three texts surely are a message each, as they stand: told at little cost, for most."""
    begin_alike = chosen.lstrip()[:1] == rejected.lstrip()[:1] == prompt.lstrip()[:1]
    return not (begin_alike or may_be_marked(chosen) or may_be_marked(rejected)) and has_no_marker(prompt)


def _compared_texts(prompt: str | None, chosen: str, rejected: str) -> Sides:
    if prompt is not None and are_single_messages(prompt, chosen, rejected):
        return _single_messages(prompt, chosen, rejected)
    if are_transcripts(prompt, chosen):
        return _split_transcripts(prompt or "", chosen, rejected)
    if prompt is None:
        if begins_nemo_chat(chosen) and begins_nemo_chat(rejected):
            return split_shared(nemo_messages(chosen), nemo_messages(rejected))
        require_no_marker(None, chosen, rejected)
        raise PreferenceError(Reason.MISSING_FIELD, "no field `prompt`, and the replies hold no conversation")
    if opened := open_nemo_prompt(prompt):
        replies: Iterable[str] = (chosen, rejected)
        if rests := without_prompt(prompt, chosen, rejected):
            replies = map(str.lstrip, without_prompt(opened[len(prompt.rstrip()) :], *rests) or rests)
        return split_shared(*(nemo_messages(opened + reply) for reply in replies))
    if is_transcript(chosen) and is_transcript(rejected):
        if sides := _answering(prompt, chosen, rejected):
            return sides
        if all(map(_begins_with_answer, (chosen, rejected))):
            raise _unreadable_transcript()
    require_no_marker(prompt, chosen, rejected)
    return _single_messages(prompt, *without_repeated_prompt(prompt, chosen, rejected))


def _single_messages(prompt: str, chosen: str, rejected: str) -> Sides:
    asked, one, other = (
        Message(role="user", content=prompt),
        *(Message(role="assistant", content=reply) for reply in (chosen, rejected)),
    )
    return (asked,), (one,), (other,)


def _answering(prompt: str, chosen: str, rejected: str) -> Sides | None:
    """Two transcripts that answer a prompt, which stands in them; None where they are replies that look like some."""
    try:
        shared, first, second = split_shared(*_parse_two(chosen, rejected))
        return joined_prompt((Message(role="user", content=prompt),), shared), first, second
    except PreferenceError:
        return None


def joined_prompt(stated: tuple[Message, ...], shared: tuple[Message, ...]) -> tuple[Message, ...]:
    """One prompt from the field `prompt` and from what both conversations begin with, which both may hold a part of it.

    Contents are compared up to outer white space; where both have a message, it is that of the conversations. `prompt`
    may be the first turns or the last ones, and either of them may lack the system message.
    """
    if stated == shared:
        return shared
    stated_system, stated_turns = parted(stated)
    system, turns = parted(shared)
    if stated_system and system and not are_same(stated_system, system):
        raise PreferenceError(Reason.UNSHARED_PROMPT, "the replies have another system message than `prompt`")
    num_stated, num_turns = len(stated_turns), len(turns)
    if are_same(stated_turns, turns[:num_stated]) or are_same(stated_turns, turns[max(num_turns - num_stated, 0) :]):
        return (system or stated_system) + turns
    if turns and are_same(stated_turns[-num_turns:], turns):
        return (system or stated_system) + stated_turns[:-num_turns] + turns
    raise PreferenceError(Reason.UNSHARED_PROMPT, "the replies repeat another prompt than `prompt`")


def parted(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The system message, if there is one, and the turns after it."""
    num_system = int(bool(messages) and messages[0].role == "system")
    return messages[:num_system], messages[num_system:]


def are_same(one: tuple[Message, ...], other: tuple[Message, ...]) -> bool:
    """Whether messages are equal up to outer white space."""
    return one == other or (len(one) == len(other) and all(map(_is_same, one, other)))


def _is_same(one: Message, other: Message) -> bool:
    return one == other or same_message(_stripped(one), _stripped(other))


def _stripped(message: Message) -> Message:
    return structs.replace(message, content=(message.content or "").strip())


def _split_transcripts(prompt: str, chosen: str, rejected: str) -> Sides:
    sides = _parse_two(*(_continued(prompt, chosen, rejected) if prompt else (chosen, rejected)))
    try:
        return split_shared(*sides)
    except PreferenceError as error:
        if error.reason is Reason.UNSHARED_PROMPT and any(messages[-1].role == "user" for messages in sides):
            raise _unreadable_transcript() from None
        raise


def _continued(prompt: str, *sides: str) -> tuple[str, ...]:
    """Whole transcripts from sides that go on where the prompt stops, or repeat it."""
    opened = _opened(prompt)
    if rests := without_prompt(prompt, *sides):
        return tuple(opened.rstrip() + rest for rest in rests)
    if all(map(_FIRST.match, sides)):
        return tuple(f"{opened.rstrip()}\n\n{side.lstrip()}" for side in sides)
    return tuple(opened + side for side in sides)


def _unreadable_transcript() -> PreferenceError:
    problem = "a transcript whose turns do not begin with `Human:` and `Assistant:` after an empty line each"
    return PreferenceError(Reason.TURN_MARKERS, f"{problem}; give messages with `role` and `content` instead")


def _has_answer(messages: tuple[Message, ...]) -> bool:
    return any(message.role == "assistant" for message in messages)


def split_shared(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Sides:
    """Two conversations cut where they part: the shared beginning and the two rests.

    For [u1, a1, u2, a2] and [u1, a1, u2, a3] it is [u1, a1, u2], [a2] and [a3]. What they share is given as the chosen
    side writes it: tool calls may have their members in another order on the rejected one, and other messages than the
    assistant's other white space around them.
    """
    num_shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one is not other and one != other and not _are_shared(one, other):
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


def _are_shared(one: Message, other: Message) -> bool:
    """Whether unequal messages are one: tool calls in another order, or what was asked, up to outer white space."""
    if one.role == "assistant":
        return bool(one.tool_calls) and same_message(one, other)
    return _is_same(one, other)


# --- transcripts ---------------------------------------------------------------------------------------------

# A marker stands at the start of the text or after an empty line; "What is a Human: label?" holds none.
_MARKER = re.compile(r"\n\n(Human|Assistant):")
_MARKER_WITH_RETURNS = re.compile(r"(?:\r\n\r\n|\n\n)(Human|Assistant):")
_FIRST = re.compile(r"(\s*+)(Human|Assistant):")
_AT_START = ("\n\nHuman:", "\n\nAssistant:")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    r"""Whether a text begins with `Human:` or `Assistant:`, as a whole conversation does.

    Without an empty line before it, the other one must have a marker, too: else "Human: a definition." is a text.
    """
    if text.startswith(_AT_START):
        return True
    found = _FIRST.match(text)
    if not found:
        return False
    other = "Assistant:" if found[2] == "Human" else "Human:"
    return found[1].count("\n") > 1 or other in text[found.end() :]


def _begins_with_answer(text: str) -> bool:
    found = _FIRST.match(text)
    return found is not None and found[2] == "Assistant" and "\n" in found[1]


def are_transcripts(prompt: str | None, chosen: str) -> bool:
    """Whether a prompt and its reply, or a reply alone, are a transcript: `Human: Hi` and `Assistant: Ho` are one."""
    if prompt is None:
        return is_transcript(chosen)
    return is_transcript(prompt) or bool(_FIRST.match(prompt) and _FIRST.match(chosen))


def _opened(prompt: str) -> str:
    """A prompt whose last turn has both markers, `Human: Hi. Assistant:`, with the second one after an empty line."""
    opening = prompt.rstrip()
    if not opening.endswith("Assistant:") or _MARKER_WITH_RETURNS.match(
        opening[-len("\r\n\r\nAssistant:") :].lstrip(" ")
    ):
        return prompt
    *_, speaker, content = _split_at_markers(opening)
    content = content.removesuffix("Assistant:")
    words = content.rstrip()
    if speaker != "Human" or words == content or not words or "Human:" in words or "Assistant:" in words:
        return prompt
    return f"{opening[: len(opening) - len(content) - len('Assistant:')]}{words}\n\nAssistant:"


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
    if not text.startswith(_AT_START):
        if not _FIRST.match(text):
            raise PreferenceError(Reason.UNKNOWN_FORMAT, "text before the first `Human:` or `Assistant:`")
        text = f"\n\n{text.lstrip()}"
    return (_MARKER_WITH_RETURNS if "\r" in text else _MARKER).split(text)


def _messages_between(parts: list[str]) -> tuple[Message, ...]:
    speakers, contents = parts[1::2], parts[2::2]
    return tuple(
        [
            Message(role=_SPEAKERS[speaker], content=content.removeprefix(" "))
            for speaker, content in zip(speakers, contents, strict=True)
        ]
    )
