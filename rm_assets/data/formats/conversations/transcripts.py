r"""Conversations in one text, split at their turn markers: `\n\nHuman:` transcripts, and NeMo's chat.

HelpSteer2's prompts are NeMo's: `question\n<extra_id_1>Assistant\nanswer\n<extra_id_1>User\nquestion`.
"""

import re

from rm_assets.data.formats.preferences import Message, PreferenceError
from rm_assets.data.tables.reasons import Reason

# --- `Human:` and `Assistant:` -------------------------------------------------------------------------------

# A marker is at the start of the text or after an empty line; "What is a Human: label?" has none.
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


def begins_with_speaker(text: str) -> bool:
    """Whether a text begins with `Human:` or `Assistant:`."""
    return _FIRST.match(text) is not None


def begins_with_answer(text: str) -> bool:
    """Whether a text begins with `Assistant:` after a line feed."""
    found = _FIRST.match(text)
    return found is not None and found[2] == "Assistant" and "\n" in found[1]


def are_transcripts(prompt: str | None, chosen: str) -> bool:
    """Whether a prompt and its reply, or a reply alone, are a transcript: `Human: Hi` and `Assistant: Ho` are one."""
    if prompt is None:
        return is_transcript(chosen)
    return is_transcript(prompt) or bool(_FIRST.match(prompt) and _FIRST.match(chosen))


def open_transcript(prompt: str) -> str:
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


def parse_transcripts(one: str, other: str) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
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


# --- NeMo ----------------------------------------------------------------------------------------------------

_NEMO_TURN = re.compile(r"<extra_id_[01]>(System|User|Assistant)\n")
_NEMO_ANSWER = "\n<extra_id_1>Assistant\n"
_NEMO_ROLES = {"System": "system", "User": "user", "Assistant": "assistant"}


def nemo_messages(text: str) -> tuple[Message, ...]:
    r"""The messages of NeMo's chat, before the first mark the user's; no messages where the text has no mark.

    One line feed before a turn, a last empty turn's mark, and an empty system message belong to the marks.
    """
    turns = list(_NEMO_TURN.finditer(text))
    if not turns:
        return ()
    ends = [turn.start() for turn in turns[1:]] + [len(text)]
    messages = [
        Message(role=_NEMO_ROLES[turn[1]], content=_nemo_content(text[turn.end() : end]))
        for turn, end in zip(turns, ends, strict=True)
    ]
    if opening := _nemo_content(text[: turns[0].start()]):
        messages.insert(0, Message(role="user", content=opening))
    return tuple(message for message in messages if message.role != "system" or message.content)


def _nemo_content(text: str) -> str:
    return text.removesuffix("<extra_id_1>").removesuffix("\n")


def open_nemo_prompt(prompt: str) -> str:
    """A prompt of NeMo's chat up to where the reply begins; empty for any other text, which may quote such marks.

    In such a prompt user and assistant alternate, and the last turn is the user's, or an empty one of the assistant.
    """
    if "<extra_id_" not in prompt:
        return ""
    if prompt.rstrip().endswith(_NEMO_ANSWER.strip()):
        prompt = prompt.rstrip() + "\n"
    messages = [message for message in nemo_messages(prompt) if message.role != "system"]
    is_open = bool(messages) and messages[-1] == Message(role="assistant", content="")
    roles = [message.role for message in messages][: len(messages) - is_open]
    if len(roles) % 2 == 0 or roles != (["user", "assistant"] * len(roles))[: len(roles)]:
        return ""
    return prompt if is_open else prompt + _NEMO_ANSWER


def begins_nemo_chat(text: str) -> bool:
    """Whether a text begins with a turn of NeMo's chat."""
    return _NEMO_TURN.match(text) is not None
