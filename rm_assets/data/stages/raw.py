"""raw_preferences: one row per non-blank line, cut into shards. A file is used whole or not at all.

Each block of a large file makes a shard; small files share shards, see `sources.packs`. A file that is damaged,
unreadable or keeps changing yields no rows, but one reject at line 0. A file that changes while it is read is read
again. If it only grows, the lines that were complete when it was opened are used, once two readings agree on them.
"""

import functools
import hashlib
import itertools
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import msgspec

from rm_assets.data.compute.progress import Progress
from rm_assets.data.sources.blocks import Block, block_limit, blocks_of_lines, blocks_of_rows, plain_block_sha256
from rm_assets.data.sources.content_version import CONTENT, FILES, Listing, content_listing
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
from rm_assets.data.sources.packs import SMALL_BYTES, cut_packs, name_runs
from rm_assets.data.sources.rows import file_rows
from rm_assets.data.stages.identities import settings_key, stage_identity
from rm_assets.data.stages.raw_parts import (
    Part,
    block_key,
    block_part,
    fill_pack,
    measure_raw,
    pack_key,
    rejected_part,
)
from rm_assets.data.stages.run_stage import Log
from rm_assets.data.storage.files import is_remote, read_file, resolve_path
from rm_assets.data.storage.publication import Publication, open_publication
from rm_assets.data.storage.shards import write_shard
from rm_assets.data.storage.snapshots import Shard, Snapshot
from rm_assets.data.storage.writing import write_json
from rm_assets.data.tables.reasons import Reason
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

VERSION = 6
_CUT = 1
"""Raised if files are cut into blocks in another way: they are read again, and only the shards of other blocks made."""
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
        before = dict(stamps)
        # listed before the files are read: data that arrive meanwhile change the version and must not count as read
        listing = content_listing(files, resolve_path(settings.storage), trusts_stamps=settings.verify == "stamps")
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            progress = Progress(Stage.RAW, _total_bytes(files, listing), log)
            reading = _Reading(
                settings=settings,
                settings_hash=settings_hash,
                publisher=publisher,
                threads=threads,
                progress=progress,
                listing=listing,
                stamps=stamps,
            )
            runs = [annotations.files[run] for run in name_runs([file.source for file in annotations.files])]
            evaluation = ([file] for file in files[len(annotations.files) :])  # a shard belongs to one evaluation set
            shards = list(_shards_of_files([*runs, *evaluation], reading))
        if (after := {file.source: stamps.get(file.source) for file in files}) != before:
            write_json(publisher.directory / _STAMPS, after)
        facts = {"ignored_files": list(annotations.ignored), CONTENT: listing.version, FILES: dict(listing.contents)}
        return publisher.publish(shards, {}, facts, stage_identity(Stage.RAW, settings, ""))


def _total_bytes(files: list[AnnotationFile], listing: Listing) -> int | None:
    """Bytes of all files; None if one is not plain lines, or is remote."""
    is_known = all(not is_remote(file.path) and grows_by_lines(file.path.name) for file in files)
    return listing.num_bytes if is_known else None


# --- stamps: a file with an equal stamp is not read; otherwise its content decides -----------------------------


class _Known(TypedDict):
    """A file as it was last read: its stamp, the keys of its parts, and the size of a small file's block.

    `blocks` are the hashes in the listing of a large file's blocks, if it was read as it was listed.
    """

    stamp: list[Any]
    keys: list[str]
    num_bytes: int | None
    blocks: NotRequired[list[str]]


