"""raw_preferences: one row per non-blank line, cut into shards. A file is used whole or not at all.

A file that is damaged, unreadable or keeps changing yields no rows, but one reject at line 0. A file that changes while
it is read is read again. If it only grows, the lines that were complete when it was opened are used, once two readings
agree on them.
"""

import functools
import hashlib
import itertools
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from rm_assets.data.compute.progress import Progress
from rm_assets.data.sources.blocks import Block, Lines, blocks_of_lines, blocks_of_rows, plain_block_sha256, read_block
from rm_assets.data.sources.content_version import CONTENT, content_listing
from rm_assets.data.sources.discovery import AnnotationFile, Annotations, find_annotations
from rm_assets.data.sources.evaluation_sets import find_evaluation_files
from rm_assets.data.sources.file_kinds import grows_by_lines, what_is_not_read
from rm_assets.data.sources.opened_file import (
    Change,
    OpenedFile,
    RejectedFileError,
    Status,
    file_stamp,
    is_recent,
    is_same_file,
    open_annotation_file,
)
from rm_assets.data.sources.rows import file_rows
from rm_assets.data.stages.identities import settings_key, stage_identity
from rm_assets.data.stages.rejects import num_rejects, reason_counts, reject_table
from rm_assets.data.stages.run_stage import Log
from rm_assets.data.storage.files import is_remote, read_file, resolve_path, write_json
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.parquet import ROW_GROUP_BYTES, read_batches
from rm_assets.data.storage.publication import Publication, open_publication
from rm_assets.data.storage.shards import ShardWriter, Stats, write_shard
from rm_assets.data.storage.snapshots import DATA, REJECTS, Shard, Snapshot
from rm_assets.data.tables import schemas
from rm_assets.data.tables.reasons import MALFORMED, Reason
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

VERSION = 5
_PAUSES = (0.0, 0.1, 0.5, 2.0)
"""Seconds before each reading of a file that changes while it is read."""
_STAMPS = "stamps.json"
_NUM_THREADS = 2
"""Threads that write blocks while the next ones are read; each holds one block in memory."""


def files_to_read(settings: Settings) -> tuple[Annotations, list[AnnotationFile]]:
    """The annotations that the setting names, and all files: theirs and those of the evaluation sets."""
    storage = resolve_path(settings.storage)
    annotations = find_annotations(settings.annotations_path, storage)
    return annotations, [*annotations.files, *find_evaluation_files(settings.evaluation_files, storage)]


def publish_raw(settings: Settings, log: Log) -> Snapshot:
    """Read the annotations into a snapshot; files whose stamp is unchanged are not opened."""
    annotations, files = files_to_read(settings)
    if ignored := annotations.ignored:
        entries = f"{len(ignored)} entries that are not annotation files are not read, such as {ignored[0]!r}"
        log(what_is_not_read(ignored) or entries)
    settings_hash = settings_key(Stage.RAW, VERSION, settings)
    with open_publication(
        resolve_path(settings.storage), Stage.RAW, settings.keep_snapshots, log, settings.verify
    ) as publisher:
        stamps = _read_stamps(publisher)
        # listed before the files are read: data that arrive meanwhile change the version and must not count as read
        listing = content_listing(files, resolve_path(settings.storage), trusts_stamps=settings.verify == "stamps")
        shards: list[Shard] = []
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            progress = Progress(Stage.RAW, _total_bytes(files), log)
            reading = _Reading(
                settings=settings, settings_hash=settings_hash, publisher=publisher, threads=threads, progress=progress
            )
            for file in files:
                shards += _shards_of_file(file, reading, stamps)
        write_json(publisher.directory / _STAMPS, {file.source: stamps.get(file.source) for file in files})
        facts = {"ignored_files": list(annotations.ignored), CONTENT: listing.version}
        return publisher.publish(shards, {}, facts, stage_identity(Stage.RAW, settings, ""))


