"""One side of many pairs, message by message: the prompts, or the chosen or the rejected replies of a batch."""

import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from rm_assets.data.formats.preferences import Message
from rm_assets.data.tables import schemas
from rm_assets.data.tables.ragged import Texts

_LISTS = schemas.VALIDATED.field("prompt").type


class Conversations:
    """Conversation i has the messages `ends[i]` to `ends[i + 1]`; most messages have only a role and a content."""

    def __init__(self) -> None:
        self.roles: list[str] = []
        self.contents: list[str | None] = []
        self.ends = [0]
        self._extras: dict[int, Message] = {}  # messages with more fields, by their number
        self._with_extras: list[int] = []  # the conversations that have such messages
        self._has_nulls = False

    def __len__(self) -> int:
        return len(self.ends) - 1

    def add(self, messages: Sequence[Message]) -> None:
        extras = {number: m for number, m in enumerate(messages, len(self.roles)) if _has_extras(m)}
        if extras:
            self._extras |= extras
            self._with_extras.append(len(self))
        self.roles += [message.role for message in messages]
        contents = [message.content for message in messages]
        self._has_nulls |= None in contents
        self.contents += contents
        self.ends.append(len(self.roles))

    def add_plain(self, roles: Iterable[str], contents: Iterable[str]) -> None:
        """Add a conversation of messages with only a role and a content."""
        self.roles += roles
        self.contents += contents
        self.ends.append(len(self.roles))

    def numbers_with_extras(self) -> list[int]:
        """The conversations with a message that has more than a role and a content."""
        return self._with_extras

    def messages(self, number: int) -> list[Message]:
        places = range(self.ends[number], self.ends[number + 1])
        return [
            self._extras.get(place) or Message(role=self.roles[place], content=self.contents[place]) for place in places
        ]

    @functools.cached_property
    def texts(self) -> Texts:
        """The contents. Read it only after the last conversation is added: it is cached."""
        return Texts.of(self.contents)

    def num_with_role(self, role: str) -> list[int]:
        """How many messages of each conversation have this role."""
        return [self.roles[first:last].count(role) for first, last in itertools.pairwise(self.ends)]

    def array(self) -> pa.ListArray:
        """The conversations as a column of lists of messages."""
        num_messages = len(self.roles)
        is_valid = np.array([c is not None for c in self.contents], np.bool_) if self._has_nulls else None
        columns = {"role": pa.array(self.roles, pa.string()), "content": self.texts.array(is_valid)}
        for name in schemas.MESSAGE.names[2:]:
            columns[name] = self._extra_column(name, num_messages)
        values = pa.StructArray.from_arrays(list(columns.values()), fields=list(schemas.MESSAGE))
        return pa.ListArray.from_arrays(pa.array(self.ends, pa.int32()), values, type=_LISTS)

    def _extra_column(self, name: str, num_messages: int) -> pa.Array:
        if not self._extras:
            return pa.nulls(num_messages, pa.string())
        values = [None] * num_messages
        for place, message in self._extras.items():
            values[place] = getattr(message, name)
        return pa.array(values, pa.string())


def _has_extras(message: Message) -> bool:
    return not (
        message.name is None
        and message.reasoning_content is None
        and message.tool_calls is None
        and message.tool_call_id is None
    )
