"""raw_preferences: one row per non-blank line, cut into shards. No shard of a damaged archive is published."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from rm_assets.data import records
from rm_assets.data.annotations import (
    AnnotationFile,
    DamagedArchiveError,
    ShardOfLines,
    find_annotations,
    shards_of_lines,
)
from rm_assets.data.evaluation import find_evaluation_files
from rm_assets.data.fingerprint import file_sha256, fingerprint
from rm_assets.data.identities import stage_identity
from rm_assets.data.records import Reason, Stage
from rm_assets.data.snapshots import (
    DATA,
    REJECTS,
    Publication,
    Shard,
    Snapshot,
    publication,
    stage_shard,
    write_json,
)
from rm_assets.settings import Settings

VERSION = 1
_YOUNG_SECONDS = 2.0
"""A file stamped this recently may change again without a new stamp: clocks of file systems are coarse."""
_STAMPS = "stamps.json"


def raw_snapshot(settings: Settings, say: Callable[[str], object]) -> Snapshot:
    """Read the annotations into a snapshot; files whose stamp is unchanged are not opened."""
    annotations = find_annotations(settings.annotations_path)
    files = [*annotations.files, *find_evaluation_files(settings.evaluation_files)]
    identity = fingerprint(Stage.RAW, VERSION, settings.shard_bytes, settings.max_line_bytes)
    with publication(Path(settings.storage), Stage.RAW, settings.keep_snapshots, say) as turn:
        stamps = _read_stamps(turn)
        shards: list[Shard] = []
        for file in files:
            shards += _shards_of_file(file, settings, identity, turn, stamps)
        write_json(turn.directory / _STAMPS, {file.source: stamps.get(file.source) for file in files})
        return turn.publish(
            shards, {}, {"ignored_files": list(annotations.ignored)}, stage_identity(Stage.RAW, settings, "")
        )


# --- stamps: they only spare the reading, content decides -----------------------------------------------------


def _read_stamps(turn: Publication) -> dict[str, Any]:
    try:
        return dict(msgspec.json.decode((turn.directory / _STAMPS).read_bytes()))
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def _stamp(file: AnnotationFile, identity: str) -> list[Any]:
    status = file.path.stat()
    return [str(file.path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino, identity]


def _shards_of_file(
    file: AnnotationFile, settings: Settings, identity: str, turn: Publication, stamps: dict[str, Any]
) -> list[Shard]:
    stamp = _stamp(file, identity)
    known = stamps.get(file.source) or {}
    if known.get("stamp") == stamp:
        found = [turn.find(key) for key in known["keys"]]
        if all(found):
            return [shard for shard in found if shard]
    settled = time.time() - stamp[2] / 1e9 > _YOUNG_SECONDS
    shards = _read_file(file, settings, identity, turn)
    unchanged = _stamp(file, identity) == stamp
    keys = [shard.key for shard in shards]
    stamps[file.source] = {"stamp": stamp, "keys": keys} if settled and unchanged else None
    return shards


def _read_file(file: AnnotationFile, settings: Settings, identity: str, turn: Publication) -> list[Shard]:
    lines = shards_of_lines(file.path, shard_bytes=settings.shard_bytes, max_line_bytes=settings.max_line_bytes)
    try:
        return list(_staged(lines, file, identity, turn))
    except DamagedArchiveError as error:
        return [_damaged(file, str(error), identity, turn)]


def _staged(lines: Iterator[ShardOfLines], file: AnnotationFile, identity: str, turn: Publication) -> Iterator[Shard]:
    for index, shard in enumerate(lines):
        key = fingerprint(identity, file.source, shard.first_line, shard.sha256)
        found = turn.find(key)
        yield found or stage_shard(
            turn.directory,
            shard_name(file.source, index),
            file.source,
            key,
            _tables(shard, file),
            _stats(shard),
        )


def _damaged(file: AnnotationFile, problem: str, identity: str, turn: Publication) -> Shard:
    """The one shard of a damaged archive: no rows, one reject that names the file, at line 0."""
    sha256 = file_sha256(file.path)
    key = fingerprint(identity, file.source, "damaged", sha256)
    reject = _reject(file, 0, Reason.DAMAGED_ARCHIVE, problem, sha256)
    tables = {REJECTS: pa.Table.from_pylist([reject], schema=records.REJECTS)}
    stats = _stats(ShardOfLines(first_line=1)) | {"num_damaged_files": 1}
    return turn.find(key) or stage_shard(turn.directory, shard_name(file.source, 0), file.source, key, tables, stats)


def shard_name(source: str, index: int) -> str:
    """A file name for a shard: readable, and different for every source and index."""
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", source)[-60:]
    return f"{readable}-{hashlib.sha256(source.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}-{index:05d}"


def _tables(shard: ShardOfLines, file: AnnotationFile) -> dict[str, pa.Table]:
    columns = [[file.source] * len(shard.texts), shard.numbers, shard.texts]
    rejects = [_reject(file, *reject) for reject in shard.rejects]
    return {
        DATA: pa.Table.from_arrays(
            [pa.array(column, field.type) for column, field in zip(columns, records.RAW, strict=True)],
            schema=records.RAW,
        ),
        REJECTS: pa.Table.from_pylist(rejects, schema=records.REJECTS),
    }


def _reject(file: AnnotationFile, line: int, reason: Reason, detail: str, sha256: str) -> dict[str, Any]:
    return {
        "source": file.source,
        "line": line,
        "stage": Stage.RAW,
        "reason": reason,
        "detail": detail,
        "line_sha256": sha256,
    }


def _stats(shard: ShardOfLines) -> dict[str, Any]:
    return {
        "num_lines": shard.num_lines,
        "num_blank": shard.num_blank,
        "num_bytes": shard.num_bytes,
        "num_malformed": len(shard.rejects),
        "bytes_unaccounted": shard.bytes_unaccounted,
        "lines_unaccounted": shard.num_lines - shard.num_blank - len(shard.texts) - len(shard.rejects),
        "reasons": reason_counts(reason for _, reason, _, _ in shard.rejects),
    }


def reason_counts(reasons: Any) -> dict[str, int]:
    """How often each reason occurs, in alphabetical order."""
    names = [str(reason) for reason in reasons]
    return {name: names.count(name) for name in sorted(set(names))}
