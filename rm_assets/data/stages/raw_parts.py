"""Parts of annotation files: what raw_preferences writes of each, alone in a shard or with others in a pack."""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from rm_assets.data.sources.blocks import Block
from rm_assets.data.sources.discovery import AnnotationFile
from rm_assets.data.sources.lines import Lines, read_block
from rm_assets.data.sources.opened_file import RejectedFileError
from rm_assets.data.stages.rejects import num_rejects, reason_counts, reject_table
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.parquet import ROW_GROUP_BYTES, read_batches
from rm_assets.data.storage.shards import ShardWriter, Stats, counts_of_files, stats_of_files
from rm_assets.data.storage.snapshots import DATA, REJECTS
from rm_assets.data.tables import schemas
from rm_assets.data.tables.reasons import MALFORMED, Reason
from rm_assets.data.tables.schemas import Stage


class _Writer(Protocol):
    def write(self, folder: str, table: pa.Table) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Part:
    """A block of a file, or the one reject of a file that is not used.

    `key` is the hash of all its inputs, `num_bytes` the size of its rows. `fill` writes the part; it is None where an
    unchanged file was not opened.
    """

    file: AnnotationFile
    index: int
    key: str
    num_bytes: int
    fill: Callable[[_Writer], Stats] | None


def block_key(settings_hash: str, source: str, index: int, first_line: int, sha256: str) -> str:
    """The key of a block, its index included: the index names its shard, and equal lines may move."""
    return fingerprint(settings_hash, source, index, first_line, sha256)


def block_part(block: Block, index: int, file: AnnotationFile, settings_hash: str, max_line_bytes: int) -> Part:
    """The part of a block's lines."""
    return Part(
        file=file,
        index=index,
        key=block_key(settings_hash, file.source, index, block.first_line, block.sha256),
        num_bytes=block.num_bytes,
        fill=functools.partial(_fill_block, block, file.source, max_line_bytes),
    )


def _fill_block(block: Block, source: str, max_line_bytes: int, writer: _Writer) -> Stats:
    counts: Counter[str] = Counter(num_bytes=block.num_bytes, other_bytes=block.bom_bytes)
    reasons: Counter[Reason] = Counter()
    malformed: dict[str, list[int]] = {}
    for lines in read_block(block, max_line_bytes=max_line_bytes, part_bytes=ROW_GROUP_BYTES):
        writer.write(DATA, _table(lines, source))
        writer.write(REJECTS, _rejects(source, lines.rejects))
        other_bytes = lines.end_bytes + lines.blank_bytes + lines.reject_bytes
        counts.update(num_lines=lines.num_lines, num_blank=lines.num_blank, other_bytes=other_bytes)
        reasons.update(reason for _, reason, _, _ in lines.rejects)
        for line, reason, _, _ in lines.rejects:
            num, first = malformed.get(reason, (0, line))
            malformed[str(reason)] = [num + 1, min(first, line)]
    return _stats(counts, reasons) | {"malformed": malformed}


def rejected_part(
    file: AnnotationFile,
    error: RejectedFileError,
    settings_hash: str,
    sha256: str = hashlib.sha256(b"").hexdigest(),
    num_bytes: int = 0,
) -> Part:
    """The one part of a file that is not used: no rows, and one reject at line 0 that names the file.

    `num_bytes` were read of the stored file.
    """
    counts = Counter(num_bytes=num_bytes, other_bytes=num_bytes, num_rejected_files=1)

    def fill(writer: _Writer) -> Stats:
        writer.write(REJECTS, _rejects(file.source, [(0, error.reason, error.detail, sha256)]))
        return _stats(counts, Counter([error.reason]))

    key = fingerprint(settings_hash, file.source, error.reason, error.detail, sha256)
    return Part(file=file, index=0, key=key, num_bytes=0, fill=fill)


def _table(lines: Lines, source: str) -> pa.Table:
    columns = [pa.repeat(source, len(lines.texts)), pa.array(lines.numbers), lines.texts]
    return pa.Table.from_arrays(columns, schema=schemas.RAW)


def _rejects(source: str, rejects: list[tuple[int, Reason, str, str]]) -> pa.Table:
    names = schemas.REJECTS.names
    return reject_table(
        dict(zip(names, (source, line, Stage.RAW, reason, detail, sha256), strict=True))
        for line, reason, detail, sha256 in rejects
    )


def _stats(counts: Counter[str], reasons: Counter[Reason]) -> Stats:
    names = ("num_lines", "num_blank", "num_bytes", "num_rejected_files", "other_bytes")
    return {name: counts[name] for name in names} | {
        "num_malformed": sum(count for reason, count in reasons.items() if reason in MALFORMED),
        "reasons": reason_counts(reasons),
    }


# --- one part or several in a shard --------------------------------------------------------------------------


def pack_key(parts: Sequence[Part]) -> str:
    """The key of the shard of these parts; one alone keeps its own."""
    return parts[0].key if len(parts) == 1 else fingerprint([part.key for part in parts])


class _Tables:
    """Collects the tables of many small parts, to write them as one."""

    def __init__(self) -> None:
        self.tables: dict[str, list[pa.Table]] = {}

    def write(self, folder: str, table: pa.Table) -> None:
        self.tables.setdefault(folder, []).append(table)


def fill_pack(parts: Sequence[Part], writer: ShardWriter) -> Stats:
    """Write the parts of one shard, in their order."""
    if len(parts) == 1:
        return _filled(parts[0], writer)
    collected, reasons = _Tables(), Counter[Reason]()
    by_source: dict[str, Stats] = {}
    for part in parts:
        stats = _filled(part, collected)
        reasons.update(stats.pop("reasons"))
        by_source[part.file.source] = stats
    for folder, tables in collected.tables.items():
        writer.write(folder, pa.concat_tables(tables).combine_chunks())
    return stats_of_files(by_source) | {"reasons": reason_counts(reasons)}


def _filled(part: Part, writer: _Writer) -> Stats:
    assert part.fill is not None, "a file is opened before it is written"
    return part.fill(writer)


def measure_raw(sources: Collection[str], paths: dict[str, Path]) -> Stats:
    """Statistics read back from a shard, by file: rows, UTF-8 bytes of all texts, and rejects."""
    num_out, text_bytes = Counter[str](), Counter[str]()
    for rows in read_batches(paths.get(DATA), schemas.RAW, ["source", "text"]):
        num_out.update(schemas.num_rows_by_source(rows))
        lengths = pa.table({"source": rows["source"], "bytes": pc.binary_length(rows["text"])})
        sums = lengths.group_by("source").aggregate([("bytes", "sum")]).to_pylist()
        text_bytes.update({each["source"]: each["bytes_sum"] for each in sums})
    return counts_of_files(sources, num_out=num_out, text_bytes=text_bytes, num_rejects=num_rejects(paths))