def _total_bytes(files: list[AnnotationFile]) -> int | None:
    """Bytes of all files; None if one is not plain lines, is missing, or is remote, where each size costs a request."""
    if any(is_remote(file.path) or not grows_by_lines(file.path.name) for file in files):
        return None
    try:
        return sum(file.path.stat().st_size for file in files)
    except OSError:
        return None


# --- stamps: a file with an equal stamp is not read; otherwise its content decides -----------------------------


class _Known(TypedDict):
    """A file as it was last read: its stamp, and the keys of its shards."""

    stamp: list[Any]
    keys: list[str]


def _read_stamps(publisher: Publication) -> dict[str, Any]:
    try:
        known = msgspec.json.decode(read_file(publisher.directory / _STAMPS), type=dict[str, _Known | None])
        return dict(known)
    except (FileNotFoundError, IsADirectoryError, msgspec.MsgspecError):
        return {}


def _stamp(path: Path, status: Status, settings_hash: str, settings: Settings) -> list[Any]:
    return [*file_stamp(path, status), settings_hash, settings.max_expansion]


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """The context of reading files: this thread cuts them into blocks, `threads` hash and write the blocks."""

    settings: Settings
    settings_hash: str
    publisher: Publication
    threads: ThreadPoolExecutor
    progress: Progress


def _shards_of_file(file: AnnotationFile, reading: _Reading, stamps: dict[str, Any]) -> list[Shard]:
    known = stamps.get(file.source) if reading.settings.verify == "stamps" else None
    if known and known["stamp"] == _present_stamp(file, reading.settings_hash, reading.settings):
        found = [reading.publisher.find(key) for key in known["keys"]]
        if all(found):
            shards = [shard for shard in found if shard]
            reading.progress.skip(sum(shard.stats["num_bytes"] for shard in shards))
            return shards
    stamps[file.source] = None
    try:
        shards, settled = _steady_reading(file, reading, known["keys"] if known else [])
    except RejectedFileError as error:
        return [_rejected(file, error, reading)]
    stamp = (
        _stamp(file.path, settled, reading.settings_hash, reading.settings) if settled else []
    )  # never equal to a stamp
    stamps[file.source] = {"stamp": stamp, "keys": [shard.key for shard in shards]}
    return shards


def _present_stamp(file: AnnotationFile, settings_hash: str, settings: Settings) -> list[Any] | None:
    try:
        return _stamp(file.path, file.status(), settings_hash, settings)
    except OSError:
        return None


# --- reading -------------------------------------------------------------------------------------------------


def _steady_reading(
    file: AnnotationFile, reading: _Reading, known_keys: list[str]
) -> tuple[list[Shard], Status | None]:
    """A file's shards, and its status, or None if an equal status would not prove that nothing changed.

    `known_keys` are the shard keys of its last reading. Raises RejectedFileError if the file cannot be read or keeps
    changing.
    """
    grown: OpenedFile | None = None
    seen: list[str] = []
    for pause in _PAUSES:
        time.sleep(pause)
        with open_annotation_file(file.path) as now:
            follows = grown is not None and is_same_file(grown.status, now.status)
            if grown and follows:
                now.num_bytes = min(grown.num_bytes, now.num_bytes)
            is_old = not is_recent(now.status)
            shards = _one_reading(now, file, reading, known_keys, whole_lines=follows)
            change = now.change()
        keys = [shard.key for shard in shards]
        if change is Change.NONE:
            return shards, now.status if is_old and not follows else None
        if change is Change.GREW and follows and keys == seen:
            return shards, None
        grown, seen = (now, keys) if change is Change.GREW else (None, [])
    raise RejectedFileError(Reason.CHANGING_FILE, f"changed during {len(_PAUSES)} readings")