def _read_stamps(publisher: Publication) -> dict[str, Any]:
    try:
        known = msgspec.json.decode(read_file(publisher.directory / _STAMPS), type=dict[str, _Known | None])
        return dict(known)
    except (FileNotFoundError, IsADirectoryError, msgspec.MsgspecError):
        return {}


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """The context of reading files: this thread cuts them into blocks, `threads` hash and write the blocks.

    `listing` has the files as they were listed, `stamps` as they were last read.
    """

    settings: Settings
    settings_hash: str
    publisher: Publication
    threads: ThreadPoolExecutor
    progress: Progress
    listing: Listing
    stamps: dict[str, Any]

    def known(self, file: AnnotationFile) -> _Known | None:
        """How a file was last read, if stamps are trusted and it was read."""
        return self.stamps.get(file.source) if self.settings.verify == "stamps" else None


Found = Part | list[Shard]
"""What a file gave: the one part of a small one, or the shards of a large one, written while it was read."""


def _last_result(file: AnnotationFile, reading: _Reading) -> Found | None:
    """The parts or shards of the last run, if the file's stamp is still the same; else None."""
    known = reading.known(file)
    if not known or known["stamp"] != _own_stamp(reading.listing.stamps[file.source], reading):
        return None
    if (num_bytes := known["num_bytes"]) is not None:
        reading.progress.skip(num_bytes)
        return Part(file=file, index=0, key=known["keys"][0], num_bytes=num_bytes, fill=None)
    shards = [shard for key in known["keys"] if (shard := reading.publisher.find(key))]
    if len(shards) < len(known["keys"]):
        return None
    reading.progress.skip(sum(shard.stats["num_bytes"] for shard in shards))
    return shards


def _own_stamp(stamp: list[Any], reading: _Reading) -> list[Any]:
    """A file's stamp, with what it is read by."""
    return [*stamp, reading.settings_hash, reading.settings.max_expansion, _CUT]


# --- shards of files -----------------------------------------------------------------------------------------


def _shards_of_files(runs: Iterable[Sequence[AnnotationFile]], reading: _Reading) -> Iterator[Shard]:
    """The shards of all files, in order. Threads write those of a run while the next one is read."""
    waiting: deque[Shard | Future[Shard]] = deque()
    for run in runs:
        num_before = len(waiting)
        waiting += _shards_of_run(run, reading)
        for _ in range(num_before):
            yield _result(waiting.popleft())
    yield from map(_result, waiting)


def _result(shard: Shard | Future[Shard]) -> Shard:
    return shard if isinstance(shard, Shard) else shard.result()


def _shards_of_run(files: Sequence[AnnotationFile], reading: _Reading) -> Iterator[Shard | Future[Shard]]:
    """The shards of consecutive files. An unchanged file is opened only if the shard that it belongs to is missing."""
    found = {
        file.source: _read(file, reading) if (known := _last_result(file, reading)) is None else known for file in files
    }
    while unread := [part for parts, _ in _packs(found.values(), reading) for part in _parts_to_read(parts, reading)]:
        reading.progress.skip(-sum(part.num_bytes for part in unread))
        found |= {part.file.source: _read(part.file, reading) for part in unread}
    for parts, shards in _packs(found.values(), reading):
        if parts:
            yield reading.threads.submit(_find_or_write_shard, parts, reading)
        yield from shards


def _packs(found: Iterable[Found], reading: _Reading) -> Iterator[tuple[list[Part], list[Shard]]]:
    """In order, either the parts that share a shard, or the shards of a large file."""
    files = [of_file for of_file in found if of_file]  # an empty file has none, and does not part others
    sources = [of_file.file.source if isinstance(of_file, Part) else of_file[0].source for of_file in files]
    sizes = [of_file.num_bytes if isinstance(of_file, Part) else None for of_file in files]
    for pack in cut_packs(sources, sizes, reading.settings.shard_bytes):
        shards = [shard for of_file in files[pack] if isinstance(of_file, list) for shard in of_file]
        yield [part for part in files[pack] if isinstance(part, Part)], shards


def _parts_to_read(parts: list[Part], reading: _Reading) -> list[Part]:
    """The parts whose files have to be opened, as their shard is missing."""
    unread = [part for part in parts if part.fill is None]
    return unread if unread and reading.publisher.find(pack_key(parts)) is None else []


