"""One side of many pairs, message by message: the prompts, or the chosen or the rejected replies of a batch."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rm_assets.data.formats.preferences import Message
from rm_assets.data.tables import schemas
from rm_assets.data.tables.message_columns import ROLES
from rm_assets.data.tables.ragged import Texts, offsets_of

_CODES = {role: code for code, role in enumerate(ROLES)}
_LISTS = schemas.VALIDATED.field("prompt").type


class Conversations:
    """Conversation i has the messages from `ends[i]` to `ends[i + 1]`; most have a role and a content alone."""

    def __init__(self) -> None:
        self.roles: list[str] = []
        self.contents: list[str | None] = []
        self.ends = [0]
        self._extras: dict[int, Message] = {}  # the messages that have more, by number
        self._odd: list[int] = []  # the conversations with such messages
        self._has_nulls = False

    def __len__(self) -> int:
        return len(self.ends) - 1

    def add(self, messages: Sequence[Message]) -> None:
        extras = {number: m for number, m in enumerate(messages, len(self.roles)) if _has_extras(m)}
        if extras:
            self._extras |= extras
            self._odd.append(len(self))
        self.roles += [message.role for message in messages]
        contents = [message.content for message in messages]
        self._has_nulls |= None in contents
        self.contents += contents
        self.ends.append(len(self.roles))

    def add_plain(self, roles: Iterable[str], contents: Iterable[str]) -> None:
        """Add a conversation of messages with a role and a content alone."""
        self.roles += roles
        self.contents += contents
        self.ends.append(len(self.roles))

    def numbers_with_extras(self) -> list[int]:
        """The conversations with a message that has more than a role and a content."""
        return self._odd

    def messages(self, number: int) -> list[Message]:
        places = range(self.ends[number], self.ends[number + 1])
        return [
            self._extras.get(place) or Message(role=self.roles[place], content=self.contents[place]) for place in places
        ]

    @functools.cached_property
    def texts(self) -> Texts:
        """The contents; to be read after the last conversation was added."""
        return Texts.of(self.contents)

    @property
    def role_codes(self) -> NDArray[np.uint8]:
        """The role of each message, as its place in `ROLES`."""
        return np.array([_CODES[role] for role in self.roles], np.uint8)

    def array(self) -> pa.ListArray:
        """The conversations as a column of lists of messages."""
        num_messages = len(self.roles)
        is_valid = np.array([c is not None for c in self.contents], np.bool_) if self._has_nulls else None
        extras = [self._extra_column(name, num_messages) for name in schemas.MESSAGE.names[2:]]
        return _lists(self.ends, [pa.array(self.roles, pa.string()), self.texts.array(is_valid), *extras])

    def _extra_column(self, name: str, num_messages: int) -> pa.Array:
        if not self._extras:
            return pa.nulls(num_messages, pa.string())
        values = [None] * num_messages
        for place, message in self._extras.items():
            values[place] = getattr(message, name)
        return pa.array(values, pa.string())


class PlainConversations:
    """The same, from an Arrow column of lists of messages with a role and a content, without nulls; not a slice."""

    def __init__(self, lists: pa.ListArray) -> None:
        self.ends = lists.offsets.to_numpy()
        self._roles, self._contents = lists.values.flatten()

    def __len__(self) -> int:
        return len(self.ends) - 1

    def numbers_with_extras(self) -> list[int]:
        """None."""
        return []

    def messages(self, number: int) -> list[Message]:
        """The messages of a conversation."""
        columns = (
            part[self.ends[number] : self.ends[number + 1]].to_pylist() for part in (self._roles, self._contents)
        )
        return [Message(role=role, content=content) for role, content in zip(*columns, strict=True)]

    @functools.cached_property
    def texts(self) -> Texts:
        """The contents."""
        return Texts.of_column(self._contents)

    @functools.cached_property
    def role_codes(self) -> NDArray[np.uint8]:
        """The role of each message, as its place in `ROLES`."""
        return np.asarray(pc.index_in(self._roles, pa.array(ROLES)).to_numpy().astype(np.uint8))

    def array(self) -> pa.ListArray:
        """The conversations as a column of lists of messages."""
        nothing = pa.nulls(len(self._roles), pa.string())
        return _lists(self.ends, [self._roles, self._contents, *[nothing] * len(schemas.MESSAGE.names[2:])])


Side = Conversations | PlainConversations


def num_with_role(side: Side, role: str) -> NDArray[np.int32]:
    """How many messages of each conversation have this role, int32 [conversations]."""
    counts = np.diff(offsets_of(side.role_codes == _CODES[role])[np.asarray(side.ends)])
    return np.asarray(counts, np.int32)


def _lists(ends: Any, columns: list[pa.Array]) -> pa.ListArray:
    values = pa.StructArray.from_arrays(columns, fields=list(schemas.MESSAGE))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values, type=_LISTS)


def _has_extras(message: Message) -> bool:
    return not (
        message.name is None
        and message.reasoning_content is None
        and message.tool_calls is None
        and message.tool_call_id is None
    )
