"""The hashes that tell pairs apart, and those by which prompts and conversations count as equal.

The latter are of texts in their normal form, see `rm_assets.data.normal_form`. All are BLAKE2b of 16 bytes, over parts
that tell their own lengths, so that no two different pairs are hashed over the same bytes.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rm_assets.data.conversations import Conversations
from rm_assets.data.normal_form import normal_form, normal_texts
from rm_assets.data.preferences import Message
from rm_assets.data.texts import Texts

_ROLES = {"system": 0, "user": 1, "assistant": 2, "tool": 3}
_SYSTEM = _ROLES["system"]
_MORE = 16  # added to the role of a message that has more than a content
_NO_CONTENT = 32
_EXTRAS = {"name": 33, "reasoning_content": 34, "tool_calls": 35, "tool_call_id": 36}


class PairKeys(NamedTuple):
    """Hashes of a pair, 32 hexadecimal digits each.

    `pair_id` is its identity: of its messages and tools, whatever file, format or margin it came with. `prompt` is of
    the system message and the first user turn, and decides the split. `chosen` and `rejected` are of all texts of a
    conversation and the tools. The last three are of texts in their normal form.
    """

    pair_id: str
    prompt: str
    chosen: str
    rejected: str


def pair_keys(
    prompts: Conversations, chosen: Conversations, rejected: Conversations, tools: Sequence[str]
) -> list[PairKeys]:
    """The keys of pairs; all are sound, see `rm_assets.data.validation.require_sound`."""
    sides = (prompts, chosen, rejected)
    normal = [normal_texts(side.texts) for side in sides]
    exact_parts = zip(*(_parts(side, side.texts, _exact) for side in sides), strict=True)
    normal_parts = zip(*(_parts(side, texts, _normal) for side, texts in zip(sides, normal, strict=True)), strict=True)
    openings = _openings(prompts, normal[0])
    blake2b = hashlib.blake2b
    keys = []
    for exact, (prompt, one, other), opening, tool_list in zip(exact_parts, normal_parts, openings, tools, strict=True):
        ending = tool_list.encode()
        start = blake2b(prompt, digest_size=16)
        start.update(ending)
        digest = start.copy()
        digest.update(one)
        start.update(other)
        identity = blake2b(b"".join((*exact, ending)), digest_size=16)
        key = blake2b(opening, digest_size=16)
        keys.append(PairKeys(identity.hexdigest(), key.hexdigest(), digest.hexdigest(), start.hexdigest()))
    return keys


def _parts(side: Conversations, texts: Texts, entries: "Entries") -> list[bytes]:
    """Each conversation as bytes: its number of messages, their roles, the lengths of their texts, and the texts."""
    content, offsets = texts
    roles = bytes(map(_ROLES.__getitem__, side.roles))
    lengths = _lengths(texts)
    counts = np.diff(side.ends).astype("<u4").tobytes()
    ends, places = side.ends, offsets[side.ends].tolist()
    parts = [
        counts[4 * number : 4 * number + 4] + roles[first:last] + lengths[4 * first : 4 * last] + content[begin:end]
        for number, (first, last, begin, end) in enumerate(
            zip(ends[:-1], ends[1:], places[:-1], places[1:], strict=True)
        )
    ]
    for number in side.with_extras():
        parts[number] = _with_extras(side.messages(number), entries)
    return parts


def _with_extras(messages: Sequence[Message], entries: "Entries") -> bytes:
    """The same for a conversation in which some message has more than a role and a content."""
    codes, found = zip(*(entry for message in messages for entry in entries(message)), strict=True)
    texts = Texts.of(found)
    return len(codes).to_bytes(4, "little") + bytes(codes) + _lengths(texts) + texts.content


Entries = Callable[[Message], Iterator[tuple[int, str]]]
"""What counts of a message: texts, each with a number for what it is."""


def _exact(message: Message) -> Iterator[tuple[int, str]]:
    extras = [(code, text) for name, code in _EXTRAS.items() if (text := getattr(message, name)) is not None]
    yield _ROLES[message.role] + _MORE * bool(extras), message.content or ""
    yield from extras
    if message.content is None:
        yield _NO_CONTENT, ""


def _normal(message: Message) -> Iterator[tuple[int, str]]:
    extras = [(code, normal_form(text)) for name, code in _EXTRAS.items() if (text := getattr(message, name))]
    yield _ROLES[message.role] + _MORE * bool(extras), normal_form(message.content or "")
    yield from extras


def _lengths(texts: Texts) -> bytes:
    return np.diff(texts.offsets).astype("<u4").tobytes()


def _openings(prompts: Conversations, texts: Texts) -> Iterator[bytes]:
    """The system message, or nothing, and the user's turn that follows, each after its length."""
    content, places = texts.content, texts.offsets.tolist()
    roles, nothing = prompts.roles, (0).to_bytes(8, "little")
    for first in prompts.ends[:-1]:
        system = nothing
        if roles[first] == "system":  # a user's turn follows
            system = _measured(content[places[first] : places[first + 1]])
            first += 1
        yield system + _measured(content[places[first] : places[first + 1]])


def _measured(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text