def _find_or_write_shard(parts: list[Part], reading: _Reading) -> Shard:
    """The shard of these parts: an existing one with its key, else a new one."""
    key, publisher = pack_key(parts), reading.publisher
    if existing := publisher.find(key):
        return existing
    first, sources = parts[0], [part.file.source for part in parts]
    name, source = shard_name(first.file.source, first.index), first.file.source
    if len(parts) > 1:
        name, source = f"{name}-pack", ""
    fill, measure = functools.partial(fill_pack, parts), functools.partial(measure_raw, sources)
    return write_shard(publisher.directory, name, source, key, fill, measure)


def shard_name(source: str, index: int) -> str:
    """A shard's file name, well below 255 bytes: a readable part, 128 bits of the source's hash, and the index.

    The hash keeps names distinct on file systems that ignore case or fold characters.
    """
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", source)[-60:].lstrip("._-")  # readers skip files that look hidden
    return f"{readable}-{hashlib.sha256(source.encode('utf-8')).hexdigest()[:32]}-{index:05d}"


# --- reading -------------------------------------------------------------------------------------------------


def _read(file: AnnotationFile, reading: _Reading) -> Found:
    """Read a file and note its stamp; one that cannot be read, or keeps changing, is a reject."""
    known = reading.known(file)
    reading.stamps[file.source] = None
    try:
        found, status = _read_until_stable(file, reading, known)
    except RejectedFileError as error:
        return rejected_part(file, error, reading.settings_hash)
    stamp = file_stamp(file.path, status) if status else None
    noted = _Known(
        stamp=_own_stamp(stamp, reading) if stamp else [],  # an empty stamp equals none
        keys=_keys(found),
        num_bytes=found.num_bytes if isinstance(found, Part) else None,
    )
    if not isinstance(found, Part) and stamp == reading.listing.stamps[file.source]:
        noted["blocks"] = reading.listing.blocks[file.source]
    reading.stamps[file.source] = noted
    return found


def _keys(found: Found) -> list[str]:
    return [found.key] if isinstance(found, Part) else [shard.key for shard in found]


def _read_until_stable(file: AnnotationFile, reading: _Reading, known: _Known | None) -> tuple[Found, Status | None]:
    """Read a file until it does not change meanwhile, or until it only grew and two readings agree.

    Returns what the file gave, and its status; None if a later equal status would not prove that the content is the
    same. `known` is the reading of an earlier run. Raises RejectedFileError if it cannot be read or keeps changing.
    """
    grown: OpenedFile | None = None
    seen: list[str] = []
    for pause in _PAUSES:
        if pause:
            time.sleep(pause)  # without one, even 0 seconds would give up the processor
        with open_annotation_file(file.path) as now:
            follows = grown is not None and is_same_file(grown.status, now.status)
            if grown and follows:
                now.num_bytes = min(grown.num_bytes, now.num_bytes)
            is_old = not is_recent(now.status)
            found = _read_once(now, file, reading, known, whole_lines=follows)
            change = now.change()
        keys = _keys(found)
        if change is Change.NONE:
            return found, now.status if is_old and not follows else None
        if change is Change.GREW and follows and keys == seen:
            return found, None
        grown, seen = (now, keys) if change is Change.GREW else (None, [])
    raise RejectedFileError(Reason.CHANGING_FILE, f"changed during all {len(_PAUSES)} attempts to read it")


def _read_once(
    now: OpenedFile, file: AnnotationFile, reading: _Reading, known: _Known | None, *, whole_lines: bool
) -> Found:
    settings = reading.settings
    kept = _unchanged_shards(now, file, reading, known) if known else []
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
        begin = [] if kept else list(itertools.islice(blocks, 1))
        if begin and begin[0].num_bytes <= SMALL_BYTES:
            begin += itertools.islice(blocks, 1)
            if len(begin) == 1:
                reading.progress.add(begin[0].num_lines, begin[0].num_bytes)
                return _part(begin[0], 0, file, reading)
        return [*kept, *_shards(itertools.chain(begin, blocks), len(kept), file, reading)]
    except RejectedFileError as error:
        return rejected_part(file, error, reading.settings_hash, now.sha256(), now.num_bytes)


