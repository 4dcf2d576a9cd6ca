"""What the report is sliced by: properties of a pair other than its scores, each as a readable name."""

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

KEY = ["source", "line", "pair_id"]
FACTS = ["format", "num_turns", "script", "subset", "agreement"]
# `source` comes last: there may be thousands of files, and a table cut for display loses its end.
SLICES = ("format", "num_turns", "script", "length_difference", "margin", "agreement", "subset", "source")
# Upper ends of chosen_length - rejected_length; not a ratio, which a long prompt would blur.
LENGTH_BUCKETS = {
    -65: "chosen shorter by over 64 tokens",
    -17: "chosen shorter by 17 to 64 tokens",
    -1: "chosen shorter by 1 to 16 tokens",
    0: "equal length",
    16: "chosen longer by 1 to 16 tokens",
    64: "chosen longer by 17 to 64 tokens",
    np.inf: "chosen longer by over 64 tokens",
}
_BELOW_ZERO = -1e-30  # above every negative margin in use
NO_MARGIN = "0, or none given"
# Upper ends of the annotation's margin, in the annotation's own unit.
MARGIN_BUCKETS = {
    _BELOW_ZERO: "below 0",
    0: NO_MARGIN,
    1: "up to 1",
    2: "over 1, up to 2",
    3: "over 2, up to 3",
    np.inf: "over 3",
}
NO_SCRIPT = "none"
# The first word of a letter's Unicode name, where it is not yet the name of a script.
_SCRIPTS = {
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    "HIRAGANA": "Kana",
    "KATAKANA": "Kana",
    "HALFWIDTH": "Kana",
    "FULLWIDTH": "Latin",
}


def slice_facts(validated: pa.Table) -> pd.DataFrame:
    """KEY and FACTS of rows of validated_preferences; needs only these columns and the messages."""
    sides = [validated[name].to_pylist() for name in ("prompt", "chosen", "rejected")]
    scripts = [dominant_script(_contents(messages)) for messages in zip(*sides, strict=True)]
    counts = zip(*(validated[name].to_pylist() for name in ("num_annotators", "num_agreeing")), strict=True)
    agreements = [agreement_name(*pair) for pair in counts]
    table = validated.select([*KEY, "format", "num_turns", "subset"])
    return table.to_pandas().assign(script=scripts, agreement=agreements)


def agreement_name(num_annotators: int, num_agreeing: int) -> str:
    """How many annotators agree with a pair's label: `2 of 3`, `unanimous`; empty if the row does not state it."""
    if num_annotators < 2:
        return "one annotator" if num_annotators else ""
    return "unanimous" if num_agreeing == num_annotators else f"{num_agreeing} of {num_annotators}"


def _contents(sides: Iterable[list[Mapping[str, Any]]]) -> list[str]:
    return [message["content"] or "" for messages in sides for message in messages]


def dominant_script(texts: Iterable[str]) -> str:
    """The script of most letters: `Latin`, `Han`, `Cyrillic`, ...; `none` without letters.

    Japanese mixes Han with kana: a text is `Kana` if a tenth of its letters are kana.
    """
    counts: Counter[str] = Counter()
    for character, count in Counter("".join(texts)).items():
        if script := _script(character):
            counts[script] += count
    if counts["Kana"] * 10 >= counts.total() > 0:
        return "Kana"
    return max(sorted(counts), key=lambda script: counts[script], default=NO_SCRIPT)


@functools.lru_cache(maxsize=2**17)
def _script(character: str) -> str:
    """A letter's script by its Unicode name; empty for other characters."""
    if not character.isalpha():
        return ""
    first = unicodedata.name(character, "UNNAMED").partition(" ")[0]
    return _SCRIPTS.get(first, first.split("-")[0].capitalize())


def length_bucket(tokens: pd.Series) -> pd.Series:
    """The bucket of chosen_length - rejected_length, ordered."""
    return _cut(tokens, LENGTH_BUCKETS)


def margin_bucket(margins: pd.Series) -> pd.Series:
    """The bucket of the annotation's margin, ordered."""
    return _cut(margins, MARGIN_BUCKETS)


def _cut(values: pd.Series, buckets: Mapping[float, str]) -> pd.Series:
    return pd.cut(values, [-np.inf, *buckets], labels=list(buckets.values()))
