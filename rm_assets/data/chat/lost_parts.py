"""Which parts of a conversation a chat template leaves out: messages, tool calls, the tools or the last reasoning.

A conversation of the same shape (roles, which fields, tools or none) is rendered with marks as its contents, once per
shape; the marks that are missing from the rendering are the parts that the template leaves out.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from rm_assets.data.chat.tokenizer import ChatTokenizer, MessageDict, TemplateError, render

_MARK = re.compile(r"(?=(zq(?:\d+(?:c\d+)?|tool)qz))")
"""Any mark, also where two of them share a letter."""
_MAX_SHAPE = 500
"""Messages of a shape that is remembered for long."""
_MAX_SHAPES = 10_000


def lost_parts(chat: ChatTokenizer, messages: Sequence[MessageDict], tools: str) -> tuple[str, ...]:
    """What the template leaves out of such a conversation altogether: messages, tool calls, the tools or reasoning.

    Only the last reasoning counts: templates cut earlier reasoning by design.
    """
    shape = (bool(tools), *map(_shape_of, messages))
    if shape not in chat.lost_by_shape:
        if len(messages) > _MAX_SHAPE or len(chat.lost_by_shape) >= _MAX_SHAPES:
            chat.lost_by_shape.clear()  # both sides of a pair mostly have one shape: a long one is kept until the next
        chat.lost_by_shape[shape] = _lost_of_shape(chat, messages, tools)
    return chat.lost_by_shape[shape]


def _shape_of(message: MessageDict) -> tuple[str, bool, int, bool]:
    num_calls = len(message.get("tool_calls") or ())
    return message["role"], bool(message.get("content")), num_calls, bool(message.get("reasoning_content"))


def _lost_of_shape(chat: ChatTokenizer, messages: Sequence[MessageDict], tools: str) -> tuple[str, ...]:
    marked, marks = [], {}
    for number, message in enumerate(messages, start=1):
        copy = dict(message)
        if message.get("content"):
            copy["content"] = marks[f"message {number}"] = f"zq{number}qz"
        if message.get("tool_calls"):
            copy["tool_calls"] = [
                _marked_call(call, f"zq{number}c{n}qz") for n, call in enumerate(message["tool_calls"])
            ]
            marks |= {
                f"tool call {n + 1} of message {number}": f"zq{number}c{n}qz" for n in range(len(copy["tool_calls"]))
            }
        marked.append(copy)
    if tools:
        marks["the tools"] = "zqtoolqz"
        tools = msgspec.json.encode([_marked_tool("zqtoolqz")]).decode()
    try:
        rendered = render(chat, marked, tools)
    except TemplateError:
        return ()  # a template that inspects contents tells nothing here; the real ones are rendered next
    found = {match[1] for match in _MARK.finditer(rendered)}
    return (*(part for part, mark in marks.items() if mark not in found), *_lost_reasoning(chat, marked, tools))


def _lost_reasoning(chat: ChatTokenizer, messages: Sequence[MessageDict], tools: str) -> tuple[str, ...]:
    """The last reasoning after the user's last message, if the template leaves it out.

    It is rendered as the last message of all, since some templates cut it where an answer follows its tool calls.
    """
    numbers = [number for number, message in enumerate(messages) if message["role"] == "user"]
    start = numbers[-1] + 1 if numbers else 0
    last = next((n for n in reversed(range(start, len(messages))) if messages[n].get("reasoning_content")), None)
    if last is None:
        return ()
    marked = [*messages[:last], messages[last] | {"reasoning_content": "zqreasonqz"}]
    try:
        rendered = render(chat, marked, tools)
    except TemplateError:
        return ()
    return () if "zqreasonqz" in rendered else (f"the reasoning of message {last + 1}",)


def _marked_call(call: Any, mark: str) -> Any:
    """A tool call of the same form, OpenAI's or the bare one, to a function of this name."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return call | {"function": call["function"] | {"name": mark}}
    return call | {"name": mark}


def _marked_tool(mark: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {}}
    return {"type": "function", "function": {"name": mark, "description": mark, "parameters": parameters}}
