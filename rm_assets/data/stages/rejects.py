"""Rows of rejects, as every stage writes and counts them, and rejected_annotations, which gathers them all.

rejected_annotations is one table, each row with the hash of the line that it came from. A shard's lines are the same at
every stage, so its rejects are sorted by themselves, and shards follow each other by source and position: only the
rejects of one shard are in memory at a time. (No file sorts between two that share a shard, see `sources.packs`.)
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rm_assets.data.storage.files import resolve_path
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.parquet import ROW_GROUP_BYTES, read_batches, read_table
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.shards import ShardWriter, Stats, write_shard
from rm_assets.data.storage.snapshots import DATA, REJECTS, Snapshot
from rm_assets.data.tables import schemas
from rm_assets.data.tables.reasons import Reason
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

VERSION = 2
ASSET = "rejected_annotations"


# --- rejects of one stage ------------------------------------------------------------------------------------


def reject_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rejects as a table."""
    return pa.Table.from_pylist(list(rows), schema=schemas.REJECTS)


def pair_reject(row: Mapping[str, Any], stage: Stage, reason: Reason, detail: str) -> dict[str, Any]:
    """A reject after validation, where the line's text is not at hand: `line_sha256` is empty."""
    return {
        "source": row["source"],
        "line": row["line"],
        "stage": stage,
        "reason": reason,
        "detail": detail,
        "line_sha256": "",
    }


Refusal = tuple[Reason, str]
"""A reason and its detail."""


def refused_rows(rows: pa.Table, stage: Stage, refused: Mapping[int, Refusal]) -> pa.Table:
    """The rejects of a stage: from rows with `source` and `line`, those with a refusal, given by row number."""
    places = sorted(refused)
    keys = rows.select(["source", "line"]).take(pa.array(places, pa.int64())).to_pylist()
    return reject_table(pair_reject(key, stage, *refused[place]) for key, place in zip(keys, places, strict=True))


def reason_counts(reasons: Counter[Reason]) -> dict[str, int]:
    """How often each reason occurs, in alphabetical order."""
    return {str(reason): count for reason, count in sorted(reasons.items())}


def num_rejects(paths: Mapping[str, Path]) -> Counter[str]:
    """Rows of the written file of rejects, if there is one, by source."""
    counts: Counter[str] = Counter()
    for rows in read_batches(paths.get(REJECTS), schemas.REJECTS, ["source"]):
        counts.update(schemas.num_rows_by_source(rows))
    return counts


# --- the stage -----------------------------------------------------------------------------------------------


def publish_rejects(settings: Settings, stages: dict[Stage, Snapshot], log: Callable[[str], object]) -> Snapshot:
    """Gather the rejects of these snapshots into one Parquet file, ordered by source, line and stage."""

    def fill(writer: ShardWriter) -> Stats:
        for table in _row_groups(gathered_rejects(stages)):
            writer.write(DATA, table)
        return {"num_in": sum(snapshot.manifest.num_rows(rejects=True) for snapshot in stages.values())}

    with open_publication(
        resolve_path(settings.storage), ASSET, settings.keep_snapshots, log, settings.verify
    ) as publisher:
        files = [
            [stage, file.sha256]
            for stage, snapshot in stages.items()
            for shard in snapshot.manifest.shards
            for file in shard.files
            if file.folder == REJECTS
        ]
        key = fingerprint(ASSET, VERSION, files, stages[Stage.RAW].name)
        shard = publisher.find(key) or write_shard(publisher.directory, ASSET, "", key, fill, _measure)
        return publisher.publish([shard], {stage: snapshot.name for stage, snapshot in stages.items()}, {})


def _measure(paths: dict[str, Path]) -> dict[str, Any]:
    return {"num_out": sum(rows.num_rows for rows in read_batches(paths.get(DATA), schemas.REJECTS, ["line"]))}


def _row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Tables joined into ones of about ROW_GROUP_BYTES: most files have a few rejects, some have thousands."""
    waiting: list[pa.Table] = []
    num_bytes = 0
    for table in tables:
        waiting.append(table)
        num_bytes += table.nbytes
        if num_bytes >= ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, num_bytes = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def gathered_rejects(stages: dict[Stage, Snapshot]) -> Iterator[pa.Table]:
    """All rejects with `line_sha256` filled in, a table per shard, by source and line, then in the order of stages."""
    paths: dict[str, list[Path]] = {}
    for stage in (stage for stage in Stage if stage in stages):
        for shard in stages[stage].manifest.shards:
            files = [stages[stage].directory / file.path for file in shard.files if file.folder == REJECTS]
            paths.setdefault(shard.name, []).extend(files)
    raw = stages[Stage.RAW]
    for shard in sorted(raw.manifest.shards, key=lambda shard: next(iter(shard.by_source))):
        rejects = read_table(paths[shard.name], schemas.REJECTS)
        if rejects.num_rows:
            ordered = rejects.sort_by([("source", "ascending"), ("line", "ascending")])
            yield _with_hashes(ordered, raw.data_path(shard))


def _with_hashes(rejects: pa.Table, raw: Path | None) -> pa.Table:
    """The rejects of a shard with `line_sha256`; after validation it is empty, so the line's text is hashed here."""
    has_none = pc.equal(rejects["line_sha256"], "")
    if not pc.any(has_none).as_py():
        return rejects
    wanted = pc.unique(rejects["line"].filter(has_none))
    hashes: dict[tuple[str, int], str] = {}
    for rows in read_batches(raw, schemas.RAW):
        found = rows.filter(pc.is_in(rows["line"], wanted))
        texts = found["text"].cast(pa.binary()).to_pylist()
        hashes |= zip(_lines(found), (hashlib.sha256(text).hexdigest() for text in texts), strict=True)
    known = zip(_lines(rejects), rejects["line_sha256"].to_pylist(), strict=True)
    filled = [sha256 or hashes[line] for line, sha256 in known]  # every reject comes from a line of raw_preferences
    columns = {name: rejects[name] for name in schemas.REJECTS.names} | {"line_sha256": filled}
    return schemas.build_table(columns, schemas.REJECTS)


def _lines(rows: pa.Table) -> Iterator[tuple[str, int]]:
    return zip(rows["source"].to_pylist(), rows["line"].to_pylist(), strict=True)
