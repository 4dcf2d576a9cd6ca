"""What the UI shows of annotation_files: each file with its size, and whether it is new, changed or gone."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import dagster as dg

from rm_assets.data.sources.content_version import ASSET, CONTENT, FILES, Content, file_changes
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.defs.results.metadata import table

_COLUMNS = {"file": "string", "bytes": "string", "change": "string"}
_SIGNS = {"new": "+", "changed": "~", "gone": "-"}


def files_observation(snapshot: Snapshot, before: Snapshot | None) -> dg.AssetObservation:
    """The annotation files that a refresh has read, compared with those of the previous refresh."""
    facts = snapshot.manifest.facts
    return dg.AssetObservation(
        asset_key=ASSET,
        tags={"dagster/data_version": facts[CONTENT]},
        metadata=files_metadata(facts[FILES], facts[CONTENT], files_of(before)),
    )


def files_of(snapshot: Snapshot | None) -> dict[str, Content] | None:
    """The files that a snapshot of raw_preferences was made from; None if an older version did not record them."""
    return snapshot.manifest.facts.get(FILES) if snapshot else {}


def files_metadata(
    files: Mapping[str, Content], version: str | None, before: Mapping[str, Content] | None
) -> dict[str, Any]:
    """The changes in a sentence, the table of the files, those that changed first, and their version."""
    changes = {} if before is None else file_changes(before, files)
    listed = {**files, **{source: before[source] for source in changes if source not in files}} if before else files
    rows = [
        {"file": source, "bytes": f"{content[0]:,}", "change": changes.get(source, "")}
        for source, content in sorted(listed.items(), key=lambda item: (item[0] not in changes, item[0]))
    ]
    return {
        "changes": "unknown" if before is None else _sentence(changes),
        "num_files": len(files),
        "megabytes": round(sum(content[0] for content in files.values()) / 1e6, 3),
        "files": table(rows, _COLUMNS),
        CONTENT: version or "unknown",
    }


def changes_tag(changes: Mapping[str, str]) -> str:
    """Changes as the tag of a run, such as `+2 ~1 -1`: files that are new, changed and gone."""
    counts = Counter(changes.values())
    return " ".join(f"{sign}{counts[change]}" for change, sign in _SIGNS.items() if counts[change])


def _sentence(changes: Mapping[str, str]) -> str:
    counts = Counter(changes.values())
    named = ", ".join(f"{counts[change]:,} {change}" for change in _SIGNS if counts[change])
    return f"{named or 'none'} since the previous refresh"
