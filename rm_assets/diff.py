"""What changed between two snapshots of padded_pairs, or between two models: `python -m rm_assets.diff BEFORE NOW`.

BEFORE and NOW are names of snapshots in RM_STORAGE, or `latest`. Of pairs it prints which were added (+), removed (-),
flipped (!) or moved to another split (>), and of rejects for which reasons lines were rejected before and are now. Of
models it prints the held-out pairs that are newly ranked right or wrong, with their scores before and now.

Exit codes: 0 compared, whether or not there are differences; 1 not found or not readable; 2 wrong arguments.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from rm_assets.data.pairs.changes import pair_changes, reject_changes
from rm_assets.data.stages.rejects import gathered_rejects
from rm_assets.data.storage.latest import latest_name
from rm_assets.data.storage.ownership import MANIFEST, is_snapshot_name
from rm_assets.data.storage.snapshots import Snapshot, SnapshotError, parent_snapshot, read_snapshot
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.trace import NotFoundError, print_lines
from rm_assets.training.jobs.result import read_scores

LATEST = "latest"
_MODEL = "reward_model"
_SIGNS = {"added": "+", "removed": "-", "flipped": "!", "moved": ">"}


def main(arguments: list[str]) -> int:
    """Print the differences; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m rm_assets.diff", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", help="a snapshot of padded_pairs or of reward_model, or latest")
    parser.add_argument("now", help="another one, or latest")
    parser.add_argument("--limit", type=int, default=20, help="pairs printed of each kind; default: 20")
    given = parser.parse_args(arguments)
    return print_lines(lambda storage: differences(storage, given.before, given.now, given.limit))


def differences(storage: Path, before: str, now: str, limit: int) -> Iterator[str]:
    """The differences between two snapshots of one kind, line by line."""
    kinds = [
        kind for kind in (Stage.PADDED.value, _MODEL) if all(_exists(storage, kind, name) for name in (before, now))
    ]
    if not kinds or before == now:
        raise NotFoundError(
            f"{str(storage)!r} has no two snapshots {before!r} and {now!r} of {Stage.PADDED} or of {_MODEL}: "
            "set RM_STORAGE, and name two directories of one of them"
        )
    one, other = (_name(storage, kinds[0], name) for name in (before, now))
    yield f"{kinds[0]} {one} -> {other}"
    if kinds[0] == _MODEL:
        yield from _model_differences(storage / _MODEL / one, storage / _MODEL / other, limit)
    else:
        old, new = (read_snapshot(storage / Stage.PADDED / name) for name in (one, other))
        yield from _pair_differences(old, new, limit)
        yield from _reject_differences(storage, old, new)


def _name(storage: Path, kind: str, name: str) -> str:
    return (latest_name(storage, kind) or "") if name == LATEST else name


def _exists(storage: Path, kind: str, name: str) -> bool:
    found = _name(storage, kind, name)
    return is_snapshot_name(found) and (storage / kind / found / MANIFEST).exists()


# --- pairs and rejects ---------------------------------------------------------------------------------------


def _pair_differences(before: Snapshot, now: Snapshot, limit: int) -> Iterator[str]:
    changes = pair_changes(before, now)
    counted = ", ".join(f"{count:,} {name}" for name, count in changes.counts().items())
    yield f"pairs: {before.manifest.num_rows():,} -> {now.manifest.num_rows():,}; {counted}"
    for name, sign in _SIGNS.items():
        rows: pa.Table = getattr(changes, name)
        for row in rows.slice(0, limit).to_pylist():
            folder = f"{row['folder_before']} -> {row['folder']}" if name == "moved" else row["folder"]
            yield f"  {sign} {row['source']}, line {row['line']}, pair {row['pair_id']} ({folder})"
        if rows.num_rows > limit:
            yield f"  {sign} {rows.num_rows - limit:,} more {name} (--limit)"


def _reject_differences(storage: Path, before: Snapshot, now: Snapshot) -> Iterator[str]:
    try:
        changes = reject_changes(*(_rejects(storage, pairs) for pairs in (before, now)))
    except SnapshotError as error:
        yield f"rejects: not compared, as snapshots were removed since ({error})"
        return
    yield f"rejects: {changes.total():,} lines changed"
    for (old, new), count in sorted(changes.items(), key=lambda item: (-item[1], item[0])):
        yield f"  {count:,}: {old or 'not rejected'} -> {new or 'not rejected'}"


def _rejects(storage: Path, pairs: Snapshot) -> pa.Table:
    """The rejects of all stages that a snapshot of padded_pairs was made from."""
    stages = {Stage.PADDED: pairs}
    for child, stage in itertools.pairwise(reversed(Stage)):
        stages[stage] = parent_snapshot(storage, stages[child], stage)
    return pa.concat_tables([schemas.REJECTS.empty_table(), *gathered_rejects(stages)])


# --- models --------------------------------------------------------------------------------------------------


def _model_differences(before: Path, now: Path, limit: int) -> Iterator[str]:
    from rm_assets.training.report.score_changes import changed_verdicts

    scores = [read_scores(directory) for directory in (before, now)]
    better, worse = changed_verdicts(*scores)
    num_common = len(scores[1].merge(scores[0][["source", "line", "pair_id"]]))
    yield f"held-out pairs with both scores: {num_common:,}; {len(better):,} ranked better now, {len(worse):,} worse"
    for sign, rows in (("+", better), ("-", worse)):
        for row in rows.head(limit).to_dict("records"):
            chosen, rejected = (
                f"{row[f'{side}_score_before']:+.4f} -> {row[f'{side}_score']:+.4f}" for side in ("chosen", "rejected")
            )
            place = f"{row['source']}, line {row['line']}, pair {row['pair_id']} ({row['split']})"
            yield f"  {sign} {place}: chosen {chosen}, rejected {rejected}"
        if len(rows) > limit:
            yield f"  {sign} {len(rows) - limit:,} more (--limit)"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
