"""What changed between two snapshots of padded_pairs: which pairs, and which rejects.

A pair is identified by its pair_id, a hash of its messages and tools, wherever it is; a reject by the hash of its line.
Files of pairs that both snapshots have are not read.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rm_assets.data.pairs.digests import key_digests
from rm_assets.data.pairs.splits import SPLITS
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.snapshots import REJECTS, Snapshot
from rm_assets.data.tables import schemas

_LINE = ["source", "line", "pair_id"]
_SIDES = ["chosen_key", "rejected_key"]


def num_changed_pairs(before: Snapshot, now: Snapshot) -> int:
    """Pairs in the splits of only one of two snapshots; all pairs of both if their settings differ."""
    if before.manifest.identity != now.manifest.identity:
        return len(_pair_digests(before, ())) + len(_pair_digests(now, ()))
    common = _hashes(before) & _hashes(now)
    return len(np.setxor1d(_pair_digests(before, common), _pair_digests(now, common)))


def _hashes(snapshot: Snapshot) -> set[str]:
    return {file.sha256 for shard in snapshot.manifest.shards for file in shard.files}


def _pair_digests(snapshot: Snapshot, left_out: Collection[str]) -> NDArray[Any]:
    """64 bits of each pair_id, uint64 [pairs], without the files of these hashes."""
    pairs = _rows(snapshot, SPLITS, left_out, ["pair_id"])
    return np.unique(key_digests(pairs["pair_id"]))


def _rows(snapshot: Snapshot, folders: Iterable[str], left_out: Collection[str], columns: list[str]) -> pa.Table:
    """These columns of the files in some folders, with the folder, without the files of these hashes."""
    tables = []
    for folder in folders:
        paths = {
            snapshot.directory / file.path: None
            for shard in snapshot.manifest.shards
            for file in shard.files
            if file.folder == folder and file.sha256 not in left_out
        }
        rows = read_table(paths, schemas.PADDED, columns)
        tables.append(rows.append_column("folder", pa.repeat(folder, rows.num_rows)))
    return pa.concat_tables(tables)


@dataclass(frozen=True, kw_only=True)
class PairChanges:
    """Pairs that differ between two snapshots: tables with source, line, pair_id and folder, by line.

    `folder` is the split, or `evaluation/<name>`. `flipped` pairs have the same two replies with the labels swapped;
    they are in neither `added` nor `removed`. `moved` ones have another folder now; `folder_before` is the former one.
    """

    added: pa.Table
    removed: pa.Table
    flipped: pa.Table
    moved: pa.Table

    def counts(self) -> dict[str, int]:
        """How many pairs were added, removed, flipped and moved."""
        return {name: rows.num_rows for name, rows in vars(self).items()}


def pair_changes(before: Snapshot, now: Snapshot) -> PairChanges:
    """The pairs of two snapshots of padded_pairs that only one of them has, or has elsewhere."""
    common = _hashes(before) & _hashes(now)
    old, new = (_changed_pairs(snapshot, common) for snapshot in (before, now))
    removed, added = _without(old, new, ["pair_id"]), _without(new, old, ["pair_id"])
    flipped = added.join(removed.select(_SIDES[::-1]), _SIDES, _SIDES[::-1], join_type="left semi")
    both = new.join(old.select(["pair_id", "folder"]), "pair_id", join_type="inner", right_suffix="_before")
    return PairChanges(
        added=_by_line(_without(added, removed, _SIDES, _SIDES[::-1])),
        removed=_by_line(_without(removed, added, _SIDES, _SIDES[::-1])),
        flipped=_by_line(flipped),
        moved=_by_line(both.filter(pc.not_equal(both["folder"], both["folder_before"]))),
    )


def _changed_pairs(snapshot: Snapshot, common: Collection[str]) -> pa.Table:
    """The pairs of the splits and, where these lack them, of the evaluation sets, one row per pair."""
    folders = {file.folder for shard in snapshot.manifest.shards for file in shard.files} - {REJECTS, *SPLITS}
    rows = _rows(snapshot, [*SPLITS, *sorted(folders)], common, [*_LINE, *_SIDES])
    first = rows.append_column("row", pa.array(np.arange(rows.num_rows)))
    kept = first.group_by("pair_id").aggregate([("row", "min")])["row_min"]
    return rows.take(kept)


def _without(rows: pa.Table, others: pa.Table, keys: list[str], other_keys: list[str] | None = None) -> pa.Table:
    """The rows whose keys are not among those of the others."""
    return rows.join(others.select(other_keys or keys), keys, other_keys, join_type="left anti")


def _by_line(rows: pa.Table) -> pa.Table:
    return rows.drop_columns(_SIDES).sort_by([("source", "ascending"), ("line", "ascending"), ("pair_id", "ascending")])


RejectChanges = Counter[tuple[str, str]]
"""Numbers of lines by the reasons for which they were rejected before and are now; an empty reason: not rejected."""


def reject_changes(before: pa.Table, now: pa.Table) -> RejectChanges:
    """The lines rejected for other reasons than before, from two tables of rejects with `line_sha256`.

    Equal lines count as often as they occur; a line rejected for several reasons has them joined with commas.
    """
    old, new = _reasons(before), _reasons(now)
    changes: RejectChanges = Counter()
    for line in old.keys() | new.keys():
        changes += _moved(old.get(line, {}), new.get(line, {}))
    return changes


def _reasons(rejects: pa.Table) -> dict[str, Counter[str]]:
    """How many lines of each hash were rejected for which reasons."""
    lines: dict[tuple[str, int, str], set[str]] = {}
    for row in rejects.select(["source", "line", "line_sha256", "reason"]).to_pylist():
        lines.setdefault((row["source"], row["line"], row["line_sha256"]), set()).add(row["reason"])
    found: dict[str, Counter[str]] = {}
    for (_, _, sha256), reasons in lines.items():
        found.setdefault(sha256, Counter())[", ".join(sorted(reasons))] += 1
    return found


def _moved(old: Mapping[str, int], new: Mapping[str, int]) -> RejectChanges:
    """Equal lines, whose reasons before and now are matched in alphabetical order after those that stayed."""
    gone, came = (sorted((Counter(one) - Counter(other)).elements()) for one, other in ((old, new), (new, old)))
    length = max(len(gone), len(came))
    return Counter(zip(gone + [""] * (length - len(gone)), came + [""] * (length - len(came)), strict=True))