def _one_reading(
    now: OpenedFile, file: AnnotationFile, reading: _Reading, known_keys: list[str], *, whole_lines: bool
) -> list[Shard]:
    settings = reading.settings
    kept = _unchanged_shards(now, file, reading, known_keys)
    num_lines, num_bytes = (sum(shard.stats[name] for shard in kept) for name in ("num_lines", "num_bytes"))
    reading.progress.add(num_lines, num_bytes)
    try:
        blocks = _blocks_of_rows(now, settings) or blocks_of_lines(
            now.stream(settings.max_expansion, num_bytes),
            block_bytes=settings.shard_bytes,
            max_line_bytes=settings.max_line_bytes,
            whole_lines=whole_lines,
            in_twos=settings.two_line_files,
            first_line=num_lines + 1,
        )
        return [*kept, *_shards(blocks, len(kept), file, reading)]
    except RejectedFileError as error:
        return [_rejected(file, error, reading, now.sha256(), now.num_bytes)]


def _blocks_of_rows(now: OpenedFile, settings: Settings) -> Iterator[Block] | None:
    """Blocks of a file that does not consist of lines, such as Parquet; None for lines."""
    rows = file_rows(now, max_expansion=settings.max_expansion, max_line_bytes=settings.max_line_bytes)
    if rows is None:
        return None
    if settings.two_line_files:
        raise RejectedFileError(Reason.UNREADABLE_FILE, "two_line_files is on, which reads lines of JSON alone")
    return blocks_of_rows(rows, block_bytes=settings.shard_bytes)


def _unchanged_shards(now: OpenedFile, file: AnnotationFile, reading: _Reading, known_keys: list[str]) -> list[Shard]:
    """The shards of a file's last reading up to its first changed byte; their bytes are hashed, but not cut again.

    Where a block ends depends on the line after it, so the last equal shard is left out.
    """
    if len(known_keys) < 2 or not grows_by_lines(now.path.name) or is_remote(now.path):
        return []
    shards = [shard for shard in itertools.takewhile(bool, map(reading.publisher.find, known_keys)) if shard]
    starts = _before_each(shards, "num_bytes")
    first_lines = [1 + num_lines for num_lines in _before_each(shards, "num_lines")]

    def is_unchanged(index: int, shard: Shard, start: int, first_line: int) -> bool:
        num_bytes = shard.stats["num_bytes"]
        try:
            sha256 = plain_block_sha256(now.parts(start, start + num_bytes), num_bytes)
        except OSError:  # reading it will raise the error again
            return False
        return shard.key == _key(file, index, first_line, sha256, reading)

    unchanged = reading.threads.map(is_unchanged, range(len(shards)), shards, starts, first_lines)
    equal = [shard for shard, _ in itertools.takewhile(lambda pair: pair[1], zip(shards, unchanged, strict=True))]
    return equal[:-1]


def _before_each(shards: list[Shard], figure: str) -> list[int]:
    return list(itertools.accumulate((shard.stats[figure] for shard in shards[:-1]), initial=0)) if shards else []


def _shards(blocks: Iterator[Block], first: int, file: AnnotationFile, reading: _Reading) -> Iterator[Shard]:
    """The shard of each block, in order; hashed, found or written by threads, a few at a time."""
    waiting: deque[Future[Shard]] = deque()
    try:
        for index, block in enumerate(blocks, first):
            waiting.append(reading.threads.submit(_block_shard, block, index, file, reading))
            reading.progress.add(block.num_lines, block.num_bytes)
            while len(waiting) > _NUM_THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _key(file: AnnotationFile, index: int, first_line: int, sha256: str, reading: _Reading) -> str:
    """The hash of all inputs of a shard, its index included: the index names it, and equal lines may move."""
    return fingerprint(reading.settings_hash, file.source, index, first_line, sha256)


