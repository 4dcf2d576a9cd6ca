"""Words and numbers as labels and tables write them."""

import re
import sys
import unicodedata
from collections.abc import Collection
from itertools import product
from typing import Any

from rm_assets.data.formats.preferences import PreferenceError
from rm_assets.data.tables.reasons import Reason

# --- words ---------------------------------------------------------------------------------------------------

_EQUAL = (
    *("same", "thesame", "aboutthesame", "roughlythesame", "nearlythesame", "equal", "aboutequal", "roughlyequal"),
    *("similar", "comparable", "equallygood", "equallybad"),
)
_WHO = ("both", "all", "they", "bothresponses", "bothanswers", "bothmodels")
_BOTH = {"".join(parts) for parts in product(_WHO, ("", "are"), (*_EQUAL, "good", "bad"))}
TIES = frozenset(
    {"tie", "ties", "tied", "atie", "draw", "adraw", "both", "neither", "even", "equals", "equally", "eq", "=", "=="}
    | {"nopreference", "nodifference", "nopref", "nowinner", "noclearwinner", "indifferent", "neutral", "bothresponses"}
    | {"neitherisgood", "neitherresponseisgood", "neitherisbetter", "neitherresponseisbetter"}
    | {*_EQUAL, *_BOTH}
    | {"".join(parts) for parts in product(("tie", "draw", "neither"), {*_EQUAL, *_BOTH, "good", "bad"})}
)
"""Labels, as `plain` writes them, that prefer neither response."""

ABSENT = frozenset({"", "na", "nan", "none", "null", "nil", "undefined", "notapplicable", "#na", "<na>"})
"""Labels, as `plain` writes them, that mean that there is none."""

SKIPPED = frozenset(
    {"skip", "skipped", "skipping", "unsure", "notsure", "imnotsure", "uncertain", "unclear", "unknown", "undecided"}
    | {"undetermined", "cantdecide", "cannotdecide", "cantsay", "canttell", "idk", "dontknow", "idontknow", "pending"}
    | {"unlabelled", "unlabeled", "notlabelled", "notlabeled", "nolabel", "unrated", "notrated", "norating", "todo"}
    | {"unannotated", "notannotated", "noannotation", "noanswer", "noverdict", "nojudgement", "nojudgment", "abstain"}
    | {"abstained", "invalid", "discard", "discarded", "flag", "flagged", "error", "timeout", "tbd", "hardtosay"}
    | {"cannotdetermine", "cantdetermine", "cannotjudge", "cantjudge", "cannotsay", "cannottell", "hardtotell"}
)
"""Labels, as `plain` writes them, that say that nobody judged."""


def plain(word: str) -> str:
    """A word in lower case without spaces and punctuation: `Tie (both bad)` is `tiebothbad`; the sign of `-1` stays.

    Full-width letters are those of ASCII, and invisible characters are left out.
    """
    if not word.isascii():
        shown = unicodedata.normalize("NFKC", word)
        word = "".join(character for character in shown if unicodedata.category(character) != "Cf")
    return re.sub(r"[\s_()\[\]]|[.,:;!?'’\"/](?!\d)|(?<=[a-z])-|-(?!\d)", "", word.lower())


# --- numbers -------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NO_NUMBER = frozenset({"", "nan", "null", "none", "na", "n/a", "<na>", "nil"})
"""What exported tables write for a missing number."""


def number_of(value: Any, name: str) -> float | None:
    """A number, or the exact number in a text; None for a null or empty value. Raises PreferenceError for the rest."""
    value = read_number(value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        raise PreferenceError(Reason.WRONG_TYPE, f"`{name}` is not a finite number")
    return float(value)


def read_number(value: Any) -> Any:
    """The number in a text, None for a text such as `nan` or `null`; any other value unchanged."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in _NO_NUMBER:
        return None
    return float(text) if _NUMBER.fullmatch(text) else value


def parse_numbers(row: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """The row with the texts of these fields, and of lists in them, as numbers."""
    read = {
        name: list(map(read_number, value)) if isinstance(value, list) else read_number(value)
        for name, value in row.items()
        if name in fields and isinstance(value, str | list)
    }
    return row | read if read else row
