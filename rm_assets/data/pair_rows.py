"""Sound preferences as rows of validated_preferences, column by column."""

from collections import Counter
from typing import Any

import pyarrow as pa

from rm_assets.data import records
from rm_assets.data.message_columns import message_lists
from rm_assets.data.pair_keys import equality_keys, pair_id
from rm_assets.data.preferences import Message, Preference


class PairRows:
    """Preferences of one source, gathered into a table."""

    def __init__(self) -> None:
        self._lines: list[int] = []
        self._preferences: list[Preference] = []

    def add(self, line: int, preference: Preference) -> None:
        """Add the preference that a line states."""
        self._lines.append(line)
        self._preferences.append(preference)

    @property
    def formats(self) -> Counter[str]:
        """How many of the preferences came in each format."""
        return Counter(str(preference.format) for preference in self._preferences)

    def table(self, source: str) -> pa.Table:
        """The rows, with the schema `records.VALIDATED`."""
        pairs = self._preferences
        keys = equality_keys(pairs)
        columns: dict[str, Any] = {
            "source": pa.repeat(source, len(pairs)),
            "line": self._lines,
            "pair_id": [pair_id(pair) for pair in pairs],
            "prompt_key": [key.prompt for key in keys],
            "chosen_key": [key.chosen for key in keys],
            "rejected_key": [key.rejected for key in keys],
            "prompt": message_lists([pair.prompt for pair in pairs]),
            "chosen": message_lists([pair.chosen for pair in pairs]),
            "rejected": message_lists([pair.rejected for pair in pairs]),
            "tools": [pair.tools for pair in pairs],
            "margin": [pair.margin for pair in pairs],
            "format": [pair.format for pair in pairs],
            "num_turns": [_num_turns(pair.prompt) for pair in pairs],
            "subset": [pair.subset for pair in pairs],
        }
        return records.table(columns, records.VALIDATED)


def _num_turns(prompt: tuple[Message, ...]) -> int:
    return [message.role for message in prompt].count("user")
