"""Valid preferences as rows of validated_preferences, column by column."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rm_assets.data.formats.fast_path import SimplePair
from rm_assets.data.formats.preferences import Format, Preference
from rm_assets.data.pairs.conversations import Conversations
from rm_assets.data.pairs.keys import pair_keys
from rm_assets.data.tables import schemas


class PairRows:
    """Preferences of one source or several, collected into a table."""

    def __init__(self) -> None:
        self._sides = Conversations(), Conversations(), Conversations()
        self._lines: list[int] = []
        self._formats: list[Format] = []
        self._others: dict[int, Preference] = {}  # by row: those that may have a margin, tools, a subset or annotators

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def formats(self) -> Counter[str]:
        """How many of the preferences came in each format."""
        return Counter(map(str, self._formats))

    def add(self, line: int, preference: Preference) -> None:
        self._others[len(self._lines)] = preference
        for side, messages in zip(
            self._sides, (preference.prompt, preference.chosen, preference.rejected), strict=True
        ):
            side.add(messages)
        self._lines.append(line)
        self._formats.append(preference.format)

    def add_plain(self, line: int, pair: SimplePair) -> None:
        """Add the preference of a line that has nothing but the messages of its sides."""
        prompts, chosen, rejected = self._sides
        prompts.add_plain(*pair.prompt)
        chosen.add_plain(*pair.chosen)
        rejected.add_plain(*pair.rejected)
        self._lines.append(line)
        self._formats.append(pair.format)

    def table(self, source: str | Sequence[str]) -> pa.Table:
        """The rows, with the schema `schemas.VALIDATED`; `source` is one for all rows, or one for each."""
        prompts, chosen, rejected = self._sides
        tools = self._values("tools", "")
        keys = pair_keys(*self._sides, tools)
        columns: dict[str, Any] = {
            "source": pa.repeat(source, len(self)) if isinstance(source, str) else source,
            "line": self._lines,
            "pair_id": keys.pair_id,
            "prompt_key": keys.prompt,
            "chosen_key": keys.chosen,
            "rejected_key": keys.rejected,
            "prompt": prompts.array(),
            "chosen": chosen.array(),
            "rejected": rejected.array(),
            "tools": [text or None for text in tools],
            "margin": self._values("margin", 0.0),
            "format": self._formats,
            "num_turns": prompts.num_with_role("user"),
            "subset": self._values("subset", ""),
            "num_annotators": self._values("num_annotators", 0),
            "num_agreeing": self._values("num_agreeing", 0),
        }
        return schemas.build_table(columns, schemas.VALIDATED)

    def _values(self, name: str, default: Any) -> list[Any]:
        values = [default] * len(self._lines)
        for row, preference in self._others.items():
            values[row] = getattr(preference, name)
        return values
