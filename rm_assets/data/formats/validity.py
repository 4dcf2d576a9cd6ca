"""What makes a preference valid: roles in a possible order, no empty message, and two replies that differ."""

import functools
import itertools

import numpy as np

from rm_assets.data.formats.conversations.tool_texts import same_messages
from rm_assets.data.formats.preferences import Message, Preference, PreferenceError
from rm_assets.data.tables.reasons import Reason

_CALLING = "assistant with tool calls"
_FOLLOWERS = {
    "": {"system", "user"},
    "system": {"user"},
    "user": {"assistant", _CALLING},
    "assistant": {"user"},
    _CALLING: {"user", "tool"},
    "tool": {"tool", "assistant", _CALLING},
}
"""Which role may follow which; the empty one is the start of the conversation."""
_CACHED_MESSAGES = 64
"""Longer conversations are not cached: each may be large, and they seldom have the same roles."""
_MAX_MARGIN = float(np.finfo(np.float32).max)


def require_valid(preference: Preference) -> None:
    """Raise PreferenceError unless the conversation is in order and states a preference between two replies."""
    _require_order(preference)
    if number := _first_blank(preference.prompt):
        raise PreferenceError(Reason.EMPTY_MESSAGE, f"message {number} of the prompt is empty")
    for name, reply in (("chosen", preference.chosen), ("rejected", preference.rejected)):
        if _first_blank(reply):
            raise PreferenceError(Reason.EMPTY_REPLY, f"the {name} reply is empty")
    if same_messages(preference.chosen, preference.rejected):
        raise PreferenceError(Reason.IDENTICAL_REPLIES, "both replies are identical")
    if not abs(preference.margin) <= _MAX_MARGIN:
        raise PreferenceError(Reason.MARGIN_NOT_FINITE, "the margin is not a finite number that fits in float32")


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
    for name, reply in (("chosen", preference.chosen), ("rejected", preference.rejected)):
        if not reply:
            raise PreferenceError(Reason.EMPTY_REPLY, f"the {name} reply has no message")
        messages = preference.prompt + reply
        if number := _first_out_of_order(_roles(messages)):
            before = messages[number - 2].role if number > 1 else "the start"
            detail = f"message {number}, {name} side: {messages[number - 1].role!r} after {before!r}"
            raise PreferenceError(Reason.ROLES_OUT_OF_ORDER, detail)
        if reply[0].role != "assistant" or reply[-1].role != "assistant":
            raise PreferenceError(Reason.ROLES_OUT_OF_ORDER, f"the {name} reply is not the assistant's")


def are_in_order(prompt: tuple[str, ...], reply: tuple[str, ...]) -> bool:
    """Whether a reply may follow a prompt, by the roles of their messages, none of which calls tools."""
    if not (reply and reply[0] == reply[-1] == "assistant"):
        return False
    roles = prompt + reply
    # called for most lines, so it saves a call of _first_out_of_order
    return not (_search(roles) if len(roles) <= _CACHED_MESSAGES else _first_out_of_order(roles))


def _roles(messages: tuple[Message, ...]) -> tuple[str, ...]:
    return tuple([_CALLING if m.tool_calls is not None and m.role == "assistant" else m.role for m in messages])


def _first_out_of_order(roles: tuple[str, ...]) -> int:
    """The number of the first message whose role cannot follow; 0 if there is none."""
    return (_search if len(roles) <= _CACHED_MESSAGES else _search.__wrapped__)(roles)


@functools.lru_cache(maxsize=4096)
def _search(roles: tuple[str, ...]) -> int:
    for number, (before, role) in enumerate(itertools.pairwise(("", *roles)), start=1):
        if role not in _FOLLOWERS[before]:
            return number
    return 0
