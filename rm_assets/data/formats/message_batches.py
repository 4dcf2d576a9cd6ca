"""The shortest way for most lines of messages: Arrow parses all lines of a batch, without a Python object for each.

A line with lists of messages in `prompt`, `chosen` and `rejected`, and nothing else, is parsed straight into columns,
which show that it is sound. Every other line is left to `fast_path` and `parsing`; they read the parsed lines alike.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from numpy.typing import NDArray

from rm_assets.data.formats.fast_path import simple_pair
from rm_assets.data.formats.preferences import Format
from rm_assets.data.formats.soundness import are_in_order
from rm_assets.data.tables.message_columns import single_chunk

SIDES = ("prompt", "chosen", "rejected")
_ROLES = ("system", "user", "assistant")
_MIN_LINES = 64
"""A batch that Arrow does not parse is halved until its parts have no more lines than this."""
_LISTS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_PARSE = pa.json.ParseOptions(
    explicit_schema=pa.schema([(side, _LISTS) for side in SIDES]),
    unexpected_field_behavior="ignore",  # such a line has more colons than its messages need
)
_COLON = ord(":")
# the lead bytes of all characters that str.isspace accepts, in UTF-8
_SPACE_LEADS = np.zeros(256, np.bool_)
_SPACE_LEADS[[chr(code).encode()[0] for code in range(0x3001) if chr(code).isspace()]] = True

Mask = NDArray[np.bool_]


class MessageBatch(NamedTuple):
    """Which lines of a batch were parsed, bool [lines], and their conversations, a column of lists for each side."""

    is_parsed: Mask
    sides: tuple[pa.ListArray, ...]


def parse_messages(lines: pa.StringArray) -> MessageBatch | None:
    """The lines of a batch that state sound preferences by messages alone; None if the first line does not.

    `simple_pair` gives the same messages for each of them, and `Format.MESSAGES`.
    """
    first = simple_pair(lines[0].as_py().encode()) if len(lines) else None
    if first is None or first.format != Format.MESSAGES:
        return None
    of_lines = _Bytes.of(lines)
    is_parsed = _may_be_parsed(of_lines)
    rows, found = _parsed(lines.filter(pa.array(is_parsed)), np.flatnonzero(is_parsed))
    sides = [single_chunk(found[side]) for side in SIDES]
    colons = of_lines.counts(_COLON)[rows]
    for check in (_are_complete, _are_sound):
        if not (holds := check(sides)).all():
            rows, colons, sides = rows[holds], colons[holds], [side.filter(pa.array(holds)) for side in sides]
    if not (holds := colons == _num_colons(sides)).all():  # it has further fields
        rows, sides = rows[holds], [side.filter(pa.array(holds)) for side in sides]
    is_parsed = np.zeros(len(lines), np.bool_)
    is_parsed[rows] = True
    return MessageBatch(is_parsed, tuple(sides)) if len(rows) else None


class _Bytes(NamedTuple):
    """The bytes of all rows, of which row i has those from `offsets[i]` to `offsets[i + 1]`."""

    content: NDArray[np.uint8]
    offsets: NDArray[np.int32]

    @classmethod
    def of(cls, texts: pa.StringArray) -> "_Bytes":
        """A row for each text."""
        _, offsets, content = texts.buffers()
        ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
        return cls(np.frombuffer(content or b"", np.uint8), ends)

    @classmethod
    def of_contents(cls, side: pa.ListArray) -> "_Bytes":
        """A row for all contents of each conversation."""
        content, offsets = cls.of(side.values.field("content"))
        return cls(content, offsets[side.offsets.to_numpy()])

    def counts(self, byte: int) -> NDArray[np.int64]:
        """How often a byte occurs in each row."""
        return np.diff(np.searchsorted(np.flatnonzero(self.content == byte), self.offsets))

    def column(self) -> pa.Array:
        """As an Arrow column."""
        buffers = [None, pa.py_buffer(self.offsets), pa.py_buffer(self.content)]
        return pa.BinaryArray.from_buffers(pa.binary(), len(self.offsets) - 1, buffers)


def _may_be_parsed(lines: _Bytes) -> Mask:
    """Lines in braces, without line feeds and escaped colons.

    A value cannot go on from one such line to the next: no JSON value has a closing brace, a line feed and an opening
    brace in a row. A batch of them with as many values as lines has one in each.
    """
    content, starts, ends = lines.content, lines.offsets[:-1], lines.offsets[1:]
    is_taken = ends > starts
    starts, ends = starts[is_taken], ends[is_taken]
    is_taken[is_taken] = (content[starts] == ord("{")) & (content[ends - 1] == ord("}"))
    is_taken &= lines.counts(ord("\n")) == 0
    escapes = np.flatnonzero(content == ord("\\"))
    for step, character in enumerate("u003", start=1):
        escapes = escapes[np.take(content, escapes + step, mode="clip") == ord(character)]
    is_taken[np.searchsorted(lines.offsets, escapes, side="right") - 1] = False
    return np.asarray(is_taken)


def _parsed(lines: pa.StringArray, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], pa.Table]:
    """The objects in these lines, with their row numbers; without the parts that Arrow does not parse."""
    content = pc.binary_join_element_wise(lines, "", "\n").buffers()[2] if len(lines) else None
    options = pa.json.ReadOptions(use_threads=False, block_size=content.size + 1 if content else None)
    try:
        found = pa.json.read_json(pa.BufferReader(content), options, _PARSE) if content else None
    except pa.ArrowInvalid:
        found = None
    if found is not None and found.num_rows == len(lines):
        return rows, found
    if len(lines) <= _MIN_LINES:
        return rows[:0], _PARSE.explicit_schema.empty_table()
    middle = len(lines) // 2
    parts = [_parsed(lines[:middle], rows[:middle]), _parsed(lines[middle:], rows[middle:])]
    return np.concatenate([part[0] for part in parts]), pa.concat_tables([part[1] for part in parts])


# --- what the columns show -----------------------------------------------------------------------------------


def _are_complete(sides: list[pa.ListArray]) -> Mask:
    """Whether each row has all its lists, messages, roles and contents, and no role but the three plain ones."""
    are_complete = np.ones(len(sides[0]), np.bool_)
    for side in sides:
        messages = side.values
        codes = _role_codes(side)
        incomplete = [part.is_null() for part in (messages, messages.field("content"), codes) if part.null_count]
        for part in incomplete:
            are_complete[np.searchsorted(side.offsets, np.flatnonzero(part), side="right") - 1] = False
        are_complete &= side.is_valid().to_numpy(zero_copy_only=False)
    return are_complete


def _role_codes(side: pa.ListArray) -> pa.Int32Array:
    return pc.index_in(side.values.field("role"), pa.array(_ROLES))


def _are_sound(sides: list[pa.ListArray]) -> Mask:
    """Whether the roles of each row are in order, its texts are not blank, and its replies differ."""
    return _are_in_order(sides) & _have_text(sides) & _differ(sides[1], sides[2])


def _are_in_order(sides: list[pa.ListArray]) -> Mask:
    shapes = [_Bytes(_role_codes(side).to_numpy().astype(np.uint8), side.offsets.to_numpy()).column() for side in sides]
    found = pc.binary_join_element_wise(*shapes, b"|").dictionary_encode()
    roles = [
        [tuple(_ROLES[code] for code in part) for part in shape.split(b"|")] for shape in found.dictionary.to_pylist()
    ]
    sound = [are_in_order(prompt, one) and are_in_order(prompt, other) for prompt, one, other in roles]
    return np.asarray(np.array(sound, np.bool_)[found.indices.to_numpy()])


def _have_text(sides: list[pa.ListArray]) -> Mask:
    have_text = np.ones(len(sides[0]), np.bool_)
    for side in sides:
        contents = side.values.field("content")
        content, offsets = _Bytes.of(contents)
        is_blank = offsets[1:] == offsets[:-1]
        starts = np.flatnonzero(~is_blank)
        unsure = starts[_SPACE_LEADS[content[offsets[starts]]]]
        is_blank[unsure] = [text.isspace() for text in contents.take(pa.array(unsure)).to_pylist()]
        have_text[np.searchsorted(side.offsets, np.flatnonzero(is_blank), side="right") - 1] = False
    return have_text


def _differ(one: pa.ListArray, other: pa.ListArray) -> Mask:
    """Whether the texts of both sides differ; where only their roles or borders do, the line is left to `fast_path`."""
    columns = [_Bytes.of_contents(side).column() for side in (one, other)]
    return np.asarray(pc.not_equal(*columns).to_numpy(zero_copy_only=False), np.bool_)


def _num_colons(sides: list[pa.ListArray]) -> NDArray[np.int64]:
    """How many colons a line has that states only these messages: after its three fields, in messages and contents."""
    counts = [2 * np.diff(side.offsets) + _Bytes.of_contents(side).counts(_COLON) for side in sides]
    return np.asarray(3 + sum(counts), np.int64)
