"""What the UI shows of the changes since the previous snapshot: pairs, rejects, and verdicts on held-out pairs."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from rm_assets.data.pairs.changes import pair_changes, reject_changes
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.snapshots import Snapshot, SnapshotError
from rm_assets.data.tables import schemas
from rm_assets.defs.results.metadata import table
from rm_assets.defs.snapshots.models import ModelSnapshot
from rm_assets.training.jobs.result import read_scores

Compared = TypeVar("Compared", Snapshot, ModelSnapshot)
Metadata = dict[str, Any]


def _if_different(
    compare: Callable[[Compared, Compared], Metadata],
) -> Callable[[Compared | None, Compared], Metadata]:
    """No metadata without a previous snapshot, or where it is the same; and no failed run where that one is damaged."""

    @functools.wraps(compare)
    def compare_if_different(before: Compared | None, now: Compared) -> Metadata:
        if before is None or before.directory == now.directory:
            return {}
        try:
            return {"compared_with": before.directory.name, **compare(before, now)}
        except (OSError, SnapshotError) as error:
            return {"compared_with": f"nothing, as {before.directory.name} cannot be read: {error}"}

    return compare_if_different


_SCORES = ("chosen_score", "rejected_score", "chosen_score_before", "rejected_score_before")
_COLUMNS = {
    "source": "string",
    "line": "int",
    "split": "string",
    **dict.fromkeys(_SCORES, "float"),
    "pair_id": "string",  # last, as it is wide
}
_MEANINGS = {
    "added": "Pairs that the previous snapshot did not have.",
    "removed": "Pairs that only the previous snapshot had.",
    "flipped": "Pairs whose two replies have swapped labels.",
    "moved": "Pairs that are in another split now.",
}


@_if_different
def pair_changes_metadata(before: Snapshot, now: Snapshot) -> Metadata:
    """How many pairs of padded_pairs changed."""
    counts = pair_changes(before, now).counts()
    rows = [{"change": name, "pairs": count, "meaning": _MEANINGS[name]} for name, count in counts.items()]
    return {"changed_pairs": table(rows)}


@_if_different
def reject_changes_metadata(before: Snapshot, now: Snapshot) -> Metadata:
    """How many lines are rejected for other reasons than before."""
    changes = reject_changes(*(read_table(snapshot.paths(), schemas.REJECTS) for snapshot in (before, now)))
    columns = {"before": "string", "now": "string", "lines": "int"}
    rows = [
        {"before": old or "not rejected", "now": new or "not rejected", "lines": count}
        for (old, new), count in sorted(changes.items(), key=lambda item: (-item[1], item[0]))
    ]
    return {"changed_rejects": table(rows, columns)}


@_if_different
def verdict_changes_metadata(before: ModelSnapshot, now: ModelSnapshot) -> Metadata:
    """The held-out pairs that are ranked better or worse than by the model before, with both models' scores."""
    from rm_assets.training.report.score_changes import changed_verdicts

    better, worse = changed_verdicts(*(read_scores(model.directory) for model in (before, now)))
    metadata: Metadata = {"num_ranked_better": len(better), "num_ranked_worse": len(worse)}
    for name, pairs in (("ranked_better", better), ("ranked_worse", worse)):
        scores = pairs.filter(like="_score").astype("float64").round(4)
        metadata[name] = table(pairs.assign(**scores).to_dict("records"), _COLUMNS)
    return metadata
