"""Messages as files write them, and two conversations as one prompt with two continuations."""

from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import Struct, structs

from rm_assets.data.formats.conversations.repeated_prompts import without_prompt, without_repeated_prompt
from rm_assets.data.formats.conversations.tool_texts import Listed, calls_text, function_call_text, same_message
from rm_assets.data.formats.conversations.transcripts import (
    are_transcripts,
    begins_nemo_chat,
    begins_with_answer,
    begins_with_speaker,
    is_transcript,
    nemo_messages,
    open_nemo_prompt,
    open_transcript,
    parse_transcript,
    parse_transcripts,
)
from rm_assets.data.formats.conversations.turn_markers import has_no_marker, may_be_marked, require_no_marker
from rm_assets.data.formats.preferences import Message, PreferenceError
from rm_assets.data.tables.reasons import Reason

# --- the records, as files have them -------------------------------------------------------------------------


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
    """A message in OpenAI's form (`role`, `content`) or in ShareGPT's (`from`, `value`); other keys are not read.

    Where its own field of these is missing, the text is `content`, `value` or `text`.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"] | None = None
    content: str | list[ContentPart] | None = None
    speaker: (
        Literal[
            "system", "human", "user", "gpt", "assistant", "function_call", "observation", "function_response", "tool"
        ]
        | None
    ) = msgspec.field(name="from", default=None)
    value: str | None = None
    text: str | None = None
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
    """The messages that a side holds, without an empty system message; a text is one message."""
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
    content, thought = content_of(record), None
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


def content_of(record: MessageRecord) -> str | list[ContentPart] | None:
    """What a message says, which is in `content` beside `role`, and in `value` beside `from`."""
    places = (record.content, record.value) if record.role else (record.value, record.content)
    return next((content for content in (*places, record.text) if content is not None), None)


def _reasoning(record: MessageRecord, thought: str | None) -> str | None:
    """The reasoning of a message, from one of several fields or from parts of its content."""
    if record.reasoning is None and record.thinking is None and thought is None:  # most messages
        return record.reasoning_content
    places = {"reasoning_content": record.reasoning_content, "reasoning": record.reasoning, "thinking": record.thinking}
    given = {f"`{name}`": text for name, text in places.items() if text is not None}
    if thought is not None:
        given["a part of the content"] = thought
    filled = {place: text for place, text in given.items() if text.strip()} or given
    if len(set(filled.values())) > 1:
        raise PreferenceError(Reason.AMBIGUOUS_FIELD, f"a message has different reasoning in {' and '.join(filled)}")
    return next(iter(filled.values()), None)


_TEXTS = ("text", "input_text", "output_text")
_THOUGHTS = ("thinking", "reasoning")


def _joined_parts(content: list[ContentPart]) -> tuple[str | None, str | None]:
    """The text and the reasoning of a message in parts."""
    num_thoughts = next((n for n, part in enumerate(content) if part.type not in _THOUGHTS), len(content))
    if any(part.type in _THOUGHTS for part in content[num_thoughts:]):
        raise PreferenceError(Reason.NOT_TEXT, "a message has a reasoning part after its text")
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
            Reason.MISSING_FIELD, "a reasoning part needs exactly one of `thinking`, `reasoning` and `text`"
        )
    return given[0] if isinstance(given[0], str) else "".join(map(_part, given[0]))


# --- two conversations ---------------------------------------------------------------------------------------

Sides = tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]
"""The prompt and its two continuations."""


def split_sides(prompt: Prompt | None, chosen: Reply, rejected: Reply) -> Sides:
    """The prompt and both continuations, from sides that are texts, replies, or whole conversations.

    Replies that begin with a user or system message repeat the prompt; `prompt`, where there is one, is checked
    against them. Without a prompt it is what both conversations share.
    """
    if isinstance(chosen, str) and isinstance(rejected, str) and not isinstance(prompt, list):
        return _compared_texts(prompt, chosen, rejected)
    first, second = (messages_of(side, "assistant") for side in (chosen, rejected))
    if prompt is None:
        return split_at_difference(first, second)
    given = _prompt_messages(prompt) if isinstance(prompt, str) else messages_of(prompt, "user")
    if not (first and second and first[0].role != "assistant" and second[0].role != "assistant"):
        return given, first, second
    shared, first, second = split_at_difference(first, second)
    return merge_prompts(given, shared), first, second


def _prompt_messages(prompt: str) -> tuple[Message, ...]:
    """A prompt that is a text: a transcript, NeMo's chat, or the user's message."""
    if has_no_marker(prompt):
        return (Message(role="user", content=prompt),)
    if is_transcript(prompt):
        messages = parse_transcript(open_transcript(prompt))
        has_answer = any(message.role == "assistant" for message in messages)
        if not has_answer and "Assistant:" in prompt:
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
    """Whether three texts are certainly one message each; a cheap test that most texts pass."""
    begin_alike = chosen.lstrip()[:1] == rejected.lstrip()[:1] == prompt.lstrip()[:1]
    return not (begin_alike or may_be_marked(chosen) or may_be_marked(rejected)) and has_no_marker(prompt)


def _compared_texts(prompt: str | None, chosen: str, rejected: str) -> Sides:
    if prompt is not None and are_single_messages(prompt, chosen, rejected):
        return _single_messages(prompt, chosen, rejected)
    if are_transcripts(prompt, chosen):
        return _split_transcripts(prompt or "", chosen, rejected)
    if prompt is None:
        if begins_nemo_chat(chosen) and begins_nemo_chat(rejected):
            return split_at_difference(nemo_messages(chosen), nemo_messages(rejected))
        require_no_marker(None, chosen, rejected)
        raise PreferenceError(Reason.MISSING_FIELD, "no field `prompt`, and the replies are not conversations")
    if opened := open_nemo_prompt(prompt):
        replies: Iterable[str] = (chosen, rejected)
        if rests := without_prompt(prompt, chosen, rejected):
            replies = map(str.lstrip, without_prompt(opened[len(prompt.rstrip()) :], *rests) or rests)
        return split_at_difference(*(nemo_messages(opened + reply) for reply in replies))
    if is_transcript(chosen) and is_transcript(rejected):
        if sides := _transcripts_with_prompt(prompt, chosen, rejected):
            return sides
        if all(map(begins_with_answer, (chosen, rejected))):
            raise _unreadable_transcript()
    require_no_marker(prompt, chosen, rejected)
    return _single_messages(prompt, *without_repeated_prompt(prompt, chosen, rejected))


def _single_messages(prompt: str, chosen: str, rejected: str) -> Sides:
    asked, one, other = (
        Message(role="user", content=prompt),
        *(Message(role="assistant", content=reply) for reply in (chosen, rejected)),
    )
    return (asked,), (one,), (other,)


def _transcripts_with_prompt(prompt: str, chosen: str, rejected: str) -> Sides | None:
    """Two transcripts that repeat the prompt; None for replies that only resemble transcripts."""
    try:
        shared, first, second = split_at_difference(*parse_transcripts(chosen, rejected))
        return merge_prompts((Message(role="user", content=prompt),), shared), first, second
    except PreferenceError:
        return None


def merge_prompts(given: tuple[Message, ...], shared: tuple[Message, ...]) -> tuple[Message, ...]:
    """Merge the field `prompt` with what both conversations begin with; either may hold only part of the prompt.

    Contents are compared up to outer white space; where both have a message, it is that of the conversations. `prompt`
    may be the first turns or the last ones, and either of them may lack the system message.
    """
    if given == shared:
        return shared
    given_system, given_turns = split_system(given)
    system, turns = split_system(shared)
    if given_system and system and not equal_but_for_space(given_system, system):
        raise PreferenceError(Reason.UNSHARED_PROMPT, "the replies' system message differs from that of `prompt`")
    num_given, num_turns = len(given_turns), len(turns)
    first, last = turns[:num_given], turns[max(num_turns - num_given, 0) :]
    if equal_but_for_space(given_turns, first) or equal_but_for_space(given_turns, last):
        return (system or given_system) + turns
    if turns and equal_but_for_space(given_turns[-num_turns:], turns):
        return (system or given_system) + given_turns[:-num_turns] + turns
    raise PreferenceError(Reason.UNSHARED_PROMPT, "the prompt in the replies differs from `prompt`")


def split_system(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The system message, if there is one, and the turns after it."""
    num_system = int(bool(messages) and messages[0].role == "system")
    return messages[:num_system], messages[num_system:]


