"""rejected_annotations: every reject of every stage in one table, each with the hash of the line it came from."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from rm_assets.data import records
from rm_assets.data.fingerprint import fingerprint
from rm_assets.data.parquet import read_table
from rm_assets.data.publication import publication, stage_shard, tables_writer
from rm_assets.data.records import Stage
from rm_assets.data.snapshots import DATA, REJECTS, Snapshot
from rm_assets.settings import Settings

VERSION = 1
ASSET = "rejected_annotations"


def rejects_snapshot(settings: Settings, stages: dict[Stage, Snapshot], say: Callable[[str], object]) -> Snapshot:
    """Gather the rejects of these snapshots into one Parquet file, ordered by source, line and stage."""
    with publication(Path(settings.storage), ASSET, settings.keep_snapshots, say) as turn:
        files = [
            [stage, file.sha256]
            for stage, snapshot in stages.items()
            for shard in snapshot.manifest.shards
            for file in shard.files
            if file.folder == REJECTS
        ]
        key = fingerprint(ASSET, VERSION, files, stages[Stage.RAW].name)
        shard = turn.find(key)
        if shard is None:
            table = gathered_rejects(stages)
            stats = {"num_in": sum(snapshot.manifest.num_rows(rejects=True) for snapshot in stages.values())}
            shard = stage_shard(turn.directory, ASSET, "", key, tables_writer({DATA: table}, stats), _laws)
        return turn.publish([shard], {stage: snapshot.name for stage, snapshot in stages.items()}, {})


def _laws(paths: dict[str, Path]) -> dict[str, Any]:
    return {"num_out": read_table([paths[DATA]] if DATA in paths else [], records.REJECTS).num_rows}


def gathered_rejects(stages: dict[Stage, Snapshot]) -> pa.Table:
    """All rejects with `line_sha256` filled in; stages after validation know a line by its place only."""
    paths = [path for snapshot in stages.values() for path in snapshot.paths(REJECTS)]
    table = read_table(paths, records.REJECTS)
    order = {stage: number for number, stage in enumerate(Stage)}
    rows = sorted(table.to_pylist(), key=lambda row: (row["source"], row["line"], order[row["stage"]]))
    hashes = _line_hashes(stages[Stage.RAW], {(row["source"], row["line"]) for row in rows if not row["line_sha256"]})
    for row in rows:
        row["line_sha256"] = row["line_sha256"] or hashes[row["source"], row["line"]]
    return pa.Table.from_pylist(rows, schema=records.REJECTS)


def _line_hashes(raw: Snapshot, wanted: set[tuple[str, int]]) -> dict[tuple[str, int], str]:
    sources = {source for source, _ in wanted}
    hashes = {}
    for shard in raw.manifest.shards:
        if shard.source in sources:
            paths = [raw.directory / file.path for file in shard.files if file.folder != REJECTS]
            columns = read_table(paths, records.RAW).columns
            for source, line, text in zip(*(column.to_pylist() for column in columns), strict=True):
                if (source, line) in wanted:
                    hashes[source, line] = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return hashes
