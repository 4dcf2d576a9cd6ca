"""Rows of annotation tools, public sets and other trainers, brought to what the usual formats state.

It costs all other rows one look at the names of their fields. Settings go first: a set of which a field is one of your
own columns is read by these.
"""

from rm_assets.data.formats.exports import argilla, label_studio, public_sets
from rm_assets.data.formats.exports.ballots import Ballots
from rm_assets.data.formats.field_names import Row
from rm_assets.data.formats.preferences import ParsingRules

MARKS = argilla.MARKS | label_studio.MARKS | public_sets.MARKS
"""A row without any of these fields is no export."""
FIELDS = argilla.FIELDS | label_studio.FIELDS | public_sets.FIELDS
"""What is read of exports: none of it may be given twice in one object."""


def unwrapped(row: Row, rules: ParsingRules) -> Row | Ballots:
    """The row of a usual format that an export's row holds, or what its annotators said; any other row as it is."""
    if row.keys().isdisjoint(MARKS):
        return row
    ballots = argilla.ballots_of_argilla(row, rules) or label_studio.ballots_of_label_studio(row, rules)
    return ballots or public_sets.usual_row(label_studio.usual_row(row), rules.columns.values())
