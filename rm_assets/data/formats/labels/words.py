"""Words of labels that prefer no response: spellings of a tie, and marks of a task that nobody judged."""

import re
from itertools import product

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
"""A label that is one of these, when it is plain, prefers neither response."""

ABSENT = frozenset({"", "na", "nan", "none", "null", "nil", "undefined", "notapplicable", "#na", "<na>"})
"""A label that is one of these, when it is plain, is as good as none."""

SKIPPED = frozenset(
    {"skip", "skipped", "skipping", "unsure", "notsure", "imnotsure", "uncertain", "unclear", "unknown", "undecided"}
    | {"undetermined", "cantdecide", "cannotdecide", "cantsay", "canttell", "idk", "dontknow", "idontknow", "pending"}
    | {"unlabelled", "unlabeled", "notlabelled", "notlabeled", "nolabel", "unrated", "notrated", "norating", "todo"}
    | {"unannotated", "notannotated", "noannotation", "noanswer", "noverdict", "nojudgement", "nojudgment", "abstain"}
    | {"abstained", "invalid", "discard", "discarded", "flag", "flagged", "error", "timeout", "tbd", "hardtosay"}
    | {"cannotdetermine", "cantdetermine", "cannotjudge", "cantjudge", "cannotsay", "cannottell", "hardtotell"}
)
"""A label that is one of these, when it is plain, says that nobody judged."""


def plain(word: str) -> str:
    """A word without what only parts or surrounds it: `Tie (both bad)` is `tiebothbad`; the sign of `-1` stays."""
    return re.sub(r"[\s_()\[\]]|[.,:;!?'’\"/](?!\d)|(?<=[a-z])-|-(?!\d)", "", word.lower())