def _block_shard(block: Block, index: int, file: AnnotationFile, reading: _Reading) -> Shard:
    """The shard of a block's lines."""

    def fill(writer: ShardWriter) -> Stats:
        counts: Counter[str] = Counter(num_bytes=block.num_bytes, other_bytes=block.bom_bytes)
        reasons: Counter[Reason] = Counter()
        malformed: dict[str, list[int]] = {}
        limit = reading.settings.max_line_bytes
        for lines in read_block(block, max_line_bytes=limit, part_bytes=ROW_GROUP_BYTES):
            writer.write(DATA, _table(lines, file))
            writer.write(REJECTS, _rejects(file, lines.rejects))
            other_bytes = lines.end_bytes + lines.blank_bytes + lines.reject_bytes
            counts.update(num_lines=lines.num_lines, num_blank=lines.num_blank, other_bytes=other_bytes)
            reasons.update(reason for _, reason, _, _ in lines.rejects)
            for line, reason, _, _ in lines.rejects:
                num, first = malformed.get(reason, (0, line))
                malformed[str(reason)] = [num + 1, min(first, line)]
        return _stats(counts, reasons) | {"malformed": malformed}

    key = _key(file, index, block.first_line, block.sha256, reading)
    return _found_or_written(file, index, key, fill, reading)


def _rejected(
    file: AnnotationFile,
    error: RejectedFileError,
    reading: _Reading,
    sha256: str = hashlib.sha256(b"").hexdigest(),
    num_bytes: int = 0,
) -> Shard:
    """The one shard of a file that is not used: no rows, and one reject at line 0 that names the file.

    `num_bytes` were read of the stored file.
    """
    key = fingerprint(reading.settings_hash, file.source, error.reason, error.detail, sha256)
    counts = Counter(num_bytes=num_bytes, other_bytes=num_bytes, num_rejected_files=1)

    def fill(writer: ShardWriter) -> Stats:
        writer.write(REJECTS, _rejects(file, [(0, error.reason, error.detail, sha256)]))
        return _stats(counts, Counter([error.reason]))

    return _found_or_written(file, 0, key, fill, reading)


def _found_or_written(
    file: AnnotationFile, index: int, key: str, fill: Callable[[ShardWriter], Stats], reading: _Reading
) -> Shard:
    publisher, name = reading.publisher, shard_name(file.source, index)
    measure = functools.partial(measure_raw, file.source)
    return publisher.find(key) or write_shard(publisher.directory, name, file.source, key, fill, measure)


def shard_name(source: str, index: int) -> str:
    """A shard's file name, well below 255 bytes: a readable part, 128 bits of the source's hash, and the index.

    The hash keeps names distinct on file systems that ignore case or fold characters.
    """
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", source)[-60:].lstrip("._-")  # readers skip files that look hidden
    return f"{readable}-{hashlib.sha256(source.encode('utf-8')).hexdigest()[:32]}-{index:05d}"


def _table(lines: Lines, file: AnnotationFile) -> pa.Table:
    columns = [pa.repeat(file.source, len(lines.texts)), pa.array(lines.numbers), lines.texts]
    return pa.Table.from_arrays(columns, schema=schemas.RAW)


def _rejects(file: AnnotationFile, rejects: list[tuple[int, Reason, str, str]]) -> pa.Table:
    names = schemas.REJECTS.names
    return reject_table(
        dict(zip(names, (file.source, line, Stage.RAW, reason, detail, sha256), strict=True))
        for line, reason, detail, sha256 in rejects
    )


def _stats(counts: Counter[str], reasons: Counter[Reason]) -> Stats:
    names = ("num_lines", "num_blank", "num_bytes", "num_rejected_files", "other_bytes")
    return {name: counts[name] for name in names} | {
        "num_malformed": sum(count for reason, count in reasons.items() if reason in MALFORMED),
        "reasons": reason_counts(reasons),
    }


def measure_raw(source: str, paths: dict[str, Path]) -> Stats:
    """Statistics read back from a shard: rows of its source, UTF-8 bytes of all texts, and rejects."""
    figures: Counter[str] = Counter(num_out=0, text_bytes=0)
    for rows in read_batches(paths.get(DATA), schemas.RAW, ["source", "text"]):
        num_out = schemas.num_rows_of(source, rows)
        figures.update(num_out=num_out, text_bytes=pc.sum(pc.binary_length(rows["text"])).as_py())
    return {**figures, "num_rejects": num_rejects(paths, source)}
