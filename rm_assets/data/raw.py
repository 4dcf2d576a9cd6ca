"""raw_preferences: one row per non-blank line, cut into shards. A file is used whole or not at all.

No shard of a file that is damaged, unreadable or never holds still is published: such a file is one reject, at line
0. A file that changes while it is read is read again; where it only grows, what counts are the lines that were whole
when it was opened, once two readings agree on them.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from rm_assets.data import records
from rm_assets.data.annotations import AnnotationFile, find_annotations
from rm_assets.data.evaluation import find_evaluation_files
from rm_assets.data.file_bytes import (
    Change,
    OpenedFile,
    RejectedFileError,
    Status,
    file_stamp,
    file_status,
    is_same_file,
    opened,
)
from rm_assets.data.fingerprint import fingerprint
from rm_assets.data.identities import stage_identity
from rm_assets.data.lines import ShardOfLines, shards_of_lines
from rm_assets.data.publication import Publication, publication, stage_shard
from rm_assets.data.records import MALFORMED, Reason, Stage
from rm_assets.data.snapshots import DATA, REJECTS, Shard, Snapshot, read_table
from rm_assets.data.storage import place, read_file, write_json
from rm_assets.settings import Settings

VERSION = 2
_YOUNG_SECONDS = 2.0
"""A file stamped this recently may change again without a new stamp: clocks of file systems are coarse."""
_PAUSES = (0.0, 0.1, 0.5, 2.0)
"""Seconds before each reading of a file that changes while it is read."""
_STAMPS = "stamps.json"


def raw_snapshot(settings: Settings, say: Callable[[str], object]) -> Snapshot:
    """Read the annotations into a snapshot; files whose stamp is unchanged are not opened."""
    annotations = find_annotations(settings.annotations_path)
    files = [*annotations.files, *find_evaluation_files(settings.evaluation_files)]
    if ignored := annotations.ignored:
        say(f"{len(ignored)} entries are no annotation files and not read, such as {ignored[0]!r}")
    identity = fingerprint(Stage.RAW, VERSION, settings.shard_bytes, settings.max_line_bytes, settings.two_line_files)
    with publication(place(settings.storage), Stage.RAW, settings.keep_snapshots, say) as turn:
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
        return dict(msgspec.json.decode(read_file(turn.directory / _STAMPS)))
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def _stamp(path: Path, status: Status, identity: str, settings: Settings) -> list[Any]:
    return [*file_stamp(path, status), identity, settings.max_expansion]


def _shards_of_file(
    file: AnnotationFile, settings: Settings, identity: str, turn: Publication, stamps: dict[str, Any]
) -> list[Shard]:
    known = stamps.get(file.source)
    if known and known["stamp"] == _present_stamp(file, identity, settings):
        found = [turn.find(key) for key in known["keys"]]
        if all(found):
            return [shard for shard in found if shard]
    stamps[file.source] = None
    try:
        shards, settled = _steady_reading(file, settings, identity, turn)
    except RejectedFileError as error:
        return [_rejected(file, error, identity, turn)]
    if settled:
        stamp = _stamp(file.path, settled, identity, settings)
        stamps[file.source] = {"stamp": stamp, "keys": [shard.key for shard in shards]}
    return shards


def _present_stamp(file: AnnotationFile, identity: str, settings: Settings) -> list[Any] | None:
    try:
        return _stamp(file.path, file_status(file.path), identity, settings)
    except OSError:
        return None


# --- reading -------------------------------------------------------------------------------------------------


def _steady_reading(
    file: AnnotationFile, settings: Settings, identity: str, turn: Publication
) -> tuple[list[Shard], Status | None]:
    """A file's shards, and its status where an equal one will mean that nothing changed.

    Raises RejectedFileError where the file cannot be opened or read, or never holds still.
    """
    grown: OpenedFile | None = None
    seen: list[str] = []
    for pause in _PAUSES:
        time.sleep(pause)
        with opened(file.path) as now:
            follows = grown is not None and is_same_file(grown.status, now.status)
            if grown and follows:
                now.num_bytes = min(grown.num_bytes, now.num_bytes)
            is_old = time.time() - now.status.st_mtime > _YOUNG_SECONDS
            shards = _one_reading(now, file, settings, identity, turn, whole_lines=follows)
            change = now.change()
        keys = [shard.key for shard in shards]
        if change is Change.NONE:
            return shards, now.status if is_old and not follows else None
        if change is Change.GREW and follows and keys == seen:
            return shards, None
        grown, seen = (now, keys) if change is Change.GREW else (None, [])
    raise RejectedFileError(Reason.CHANGING_FILE, f"changed during {len(_PAUSES)} readings")


def _one_reading(
    now: OpenedFile, file: AnnotationFile, settings: Settings, identity: str, turn: Publication, *, whole_lines: bool
) -> list[Shard]:
    try:
        lines = shards_of_lines(
            now.stream(settings.max_expansion),
            shard_bytes=settings.shard_bytes,
            max_line_bytes=settings.max_line_bytes,
            whole_lines=whole_lines,
            in_twos=settings.two_line_files,
        )
        return list(_staged(lines, file, identity, turn))
    except RejectedFileError as error:
        return [_rejected(file, error, identity, turn, now.sha256(), now.num_bytes)]


def _staged(lines: Iterator[ShardOfLines], file: AnnotationFile, identity: str, turn: Publication) -> Iterator[Shard]:
    for index, shard in enumerate(lines):
        key = fingerprint(identity, file.source, shard.first_line, shard.sha256)
        yield turn.find(key) or _stage(shard, index, file, key, turn)


def _stage(shard: ShardOfLines, index: int, file: AnnotationFile, key: str, turn: Publication) -> Shard:
    name = shard_name(file.source, index)
    return stage_shard(turn.directory, name, file.source, key, _tables(shard, file), _stats(shard), raw_laws)


def _rejected(
    file: AnnotationFile,
    error: RejectedFileError,
    identity: str,
    turn: Publication,
    sha256: str = hashlib.sha256(b"").hexdigest(),
    num_bytes: int = 0,
) -> Shard:
    """The one shard of a file that is not used: no rows, one reject that names the file, at line 0."""
    key = fingerprint(identity, file.source, error.reason, error.detail, sha256)
    shard = ShardOfLines(first_line=1)
    shard.reject_file(error.reason, error.detail, sha256, num_bytes)
    return turn.find(key) or _stage(shard, 0, file, key, turn)


def shard_name(source: str, index: int) -> str:
    """A file name for a shard: readable, and different for every source and index."""
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", source)[-60:].lstrip("._-")  # readers skip files that look hidden
    return f"{readable}-{hashlib.sha256(source.encode('utf-8')).hexdigest()[:8]}-{index:05d}"


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
        "num_malformed": sum(reason in MALFORMED for _, reason, _, _ in shard.rejects),
        "num_rejected_files": len(shard.rejects) - shard.num_rejected_lines,
        "other_bytes": shard.end_bytes + shard.bom_bytes + shard.blank_bytes + shard.reject_bytes,
        "reasons": reason_counts(reason for _, reason, _, _ in shard.rejects),
    }


def raw_laws(paths: dict[str, Path]) -> dict[str, Any]:
    """Figures of the written shard: rows, the bytes of their texts in UTF-8, and rejects."""
    texts = read_table([paths[DATA]] if DATA in paths else [], records.RAW, ["text"])["text"]
    rejects = read_table([paths[REJECTS]] if REJECTS in paths else [], records.REJECTS)
    return {
        "num_out": len(texts),
        "text_bytes": pc.sum(pc.binary_length(texts)).as_py() or 0,
        "num_rejects": rejects.num_rows,
    }


def reason_counts(reasons: Any) -> dict[str, int]:
    """How often each reason occurs, in alphabetical order."""
    names = [str(reason) for reason in reasons]
    return {name: names.count(name) for name in sorted(set(names))}
