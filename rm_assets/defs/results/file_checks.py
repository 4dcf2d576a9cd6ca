"""The checks about whole annotation files: read, gone, ignored, held back; and the rejects of each file by reason."""

import itertools
import shlex
from collections import Counter
from collections.abc import Iterator
from typing import Any

import dagster as dg

from rm_assets.data.sources.file_kinds import what_is_not_read
from rm_assets.data.stages import rejects
from rm_assets.data.storage.parquet import read_batches
from rm_assets.data.storage.snapshots import DATA, REJECTS, Snapshot
from rm_assets.data.tables import schemas
from rm_assets.data.tables.reasons import Reason
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.results.metadata import table
from rm_assets.display_text import as_code
from rm_assets.settings import Settings

READ, GONE, IGNORED, HELD_BACK = (
    "every_file_is_read",
    "no_file_disappeared",
    "no_file_is_ignored",
    "no_file_is_held_back",
)
NUM_NAMED = 3
_SPECS = {
    Stage.RAW: {
        READ: "No file is damaged, unreadable or still being written.",
        GONE: "No file has disappeared, or has fewer rows, since the previous snapshot.",
        IGNORED: "Every file that may hold annotations is of a kind that is read.",
    },
    Stage.VALIDATED: {HELD_BACK: "No file is held back: for malformed lines, an ambiguous label or missing lines."},
}
_REJECT_COLUMNS = {"file": "string", "reason": "string", "rejects": "int", "first_line": "int", "example": "string"}


def file_check_specs(stage: Stage) -> list[dg.AssetCheckSpec]:
    """The checks of a stage about whole files: warnings, because one bad file must not stop the others."""
    specs = _SPECS.get(stage, {})
    return [dg.AssetCheckSpec(name, asset=stage.value, description=text) for name, text in specs.items()]


def file_checks(
    stage: Stage, snapshot: Snapshot, parent: Snapshot | None, settings: Settings, before: Snapshot | None
) -> Iterator[dg.AssetCheckResult]:
    """Their results; `before` is the snapshot of raw_preferences that this one replaces."""
    if stage is Stage.RAW:
        yield _read_result(snapshot)
        yield _disappeared_result(snapshot, before)
        yield _ignored_result(snapshot)
    if stage is Stage.VALIDATED:
        yield _held_back_result(snapshot, parent, settings.max_malformed_fraction)


def delivery_problems(raw: Snapshot, validated: Snapshot) -> str:
    """The files that are held back or not read, in one line; empty if there are none."""
    facts = validated.manifest.facts
    held_back = [f"{name!r} ({facts['causes'][name]['causes']})" for name in facts["held_back"]]
    unread = [f"{row['file']!r} ({row['reason']})" for row in unread_files(raw)]
    ignored = what_is_not_read(raw.manifest.facts["ignored_files"])
    parts = [
        f"held back: {_first(held_back)}" if held_back else "",
        f"not read: {_first(unread)}" if unread else "",
        ignored,
    ]
    return "; ".join(filter(None, parts))


def unread_files(raw: Snapshot) -> list[dict[str, Any]]:
    """A row for each file that is not used, as it is damaged, unreadable or still being written."""
    files = itertools.chain.from_iterable(shard.by_source.items() for shard in raw.manifest.shards)
    unread = {source for source, stats in files if stats.get("num_rejected_files")}
    return [
        {"file": row["file"], "reason": row["reason"], "detail": row["example"]}
        for row in rejects_by_file(raw)
        if row["file"] in unread
    ]


