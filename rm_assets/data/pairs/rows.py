"""Sound preferences as rows of validated_preferences, column by column."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rm_assets.data.formats.fast_path import SimplePair
from rm_assets.data.formats.preferences import Format, Preference
from rm_assets.data.pairs.conversations import Conversations, PlainConversations, Side, num_with_role
from rm_assets.data.pairs.keys import pair_keys
from rm_assets.data.tables import schemas


class PairRows:
    """Preferences of one source or several, collected into a table."""

    def __init__(self) -> None:
        self._sides = Conversations(), Conversations(), Conversations()
        self._lines: list[int] = []
        self._formats: list[Format] = []
        self._others: dict[int, Preference] = {}  # those that may have a margin, tools, a subset or annotators, by row

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
        """Add the preference of a line that states it by messages alone."""
        prompts, chosen, rejected = self._sides
        prompts.add_plain(*pair.prompt)
        chosen.add_plain(*pair.chosen)
        rejected.add_plain(*pair.rejected)
        self._lines.append(line)
        self._formats.append(pair.format)

    def table(self, source: str | Sequence[str]) -> pa.Table:
        """The rows, with the schema `schemas.VALIDATED`; `source` is that of all rows, or of each."""
        values = {name: self._values(name, default) for name, default in _DEFAULTS.items()}
        return _table(source, self._lines, self._sides, self._formats, values)

    def _values(self, name: str, default: Any) -> list[Any]:
        values = [default] * len(self._lines)
        for row, preference in self._others.items():
            values[row] = getattr(preference, name)
        return values


def table_with_messages(
    rows: pa.Table, source: str, lines: NDArray[np.int64], sides: Iterable[pa.ListArray]
) -> pa.Table:
    """The rows of a file together with those of lines that Arrow parsed, see `formats.message_batches`, by line."""
    count = len(lines)
    values = {name: [default] * count for name, default in _DEFAULTS.items()}
    formats = pa.repeat(str(Format.MESSAGES), count)
    parsed = _table(source, lines, [PlainConversations(side) for side in sides], formats, values)
    if not rows.num_rows:
        return parsed
    joined = pa.concat_tables([rows, parsed]).combine_chunks()
    return joined.take(np.argsort(joined["line"].to_numpy(), kind="stable"))


_DEFAULTS = {"tools": "", "margin": 0.0, "subset": "", "num_annotators": 0, "num_agreeing": 0}
"""What a preference has that states nothing else than its messages."""


def _table(source: Any, lines: Any, sides: Sequence[Side], formats: Any, values: dict[str, Any]) -> pa.Table:
    prompts, chosen, rejected = sides
    keys = pair_keys(prompts, chosen, rejected, values["tools"])
    columns: dict[str, Any] = {
        "source": pa.repeat(source, len(lines)) if isinstance(source, str) else source,
        "line": lines,
        "pair_id": keys.pair_id,
        "prompt_key": keys.prompt,
        "chosen_key": keys.chosen,
        "rejected_key": keys.rejected,
        "prompt": prompts.array(),
        "chosen": chosen.array(),
        "rejected": rejected.array(),
        "format": formats,
        "num_turns": num_with_role(prompts, "user"),
        **values,
        "tools": [text or None for text in values["tools"]],
    }
    return schemas.build_table(columns, schemas.VALIDATED)