def _blocks_of_rows(now: OpenedFile, settings: Settings) -> Iterator[Block] | None:
    """Blocks of a file that does not consist of lines, such as Parquet; None for lines."""
    rows = file_rows(now, max_expansion=settings.max_expansion, max_line_bytes=settings.max_line_bytes)
    if rows is None:
        return None
    if settings.two_line_files:
        raise RejectedFileError(Reason.UNREADABLE_FILE, "two_line_files is set, and it reads only JSON lines (.jsonl)")
    return blocks_of_rows(rows, block_bytes=settings.shard_bytes)


def _unchanged_shards(now: OpenedFile, file: AnnotationFile, reading: _Reading, known: _Known) -> list[Shard]:
    """The shards of a file's last reading that end before its first changed byte: reading continues after them.

    Blocks are hashed unless the listing's hashes already show that they are unchanged. The last equal shard is left
    out, because where a block ends depends on the line after it. So are the small ones at the end of the file, then or
    now, whose sizes depend on that of the file.
    """
    if len(known["keys"]) < 2 or not grows_by_lines(now.path.name) or is_remote(now.path):
        return []
    shards = [shard for shard in itertools.takewhile(bool, map(reading.publisher.find, known["keys"])) if shard]
    starts = _before_each(shards, "num_bytes")
    first_lines = [1 + num_lines for num_lines in _before_each(shards, "num_lines")]
    num_equal_bytes = _num_equal_bytes(now, file, reading, known)
    shard_bytes, before = reading.settings.shard_bytes, sum(shard.stats["num_bytes"] for shard in shards)
    rest_bytes = [min(before, now.num_bytes) - start for start in starts]
    shards = shards[: sum(block_limit(rest, shard_bytes) == shard_bytes for rest in rest_bytes)]

    def is_unchanged(index: int, shard: Shard, start: int, first_line: int) -> bool:
        num_bytes = shard.stats["num_bytes"]
        # the first block is always hashed: it has the same key only if the file begins with no byte order mark
        if index and start + num_bytes <= num_equal_bytes:
            return True
        try:
            sha256 = plain_block_sha256(now.parts(start, start + num_bytes), num_bytes)
        except OSError:  # reading it will raise the error again
            return False
        return shard.key == block_key(reading.settings_hash, file.source, index, first_line, sha256)

    unchanged = reading.threads.map(is_unchanged, range(len(shards)), shards, starts, first_lines)
    equal = [shard for shard, _ in itertools.takewhile(lambda pair: pair[1], zip(shards, unchanged, strict=True))]
    return equal[:-1]


def _num_equal_bytes(now: OpenedFile, file: AnnotationFile, reading: _Reading, known: _Known) -> int:
    """How many bytes at the start of a file are those last read, by the listing's hashes; 0 if these are not known."""
    is_as_listed = file_stamp(file.path, now.status) == reading.listing.stamps[file.source]
    if not is_as_listed or is_recent(now.status) or known["stamp"][-3:] != _own_stamp([], reading):
        return 0
    return reading.listing.num_equal_bytes(file.source, known.get("blocks", []))


def _before_each(shards: list[Shard], figure: str) -> list[int]:
    """For each shard, the sum of a figure over the shards before it."""
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


def _block_shard(block: Block, index: int, file: AnnotationFile, reading: _Reading) -> Shard:
    return _find_or_write_shard([_part(block, index, file, reading)], reading)


def _part(block: Block, index: int, file: AnnotationFile, reading: _Reading) -> Part:
    return block_part(block, index, file, reading.settings_hash, reading.settings.max_line_bytes)
