"""The hashes that tell pairs apart, and those by which prompts and conversations count as equal.

The latter are of texts in their normal form, see `rm_assets.data.normal_form`. All are BLAKE2b of 16 bytes, over parts
that tell their own lengths, so that no two different pairs are hashed over the same bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rm_assets.data.conversations import Conversations
from rm_assets.data.normal_form import normal_form, normal_texts
from rm_assets.data.preferences import Message
from rm_assets.data.texts import Texts

_ROLES = {"system": 0, "user": 1, "assistant": 2, "tool": 3}
_SYSTEM = _ROLES["system"]
_MORE = 16  # added to the role of a message that has more than a content
_LAST = 128  # added to the last one of a conversation
_NO_CONTENT = 32
_EXTRAS = {"name": 33, "reasoning_content": 34, "tool_calls": 35, "tool_call_id": 36}


class PairKeys(NamedTuple):
    """Hashes of pairs, one column each, of 32 hexadecimal digits.

    `pair_id` is a pair's identity: of its messages and tools, whatever file, format or margin it came with. `prompt` is
    of the system message and the first user turn, and decides the split. `chosen` and `rejected` are of all texts of a
    conversation and the tools. The last three are of texts in their normal form.
    """

    pair_id: Sequence[str]
    prompt: Sequence[str]
    chosen: Sequence[str]
    rejected: Sequence[str]


def pair_keys(prompts: Conversations, chosen: Conversations, rejected: Conversations, tools: Sequence[str]) -> PairKeys:
    """The keys of pairs; all are sound, see `rm_assets.data.soundness.require_sound`."""
    sides = (prompts, chosen, rejected)
    normal = [normal_texts(side.texts) for side in sides]
    exact_parts = [_parts(side, side.texts, _exact) for side in sides]
    normal_parts = [_parts(side, texts, _normal) for side, texts in zip(sides, normal, strict=True)]
    columns = zip(*exact_parts, *normal_parts, _openings(prompts, normal[0]), tools, strict=True)
    keys = [_keys(*row) for row in columns]
    return PairKeys(*zip(*keys, strict=True)) if keys else PairKeys((), (), (), ())


def _keys(
    prompt: bytes,
    one: bytes,
    other: bytes,
    normal: bytes,
    normal_one: bytes,
    normal_other: bytes,
    opening: bytes,
    tools: str,
) -> tuple[str, str, str, str]:
    ending = tools.encode()  # empty or a JSON list, and no head begins with "[": what follows cannot be taken for it
    chosen = blake2b(normal + ending, digest_size=16)
    rejected = chosen.copy()
    chosen.update(normal_one)
    rejected.update(normal_other)
    return (
        blake2b(b"".join((prompt, one, other, ending)), digest_size=16).hexdigest(),
        blake2b(opening, digest_size=16).hexdigest(),
        chosen.hexdigest(),
        rejected.hexdigest(),
    )


_HEAD = np.dtype([("role", "u1"), ("length", "<u4")])  # packed: five bytes


def _heads(roles: Sequence[int], texts: Texts) -> NDArray[Any]:
    """What stands before the texts of messages, one head each."""
    heads = np.empty(len(roles), _HEAD)
    heads["role"] = roles
    heads["length"] = np.diff(texts.offsets)
    return heads


Entries = Callable[[Message], Iterator[tuple[int, str]]]
"""What counts of a message: texts, each with a number for what it is."""


def _parts(side: Conversations, texts: Texts, entries: Entries) -> list[bytes]:
    """Each conversation as bytes: its heads, of which the last one is marked, then its texts."""
    content, ends = texts.content, side.ends
    heads = _heads([_ROLES[role] for role in side.roles], texts)
    heads["role"][np.array(ends[1:], np.int64) - 1] |= _LAST
    head, size, places = heads.tobytes(), _HEAD.itemsize, texts.offsets[ends].tolist()
    parts = [
        head[size * first : size * last] + content[begin:end]
        for first, last, begin, end in zip(ends[:-1], ends[1:], places[:-1], places[1:], strict=True)
    ]
    for number in side.with_extras():
        parts[number] = _with_extras(side.messages(number), entries)
    return parts


def _with_extras(messages: Sequence[Message], entries: Entries) -> bytes:
    """The same for a conversation in which some message has more than a role and a content."""
    codes, found = zip(*(entry for message in messages for entry in entries(message)), strict=True)
    texts = Texts.of(found)
    heads = _heads(codes, texts)
    heads["role"][-1] |= _LAST
    return heads.tobytes() + texts.content


def _exact(message: Message) -> Iterator[tuple[int, str]]:
    extras = [(code, text) for name, code in _EXTRAS.items() if (text := getattr(message, name)) is not None]
    yield _ROLES[message.role] + _MORE * bool(extras), message.content or ""
    yield from extras
    if message.content is None:
        yield _NO_CONTENT, ""


def _normal(message: Message) -> Iterator[tuple[int, str]]:
    # an empty name is no name
    extras = [(code, normal_form(text)) for name, code in _EXTRAS.items() if (text := getattr(message, name))]
    yield _ROLES[message.role] + _MORE * bool(extras), normal_form(message.content or "")
    yield from extras


def _openings(prompts: Conversations, texts: Texts) -> list[bytes]:
    """The system message, or nothing, and the user's turn that follows, each after its length in 8 bytes."""
    content, roles = texts.content, prompts.roles
    places = texts.offsets.tolist()
    lengths = np.diff(texts.offsets).astype("<u8").tobytes()
    nothing = bytes(8)

    def measured(number: int) -> bytes:
        return lengths[8 * number : 8 * number + 8] + content[places[number] : places[number + 1]]

    return [
        measured(first) + measured(first + 1) if roles[first] == "system" else nothing + measured(first)
        for first in prompts.ends[:-1]
    ]