def rejects_by_file(*snapshots: Snapshot) -> list[dict[str, Any]]:
    """A row for each file and reason, with the count, the first line and its detail; the files in order.

    The reasons of a file are ordered by count; valid lines that were held back with it come last, as one row.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    folders = [DATA if snapshot.manifest.asset == rejects.ASSET else REJECTS for snapshot in snapshots]
    listed = zip(snapshots, folders, strict=True)
    for path in (path for snapshot, folder in listed for path in snapshot.paths(folder)):
        for rows in read_batches(path, schemas.REJECTS, ["source", "line", "reason", "detail"]):
            firsts = [([], "count_all"), ("line", "first"), ("detail", "first")]
            for row in rows.group_by(["source", "reason"], use_threads=False).aggregate(firsts).to_pylist():
                shown = {"file": row["source"], "reason": row["reason"], "rejects": 0}
                shown |= {"first_line": row["line_first"] or None, "example": row["detail_first"]}
                found.setdefault((row["source"], row["reason"]), shown)["rejects"] += row["count_all"]
    for row in found.values():
        if is_collateral(row):
            row["example"] = "valid lines, held back with their file"
    return sorted(found.values(), key=lambda row: (row["file"], is_collateral(row), -row["rejects"], row["reason"]))


def rejects_table(rows: list[dict[str, Any]]) -> dg.TableMetadataValue:
    """The rows of `rejects_by_file`, the causes of all files before the lines that were held back with them."""
    return table(_causes_first(rows), _REJECT_COLUMNS)


def _causes_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: is_collateral(row))


def is_collateral(row: dict[str, Any]) -> bool:
    """Whether a row counts valid lines that are rejects only because their file is held back."""
    return bool(row["reason"] == Reason.HELD_BACK_FILE)


def trace_command(source: str, line: int | None) -> str:
    """The command that shows what happened to a line."""
    return f"python -m rm_assets.trace {shlex.quote(source)} {line or 1}"


def _read_result(snapshot: Snapshot) -> dg.AssetCheckResult:
    rows = unread_files(snapshot)
    named = [f"{as_code(row['file'])} ({row['reason']})" for row in rows]
    text = f"Not read: {_first(named)}; the other files are used." if rows else "Every file is read."
    return _warning(READ, rows, text, "unread_files", {"file": "string", "reason": "string", "detail": "string"})


def _disappeared_result(snapshot: Snapshot, before: Snapshot | None) -> dg.AssetCheckResult:
    were, are = _rows_by_source(before), _rows_by_source(snapshot)
    rows: list[dict[str, Any]] = [
        {"file": source, "rows_before": were[source], "rows_now": are.get(source, 0)}
        for source in sorted(were, key=lambda source: are.get(source, 0) - were[source])
        if source not in are or are[source] < were[source]
    ]
    named = [f"{as_code(row['file'])} ({row['rows_before']:,} rows before, {row['rows_now']:,} now)" for row in rows]
    num_gone = sum(row["rows_before"] - row["rows_now"] for row in rows)
    new = {source: number for source, number in are.items() if source not in were}
    text = f"Disappeared since the previous snapshot: {num_gone:,} of {sum(were.values()):,} rows, in {_first(named)}"
    text += f"; new: {len(new):,} files with {sum(new.values()):,} rows" if new else ""
    found = text if rows else "No file or row has disappeared since the previous snapshot."
    return _warning(GONE, rows, found, "gone_files", {"file": "string", "rows_before": "int", "rows_now": "int"})


def _rows_by_source(snapshot: Snapshot | None) -> dict[str, int]:
    found: Counter[str] = Counter()
    for shard in snapshot.manifest.shards if snapshot else ():
        found.update(shard.rows_by_source())
    return found


def _ignored_result(snapshot: Snapshot) -> dg.AssetCheckResult:
    ignored = what_is_not_read(snapshot.manifest.facts["ignored_files"], as_code)
    rows = [{"file": name} for name in snapshot.manifest.facts["ignored_files"]] if ignored else []
    text = ignored or "No file that may hold annotations is ignored."
    return _warning(IGNORED, rows, text, "ignored_files", {"file": "string"})


def _held_back_result(snapshot: Snapshot, parent: Snapshot | None, limit: float) -> dg.AssetCheckResult:
    facts = snapshot.manifest.facts
    held_back, causes = facts["held_back"], facts.get("causes", {})
    named = [f"{as_code(source)} ({_why(counts, causes.get(source))})" for source, counts in held_back.items()]
    rule = (
        f"a file may have {limit * 100:.4g} % of its lines malformed (max_malformed_fraction), no ambiguous label, "
        "and, if it is a two-line file, no line missing among several pairs of one prompt"
    )
    text = f"Held back: {_first(named)}; {rule}. Fix the rejected lines, raise the limit, or set labels."
    snapshots = [parent, snapshot] if parent else [snapshot]
    rows = [row for row in (rejects_by_file(*snapshots) if held_back else []) if row["file"] in held_back]
    for row in rows:
        advice = causes.get(row["file"], {}).get("advice", "")
        row["what_to_do"] = "" if is_collateral(row) else f"{advice}; {trace_command(row['file'], row['first_line'])}"
    return _warning(
        HELD_BACK,
        _causes_first(rows),
        text if held_back else f"No file is held back; {rule}.",
        "held_back_files",
        _REJECT_COLUMNS | {"what_to_do": "string"},
        passed=not held_back,
    )


def _why(counts: dict[str, int], cause: dict[str, str] | None) -> str:
    return f"{cause['causes']}; {cause['advice']}" if cause else _malformed(counts)


def _malformed(counts: dict[str, int]) -> str:
    return f"{counts['num_malformed']:,} of {counts['num_lines']:,} lines malformed"


def _first(named: list[str]) -> str:
    """The first few of some names, and how many more there are."""
    more = len(named) - NUM_NAMED
    return ", ".join([*named[:NUM_NAMED], *([f"{more:,} more files"] if more > 0 else [])])


def _warning(
    name: str,
    rows: list[dict[str, Any]],
    text: str,
    table_name: str,
    columns: dict[str, str],
    passed: bool | None = None,
) -> dg.AssetCheckResult:
    """A result that warns if there are rows, which its metadata shows; without rows there is no table."""
    return dg.AssetCheckResult(
        check_name=name,
        passed=not rows if passed is None else passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=text,
        metadata={table_name: table(rows, columns)} if rows else {},
    )