def equal_but_for_space(one: tuple[Message, ...], other: tuple[Message, ...]) -> bool:
    """Whether messages are equal up to outer white space."""
    return one == other or (len(one) == len(other) and all(map(_is_same, one, other)))


def _is_same(one: Message, other: Message) -> bool:
    return one == other or same_message(_stripped(one), _stripped(other))


def _stripped(message: Message) -> Message:
    return structs.replace(message, content=(message.content or "").strip())


def _split_transcripts(prompt: str, chosen: str, rejected: str) -> Sides:
    sides = parse_transcripts(*(_continued(prompt, chosen, rejected) if prompt else (chosen, rejected)))
    try:
        return split_at_difference(*sides)
    except PreferenceError as error:
        if error.reason is Reason.UNSHARED_PROMPT and any(messages[-1].role == "user" for messages in sides):
            raise _unreadable_transcript() from None
        raise


def _continued(prompt: str, *sides: str) -> tuple[str, ...]:
    """Whole transcripts from sides that continue the prompt, or repeat it."""
    opened = open_transcript(prompt)
    if rests := without_prompt(prompt, *sides):
        return tuple(opened.rstrip() + rest for rest in rests)
    if all(map(begins_with_speaker, sides)):
        return tuple(f"{opened.rstrip()}\n\n{side.lstrip()}" for side in sides)
    return tuple(opened + side for side in sides)


