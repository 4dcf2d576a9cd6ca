"""The hashes that identify pairs, and those by which prompts and conversations count as equal.

The latter are of texts in their normal form, see `normal_form`. All are BLAKE2b of 16 bytes. Each text is hashed with
its length, so two different pairs never give the same bytes.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rm_assets.data.formats.conversations.tool_texts import sorted_json
from rm_assets.data.formats.preferences import Message
from rm_assets.data.pairs.conversations import Conversations
from rm_assets.data.pairs.normal_form import normal_form, normal_texts
from rm_assets.data.tables.ragged import Texts

_ROLES = {"system": 0, "user": 1, "assistant": 2, "tool": 3}
_SYSTEM = _ROLES["system"]
_MORE = 16  # added to the role of a message that has more than a content
_LAST = 128  # added to the last one of a conversation
_NO_CONTENT = 32
_EXTRAS = {"name": 33, "reasoning_content": 34, "tool_calls": 35, "tool_call_id": 36}
_CALLS = _EXTRAS["tool_calls"]


class PairKeys(NamedTuple):
    """Hashes of pairs, one column each, of 32 hexadecimal digits.

    `pair_id` identifies a pair by its messages and tools, exactly as they are rendered, whatever its file, format and
    margin. The others ignore what normal form removes, and the order of members in tools and tool calls: `prompt` is of
    the system message and the first user message, and decides the split; `chosen` and `rejected` are of a whole
    conversation and the tools.
    """

    pair_id: Sequence[str]
    prompt: Sequence[str]
    chosen: Sequence[str]
    rejected: Sequence[str]


def pair_keys(prompts: Conversations, chosen: Conversations, rejected: Conversations, tools: Sequence[str]) -> PairKeys:
    """The keys of pairs; all are valid, see `rm_assets.data.formats.validity.require_valid`."""
    sides = (prompts, chosen, rejected)
    normal = [normal_texts(side.texts) for side in sides]
    # the tools need no length: they are empty or a JSON list, and no head begins with "["
    ending, normal_ending = _texts(tools), _texts(_sorted_texts(tools))
    exact_parts = [_parts(side, side.texts, _exact) for side in sides]
    normal_parts = [_parts(side, texts, _normal) for side, texts in zip(sides, normal, strict=True)]
    pairs = _joined(*exact_parts[0], *exact_parts[1], *exact_parts[2], ending)
    return PairKeys(
        [blake2b(pair, digest_size=16).hexdigest() for pair in pairs],
        [blake2b(opening, digest_size=16).hexdigest() for opening in _openings(prompts, normal[0])],
        *_conversation_keys((*normal_parts[0], normal_ending), *normal_parts[1:]),
    )


def _texts(texts: Sequence[str]) -> pa.LargeBinaryArray:
    return pa.array(texts, pa.large_string()).cast(pa.large_binary())


def _sorted_texts(tools: Sequence[str]) -> Sequence[str]:
    """The tools with the members of all objects sorted; most pairs have none, and many the same."""
    known = {text: sorted_json(text) for text in set(tools) if text}
    return [known.get(text, text) for text in tools] if known else tools


def _conversation_keys(prompts: "Columns", chosen: "Columns", rejected: "Columns") -> tuple[list[str], list[str]]:
    """The keys of both conversations of each pair; the prompt, which they share, is hashed once."""
    chosen_keys, rejected_keys = [], []
    for prompt, one, other in zip(_joined(*prompts), _joined(*chosen), _joined(*rejected), strict=True):
        chosen_key = blake2b(prompt, digest_size=16)
        rejected_key = chosen_key.copy()
        chosen_key.update(one)
        rejected_key.update(other)
        chosen_keys.append(chosen_key.hexdigest())
        rejected_keys.append(rejected_key.hexdigest())
    return chosen_keys, rejected_keys


Columns = tuple[pa.LargeBinaryArray, ...]


def _joined(*columns: pa.LargeBinaryArray) -> Iterator[memoryview]:
    """The bytes of each row, column after column."""
    _, offsets, content = pc.binary_join_element_wise(*columns, pa.scalar(b"", pa.large_binary())).buffers()
    view, places = memoryview(content or b""), np.frombuffer(offsets, np.int64, len(columns[0]) + 1).tolist()
    return (view[begin:end] for begin, end in itertools.pairwise(places))


_HEAD = np.dtype([("role", "u1"), ("length", "<u4")])  # packed: five bytes


def _heads(roles: Sequence[int], texts: Texts) -> NDArray[Any]:
    """The head of each text: its role, or code for what it is, and its length."""
    heads = np.empty(len(roles), _HEAD)
    heads["role"] = roles
    heads["length"] = np.diff(texts.offsets)
    return heads


Entries = Callable[[Message], Iterator[tuple[int, str]]]
"""The hashed texts of a message, each with a code for what it is."""


def _parts(side: Conversations, texts: Texts, entries: Entries) -> Columns:
    """Each conversation as bytes, in two columns: its heads, of which the last one is marked, and its texts."""
    ends = np.array(side.ends, np.int64)
    heads = _heads([_ROLES[role] for role in side.roles], texts)
    heads["role"][ends[1:] - 1] |= _LAST
    columns = _binary(heads.tobytes(), ends * _HEAD.itemsize), _binary(texts.content, texts.offsets[ends])
    if odd := side.numbers_with_extras():
        is_odd = np.zeros(len(side), np.bool_)
        is_odd[odd] = True
        found = [_with_extras(side.messages(number), entries) for number in odd]
        columns = tuple(
            pc.replace_with_mask(column, is_odd, pa.array(values, pa.large_binary()))
            for column, values in zip(columns, zip(*found, strict=True), strict=True)
        )
    return columns


def _binary(content: bytes, offsets: NDArray[np.int64]) -> pa.LargeBinaryArray:
    """Rows of bytes, uncopied."""
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(content)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _with_extras(messages: Sequence[Message], entries: Entries) -> tuple[bytes, bytes]:
    """Heads and texts of a conversation in which some message has more than a role and a content."""
    codes, found = zip(*(entry for message in messages for entry in entries(message)), strict=True)
    texts = Texts.of(found)
    heads = _heads(codes, texts)
    heads["role"][-1] |= _LAST
    return heads.tobytes(), texts.content


def _exact(message: Message) -> Iterator[tuple[int, str]]:
    extras = [(code, text) for name, code in _EXTRAS.items() if (text := getattr(message, name)) is not None]
    yield _ROLES[message.role] + _MORE * bool(extras), message.content or ""
    yield from extras
    if message.content is None:
        yield _NO_CONTENT, ""


def _normal(message: Message) -> Iterator[tuple[int, str]]:
    # an empty name counts as none
    found = [(code, text) for name, code in _EXTRAS.items() if (text := getattr(message, name))]
    extras = [(code, normal_form(sorted_json(text) if code == _CALLS else text)) for code, text in found]
    yield _ROLES[message.role] + _MORE * bool(extras), normal_form(message.content or "")
    yield from extras


def _openings(prompts: Conversations, texts: Texts) -> list[bytes]:
    """Of each prompt, the system message, empty if it has none, and the message that follows; each after its length."""
    content, roles = texts.content, prompts.roles
    places = texts.offsets.tolist()
    lengths = np.diff(texts.offsets).astype("<u8").tobytes()
    nothing = bytes(8)

    def with_length(number: int) -> bytes:
        return lengths[8 * number : 8 * number + 8] + content[places[number] : places[number + 1]]

    return [
        with_length(first) + with_length(first + 1) if roles[first] == "system" else nothing + with_length(first)
        for first in prompts.ends[:-1]
    ]
