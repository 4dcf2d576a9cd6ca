"""Turn markers of other chat templates; texts that have them are rejects, as the markers would be trained on as words.

With few exceptions they count only at the start of a text: one that is quoted further on is ordinary text.
"""

import re
from typing import Any

from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason

# --- the markers of other templates --------------------------------------------------------------------------

_NAMES = (
    "im_start im_end im_user im_system start_header_id begin_of_text header_start user assistant system User Assistant "
    "System USER ASSISTANT human bot prompter start message channel turn startoftext endoftext eot_id end_header_id "
    "START_OF_TURN_TOKEN BOS start_of_role turn_start"
)
_SIGNS = [
    *(f"<|{name}|>" for name in _NAMES.split()),
    *("[INST]", "[/INST]", "<<SYS>>", "[SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[gMASK]", "[|Human|]", "[|User|]"),
    *(
        "<start_of_turn>",
        "<|turn>",
        "<bos>",
        "<｜begin▁of▁sentence｜>",
        "<｜User｜>",
        "<｜Assistant｜>",
        "<human>:",
        "<bot>:",
        "<Human>:",
        "<reserved_106>",
    ),
    *("<extra_id_0>System", "<extra_id_1>User", "<extra_id_1>Assistant"),
]
_PHRASES = [
    *(f"### {name}:" for name in ("Instruction", "Human", "User", "System", "Question", "Assistant", "Response")),
    *(f"GPT4 {name}:" for name in ("Correct User", "User", "Correct Assistant", "Assistant")),
    "Below is an instruction that describes a task",
    "A chat between a curious user and",
    "A chat between a curious human and",
]
_SPEAKERS = ("USER:", "User:", "user:", "HUMAN:", "Human:", "human:")
_SIGN = re.compile(rf"\s*+(?:<s>\s*+)?({'|'.join(map(re.escape, _SIGNS))})")
_PHRASE = re.compile(rf"\s*+(?:<s>\s*+)?({'|'.join(map(re.escape, [*_PHRASES, *_SPEAKERS]))})")
_LAST_ANSWER = re.compile(r"[\s>](Assistant|ASSISTANT|assistant|AI|Bot|### Response):\s*\Z")
_SPEAKER_AMONG_LINES = re.compile(r"\n(Human:|HUMAN:|User:|USER:|### Instruction:)")
_FIRST_SPEAKER = re.compile(r"\s*+(system|user)\n")
_ANSWER_CHARACTERS = 40
"""Characters at the end of a prompt that are searched for `Assistant:` or the like."""


def marker_of_prompt(prompt: str) -> str:
    """The turn marker of another template that a prompt begins with, or empty.

    `User:` counts only if the prompt ends with `Assistant:` or the like; `USER:` also if `ASSISTANT:` follows anywhere.
    If the prompt ends with `Assistant:`, a speaker that begins a later line counts, too. A first line `user` counts if
    the last line is `assistant`.
    """
    answer = _LAST_ANSWER.search(prompt[-_ANSWER_CHARACTERS:])
    if found := _SIGN.match(prompt) or _PHRASE.match(prompt):
        is_speaker = found[1] in _SPEAKERS
        if not is_speaker or answer or (found[1].isupper() and "ASSISTANT:" in prompt):
            return found[1]
    if (found := _FIRST_SPEAKER.match(prompt)) and prompt.rstrip().endswith("\nassistant"):
        return found[1]  # of ChatML, decoded without its special tokens
    if answer and answer[1] == "ASSISTANT" and " USER: " in prompt:  # after a system message
        return "USER:"
    if answer and answer[1] not in ("AI", "Bot", "assistant"):
        later = _SPEAKER_AMONG_LINES.search(prompt)
        return later[1] if later else ""
    return ""


def require_no_marker(prompt: str | None, chosen: Any, rejected: Any) -> None:
    """Raise PreferenceError if the prompt, or both replies, have turn markers of another template."""
    if prompt is not None and (marker := marker_of_prompt(prompt)):
        raise _foreign_marker("`prompt` has", marker)
    if isinstance(chosen, str) and isinstance(rejected, str):
        one, other = _SIGN.match(chosen), _SIGN.match(rejected)
        if one and other:
            raise _foreign_marker("both replies begin with", one[1])


def _foreign_marker(where: str, marker: str) -> PreferenceError:
    problem = f"{where} `{marker}`, a turn marker of a chat template: give messages with `role` and `content` instead"
    return PreferenceError(Reason.TURN_MARKERS, problem)


# --- texts without any ---------------------------------------------------------------------------------------

may_be_marked = re.compile(
    r"\s*+(?:[<\[{#]|Human|Assistant|human|HUMAN|USER|User|user|system\n|GPT4|Below is an|A chat|\w{1,64}+\()"
).match
"""A cheap test whether a text may begin with a marker (also one of a transcript) or a list."""


def has_no_marker(prompt: str) -> bool:
    """Whether a prompt certainly has no marker of any kind."""
    return not (may_be_marked(prompt) or "<extra_id_" in prompt or prompt[-_ANSWER_CHARACTERS:].rstrip().endswith(":"))
