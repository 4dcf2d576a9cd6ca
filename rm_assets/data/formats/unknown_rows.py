"""What to say of a row that lacks fields: those it has, the format it comes nearest to, and the setting that helps."""

from rm_assets.data.formats.field_names import LABELS, PROMPTS, RESPONSES, SPELLINGS, Row
from rm_assets.display_text import as_code

_MAX_LISTED = 8
_MAX_CHARACTERS = 40
_MAX_WORDS = 4
_NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "plain": (PROMPTS, SPELLINGS["chosen"], SPELLINGS["rejected"]),
    "comparison": (PROMPTS, ("response_a",), ("response_b",), (*LABELS, *SPELLINGS["preference_strength"])),
    "ranking": (PROMPTS, SPELLINGS["responses"]),
    "openai": (("input",), ("preferred_output",), ("non_preferred_output",)),
    "two_lines": (("text",),),
}
"""The fields that formats need, each with its spellings; of equally near formats the first one is named."""


def missing_field(name: str, row: Row) -> str:
    """The detail of a row without a field: of its own, only names of fields are said, a few and on one line.

    A name as long as a sentence is not said: it may be somebody's text.
    """
    names = [field for field in row if len(field) <= _MAX_CHARACTERS and len(field.split()) <= _MAX_WORDS]
    listed = ", ".join(map(as_code, names[:_MAX_LISTED]))
    num_more = len(row) - len(names[:_MAX_LISTED])
    listed += f" and {num_more} more" * (num_more > 0) if listed else f"only names that are sentences ({num_more})"
    found = f"the row has {listed}" if row else "the row has no field that is not null"
    return f"no field `{name}`; {found}{_nearest(row)}; the setting columns says which column is which field"


def _nearest(row: Row) -> str:
    """The format of which a row has most fields, if it has any, and what it lacks."""
    missing = {
        name: [spellings[0] for spellings in needed if row.keys().isdisjoint(spellings)]
        for name, needed in _NEEDED.items()
    }
    if any(one in row or other in row for one, other in RESPONSES):
        others = [name for name in missing["comparison"] if "response_" not in name]
        missing["comparison"] = others + _other_response(row)
    num_found = {name: len(_NEEDED[name]) - len(fields) for name, fields in missing.items()}
    nearest = max(num_found, key=lambda name: num_found[name])
    if nearest == "two_lines":
        return ", as a line of two-line files has (two_line_files)"
    lacking = " and ".join(f"`{field}`" for field in missing[nearest])
    return f"; the nearest format is {nearest}, which also needs {lacking}" if num_found[nearest] and lacking else ""


def _other_response(row: Row) -> list[str]:
    """The response that is compared with the one that a row has: `output_2` for `output_1`; none where it has both."""
    if any(one in row and other in row for one, other in RESPONSES):
        return []
    return next(([other if one in row else one] for one, other in RESPONSES if one in row or other in row), [])