def _unreadable_transcript() -> PreferenceError:
    problem = "a transcript whose turns do not all begin with `Human:` or `Assistant:` after an empty line"
    return PreferenceError(Reason.TURN_MARKERS, f"{problem}; give messages with `role` and `content` instead")


def split_at_difference(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Sides:
    """Two conversations cut where they diverge: the shared beginning and the two remainders.

    For [u1, a1, u2, a2] and [u1, a1, u2, a3] it is [u1, a1, u2], [a2] and [a3]. Messages are shared even if their tool
    calls have the members in another order or, unless they are the assistant's, other white space around them; the
    shared beginning is then the chosen side's.
    """
    num_shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one is not other and one != other and not _are_shared(one, other):
            break
        num_shared += 1
    if num_shared == len(chosen) == len(rejected):
        raise PreferenceError(Reason.IDENTICAL_REPLIES, "both conversations are identical")
    if num_shared == min(len(chosen), len(rejected)):
        shorter = "chosen" if len(chosen) == num_shared else "rejected"
        raise PreferenceError(Reason.EMPTY_REPLY, f"the {shorter} conversation is a prefix of the other")
    if chosen[num_shared].role != "assistant" or rejected[num_shared].role != "assistant":
        raise PreferenceError(
            Reason.UNSHARED_PROMPT, f"the conversations diverge at message {num_shared + 1}, which is not a reply"
        )
    return chosen[:num_shared], chosen[num_shared:], rejected[num_shared:]


def _are_shared(one: Message, other: Message) -> bool:
    """Whether unequal messages are one: tool calls in another order, or what was asked, up to outer white space."""
    if one.role == "assistant":
        return bool(one.tool_calls) and same_message(one, other)
    return _is_same(one, other)
