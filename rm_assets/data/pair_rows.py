"""Sound preferences as rows of validated_preferences, column by column."""

import itertools
from collections import Counter
from typing import Any

import pyarrow as pa

from rm_assets.data import records
from rm_assets.data.conversations import Conversations
from rm_assets.data.pair_keys import PairKeys, pair_keys
from rm_assets.data.plain_lines import PlainPair
from rm_assets.data.preferences import Preference

_KEYS = dict(zip(PairKeys._fields, ("pair_id", "prompt_key", "chosen_key", "rejected_key"), strict=True))


class PairRows:
    """Preferences of one source, gathered into a table."""

    def __init__(self) -> None:
        self.prompts, self.chosen, self.rejected = Conversations(), Conversations(), Conversations()
        self.formats: Counter[str] = Counter()
        self._lines: list[int] = []
        self._tools: list[str] = []
        self._margins: list[float] = []
        self._formats: list[str] = []
        self._subsets: list[str] = []

    def add(self, line: int, preference: Preference) -> None:
        """Add the preference that a line states."""
        self.prompts.add(preference.prompt)
        self.chosen.add(preference.chosen)
        self.rejected.add(preference.rejected)
        self._add_facts(line, preference.tools, preference.margin, preference.format, preference.subset)

    def add_plain(self, line: int, pair: PlainPair) -> None:
        """Add the preference of a line that states it by messages alone."""
        self.prompts.add_plain(*pair.prompt)
        self.chosen.add_plain(*pair.chosen)
        self.rejected.add_plain(*pair.rejected)
        self._add_facts(line, "", 0.0, pair.format, "")

    def _add_facts(self, line: int, tools: str, margin: float, format_name: str, subset: str) -> None:
        self._lines.append(line)
        self._tools.append(tools)
        self._margins.append(margin)
        self._formats.append(format_name)
        self._subsets.append(subset)

    def table(self, source: str) -> pa.Table:
        """The rows, with the schema `records.VALIDATED`."""
        keys = pair_keys(self.prompts, self.chosen, self.rejected, self._tools)
        self.formats.update(map(str, self._formats))
        columns: dict[str, Any] = {
            "source": pa.repeat(source, len(keys)),
            "line": self._lines,
            **{_KEYS[name]: [getattr(key, name) for key in keys] for name in _KEYS},
            "prompt": self.prompts.array(),
            "chosen": self.chosen.array(),
            "rejected": self.rejected.array(),
            "tools": self._tools,
            "margin": self._margins,
            "format": self._formats,
            "num_turns": self._num_turns(),
            "subset": self._subsets,
        }
        return records.table(columns, records.VALIDATED)

    def _num_turns(self) -> list[int]:
        roles = self.prompts.roles
        return [roles[first:last].count("user") for first, last in itertools.pairwise(self.prompts.ends)]
