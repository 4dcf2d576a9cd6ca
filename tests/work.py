"""Work counted instead of timed: bytecodes executed, and characters read by the primitives of C that search texts.

A loop in Python is seen by its bytecodes, whoever runs it. A single call into C is one bytecode however long it takes:
for searches in a text, hand over a `CountedText`, and `counting(chat)` for what is rendered and encoded.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from rm_assets.data.chat.tokenizer import ChatTokenizer


class Counter:
    """Characters read since the beginning."""

    characters = 0


class CountedText(str):
    """A text that counts how much of it is read by what searches or slices it."""

    def find(self, part: str, start: int = 0, end: int = sys.maxsize, /) -> int:  # type: ignore[override]
        found = super().find(part, start, end)
        Counter.characters += (found if found >= 0 else min(end, len(self))) - start + len(part)
        return found

    def __contains__(self, part: object) -> bool:
        return self.find(str(part)) >= 0

    def count(self, *arguments: Any) -> int:
        Counter.characters += len(self)
        return super().count(*arguments)

    def __getitem__(self, key: Any) -> str:
        found = super().__getitem__(key)
        Counter.characters += len(found)
        return found

    def startswith(self, *arguments: Any) -> bool:
        Counter.characters += sum(len(argument) for argument in arguments if isinstance(argument, str))
        return super().startswith(*arguments)


class CountingTokenizer:
    """A tokenizer of transformers that counts what it encodes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, texts: list[str], **options: Any) -> Any:
        Counter.characters += sum(map(len, texts))
        return self._tokenizer(texts, **options)


class CountingTemplate:
    """A template that counts what it renders, as texts that count."""

    def __init__(self, template: Any) -> None:
        self._template = template

    def render(self, *arguments: Any, **variables: Any) -> CountedText:
        text = CountedText(self._template.render(*arguments, **variables))
        Counter.characters += len(text)
        return text


class CountingChat(ChatTokenizer):
    """A tokenizer and its template that count."""

    @functools.cached_property
    def bounded(self) -> Any:
        return CountingTemplate(ChatTokenizer.bounded.func(self))  # type: ignore[attr-defined]


def counting(chat: ChatTokenizer) -> CountingChat:
    """The same tokenizer and template, counting."""
    values = {field.name: getattr(chat, field.name) for field in dataclasses.fields(chat)}
    return CountingChat(**values | {"reference": CountingTokenizer(chat.reference)})


def work_of(function: Callable[[], object]) -> int:
    """Bytecodes executed by a call, and characters that it reads."""
    num_opcodes, characters, before = 0, Counter.characters, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal num_opcodes
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        num_opcodes += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return num_opcodes + Counter.characters - characters


def growth(function: Callable[[Any], object], inputs: Sequence[Any]) -> float:
    """By how much the work grows at most from one input to the next; whatever is cached is cached before."""
    function(inputs[0])
    amounts = [work_of(functools.partial(function, value)) for value in inputs]
    return max(larger / smaller for smaller, larger in itertools.pairwise(amounts))
