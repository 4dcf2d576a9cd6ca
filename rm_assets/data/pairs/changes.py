"""How many pairs differ between two snapshots of padded_pairs; only files that differ are read."""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rm_assets.data.pairs.digests import key_digests
from rm_assets.data.pairs.splits import SPLITS
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.data.tables import schemas


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
    paths = [
        snapshot.directory / file.path
        for shard in snapshot.manifest.shards
        for file in shard.files
        if file.folder in SPLITS and file.sha256 not in left_out
    ]
    return np.unique(key_digests(read_table(paths, schemas.PADDED, ["pair_id"])["pair_id"]))
