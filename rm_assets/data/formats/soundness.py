"""What makes a preference sound: messages in an order that conversations have, none empty, two replies that differ."""

import functools

import numpy as np

from rm_assets.data.formats.conversations.tool_texts import same_messages
from rm_assets.data.formats.preferences import Message, Preference, PreferenceError
from rm_assets.data.tables.reasons import Reason

_FOLLOWERS = {
    "": {"system", "user"},
    "system": {"user"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant"},
}
"""Which role may follow which; the empty one is the start."""
_MAX_MARGIN = float(np.finfo(np.float32).max)


def require_sound(preference: Preference) -> None:
    """Raise PreferenceError unless the conversation is in order and states a preference between two replies."""
    _require_order(preference)
    if number := _first_blank(preference.prompt):
        raise PreferenceError(Reason.EMPTY_MESSAGE, f"message {number} of the prompt is empty")
    for name, reply in (("chosen", preference.chosen), ("rejected", preference.rejected)):
        if _first_blank(reply):
            raise PreferenceError(Reason.EMPTY_REPLY, f"the {name} reply is empty")
    if same_messages(preference.chosen, preference.rejected):
        raise PreferenceError(Reason.IDENTICAL_REPLIES, "both replies are equal")
    if not abs(preference.margin) <= _MAX_MARGIN:
        raise PreferenceError(Reason.MARGIN_NOT_FINITE, "the margin is no finite float32")


def _first_blank(messages: tuple[Message, ...]) -> int:
    """The number of the first message without a text or a tool call; 0 if there is none."""
    for number, message in enumerate(messages, start=1):
        content = message.content
        if (not content or content.isspace()) and not message.tool_calls:
            return number
    return 0


def _require_order(preference: Preference) -> None:
    if not preference.prompt:
        raise PreferenceError(Reason.EMPTY_MESSAGE, "the prompt has no message")
    opening = _signature(preference.prompt)
    for name, reply in (("chosen", preference.chosen), ("rejected", preference.rejected)):
        if not reply:
            raise PreferenceError(Reason.EMPTY_REPLY, f"the {name} reply has no message")
        if problem := _out_of_order(opening + _signature(reply)):
            number, before, role = problem
            detail = f"message {number}, {name} side: {role!r} after {before or 'the start'!r}"
            raise PreferenceError(Reason.ROLES_OUT_OF_ORDER, detail)
        if reply[0].role != "assistant" or reply[-1].role != "assistant":
            raise PreferenceError(Reason.ROLES_OUT_OF_ORDER, f"the {name} reply is not the assistant's")


Signature = tuple[tuple[str, bool], ...]
"""Each message's role, and whether it calls tools."""


def _signature(messages: tuple[Message, ...]) -> Signature:
    return tuple([(message.role, message.tool_calls is not None) for message in messages])


def _out_of_order(signature: Signature) -> tuple[int, str, str] | None:
    """The first message whose role cannot follow: its number, the role before it and its own."""
    return _known(signature) if len(signature) <= _FEW_MESSAGES else _first_out_of_order(signature)


def _first_out_of_order(signature: Signature) -> tuple[int, str, str] | None:
    before, calls = "", False
    for number, (role, calls_tools) in enumerate(signature, start=1):
        if role not in _FOLLOWERS[before] or (role == "tool" and not (calls or before == "tool")):
            return number, before, role
        before, calls = role, calls_tools
    return None


_FEW_MESSAGES = 64
_known = functools.lru_cache(maxsize=4096)(_first_out_of_order)
"""Few shapes of conversations occur; those of long ones are not kept, as each may be large, and another one."""


def are_in_order(prompt: tuple[str, ...], reply: tuple[str, ...]) -> bool:
    """The same of roles alone, of messages that call no tools: whether such a reply may follow such a prompt."""
    are_few = len(prompt) + len(reply) <= _FEW_MESSAGES
    return _known_in_order(prompt, reply) if are_few else _are_in_order(prompt, reply)


def _are_in_order(prompt: tuple[str, ...], reply: tuple[str, ...]) -> bool:
    if not prompt or reply[:1] != ("assistant",) or reply[-1] != "assistant":
        return False
    return _out_of_order(tuple((role, False) for role in prompt + reply)) is None


_known_in_order = functools.lru_cache(maxsize=4096)(_are_in_order)
