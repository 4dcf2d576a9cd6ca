"""validated_preferences: each line parsed once, its format recognized, and its preferences valid or rejects.

A file is held back whole if more of its lines are malformed than `max_malformed_fraction`, if its labels may mean
either response, or if it is a two-line file that lost a line among several pairs of one prompt, as these may then be
swapped. Its valid lines become rejects too, so that no broken delivery is half used. This verdict (`verdicts`) needs
the counts of all files: each shard is first validated without it, and again if the verdict concerns it, which is then
part of its key.
"""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from rm_assets.data.compute.engine import Task, compute_shards
from rm_assets.data.formats.fast_path import simple_pair
from rm_assets.data.formats.file_rules import globs_without_files, rules_of_file
from rm_assets.data.formats.labels.consistency import EvidenceCounts, Refusal, count_evidence
from rm_assets.data.formats.preferences import Evidence, ParsedLine, ParsingRules, PreferenceError
from rm_assets.data.formats.two_lines import num_broken_prompts, pairs_of_lines
from rm_assets.data.formats.validity import require_valid
from rm_assets.data.pairs.rows import PairRows
from rm_assets.data.stages.rejects import num_rejects, reason_counts, reject_table
from rm_assets.data.stages.run_stage import Log, run_stage, shard_task
from rm_assets.data.stages.statements import Statement, lines_by_source, statements_by_source
from rm_assets.data.stages.verdicts import Verdict, verdict_of_files
from rm_assets.data.stages.written_tools import CALLS, Line, num_lines_with_other_tools, tools_by_line
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.parquet import read_batches
from rm_assets.data.storage.publication import Publication
from rm_assets.data.storage.shards import ShardWriter, Stats, counts_of_files, stats_of_files
from rm_assets.data.storage.snapshots import DATA, REJECTS, Shard, Snapshot
from rm_assets.data.tables import schemas
from rm_assets.data.tables.message_columns import num_equal_conversations
from rm_assets.data.tables.reasons import MALFORMED, Reason
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

VERSION = 10
EQUAL_CELLS = "equal_cells"
"""The figure of an evaluation file that lists, line by line, the cells that have no pair; see `ParsedLine`."""
_NUM_LOGGED = 10
_RANKING_COUNTS = ("num_tied", "num_not_taken", "num_left_out")
_COUNTS = ("num_in", "num_stated", *_RANKING_COUNTS, "num_second_lines", "num_held_back")


# --- one shard -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ValidationTask:
    """A shard of raw lines with its rejects; `held_back` says why its file is held back, or is empty.

    `before` are the lines and the rejects of the preceding shard, in two-line files. `refused` are kinds of labels that
    the rows of all files together rule out. `key_without_verdict` is the shard's key before there is a verdict.
    If several files share the shard, `files` has a task for each, with its own rules and verdict.
    """

    path: Path | None
    rejected: Path | None
    before: tuple[Path | None, Path | None]
    source: str
    held_back: str
    refused: tuple[Refusal, ...]
    key_without_verdict: str
    rules: ParsingRules
    files: tuple["ValidationTask", ...] = ()

    @property
    def by_source(self) -> dict[str, "ValidationTask"]:
        """The task of each file."""
        return {file.source: file for file in self.files or (self,)}


class _File:
    """What is known of a file after its statements: counts, evidence for the verdict, and malformed lines."""

    def __init__(self, task: ValidationTask) -> None:
        self.task = task
        self.counts: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
        self.signs: EvidenceCounts = {}
        self.malformed: dict[str, list[int]] = {}
        self.equal_cells: dict[str, list[tuple[int, int]]] = {}  # by line

    def stats(self) -> Stats:
        """All of it, for the manifest."""
        found = {**self.counts, "malformed": self.malformed, "signs": msgspec.to_builtins(self.signs)}
        return found | ({EQUAL_CELLS: self.equal_cells} if self.equal_cells else {})


def validate_shard(task: ValidationTask, writer: ShardWriter) -> Stats:
    """Rows and rejects of one shard of raw lines."""
    files = {source: _File(each) for source, each in task.by_source.items()}
    formats, reasons = Counter[str](), Counter[Reason]()
    rules = {source: each.rules for source, each in task.by_source.items()}
    for batch in statements_by_source(task.path, task.rejected, rules):
        rows, sources, rejects = PairRows(), list[str](), list[dict[str, Any]]()
        for source, statements, num_lines in batch:
            files[source].counts.update(num_in=num_lines, num_held_back=num_lines * bool(files[source].task.held_back))
            rejects += _add_statements(files[source], statements, rows)
            sources += [source] * (len(rows) - len(sources))
        writer.write(DATA, rows.table(sources if task.files else task.source))
        writer.write(REJECTS, reject_table(rejects))
        formats.update(rows.formats)
        reasons.update(reject["reason"] for reject in rejects)
    return {
        **stats_of_files({source: file.stats() for source, file in files.items()}),
        "key_without_verdict": task.key_without_verdict,
        "formats": dict(sorted(formats.items())),
        "reasons": reason_counts(reasons),
    }


def _add_statements(file: _File, statements: Iterable[Statement], rows: PairRows) -> list[dict[str, Any]]:
    """Add the preferences that lines of a file state to the rows; returns its rejects."""
    task, counts, rejects = file.task, file.counts, list[dict[str, Any]]()
    may_skip_parsing = not (task.held_back or task.rules.columns or task.rules.two_line_files)
    for lines, stated_by_lines in statements:
        line, text = lines[0]
        if may_skip_parsing and isinstance(text, bytes) and (pair := simple_pair(text)):
            rows.add_plain(line, pair)
            counts["num_stated"] += 1
            continue
        try:
            stated = _usable(stated_by_lines, line, task, file.signs)
            for preference in stated.preferences:
                rows.add(lines[0][0], preference)
            counts["num_stated"] += len(stated.preferences)
            if stated.equal_cells:
                file.equal_cells[str(line)] = list(stated.equal_cells)
            more = {name: number for name in _RANKING_COUNTS if (number := getattr(stated, name))}
            if more or len(lines) > 1:
                counts.update(more, num_second_lines=len(lines) - 1)
        except PreferenceError as error:
            rejects += [_reject(task.source, line, error, text) for line, text in lines if text is not None]
    _add_malformed(file.malformed, rejects, task.refused)
    if task.rules.two_line_files:
        counts["num_broken_prompts"] = _num_broken_prompts(task, rejects)
    return rejects


def _usable(
    stated_by_lines: Callable[[], ParsedLine], line: int, task: ValidationTask, signs: EvidenceCounts
) -> ParsedLine:
    """The preferences of a line if they are valid and no verdict excludes them; its evidence is counted either way."""
    shown, is_valid = tuple[Evidence, ...](), False
    try:
        stated = stated_by_lines()
        shown = stated.evidence
        for preference in stated.preferences:
            require_valid(preference)
        is_valid = True
    except PreferenceError as error:
        shown = shown or error.evidence
        raise
    finally:
        for sign in shown:
            count_evidence(signs, sign, line, is_valid=is_valid)
    for refusal in task.refused:
        if any(sign.shape == refusal.shape and sign.kind in refusal.kinds for sign in shown):
            raise PreferenceError(refusal.reason, refusal.detail)
    if task.held_back:
        raise PreferenceError(Reason.HELD_BACK_FILE, task.held_back)
    return stated


def _add_malformed(
    malformed: dict[str, list[int]], rejects: list[dict[str, Any]], refused: tuple[Refusal, ...]
) -> None:
    """Count malformed lines by reason, with the first of each, except those that are rejects because of other rows."""
    details = {refusal.detail for refusal in refused}
    for reject in rejects:
        if reject["reason"] in MALFORMED and reject["detail"] not in details:
            num, first = malformed.get(reject["reason"], (0, reject["line"]))
            malformed[str(reject["reason"])] = [num + 1, min(first, reject["line"])]


def _num_broken_prompts(task: ValidationTask, rejects: list[dict[str, Any]]) -> int:
    reasons = (Reason.UNSHARED_PROMPT, Reason.INCOMPLETE_PAIR)
    unmatched = {reject["line"] for reject in rejects if reject["reason"] in reasons}
    if not unmatched:  # nothing has to be read again
        return 0
    own, earlier = (
        list(pairs_of_lines(lines_by_source(*paths).get(task.source, [])))
        for paths in ((task.path, task.rejected), task.before)
    )
    return num_broken_prompts(own, unmatched, earlier[-1] if earlier else None)


def _reject(source: str, line: int, error: PreferenceError, text: str | bytes) -> dict[str, Any]:
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return {
        "source": source,
        "line": line,
        "stage": Stage.VALIDATED,
        "reason": error.reason,
        "detail": error.detail,
        "line_sha256": hashlib.sha256(content).hexdigest(),
    }


_EXAMINED = pa.schema(
    [
        *(schemas.VALIDATED.field(name) for name in ("source", "line")),
        pa.field("prompt", CALLS, nullable=False),
        *(schemas.VALIDATED.field(name) for name in ("chosen", "rejected", "tools")),
    ]
)


def measure_validated(task: ValidationTask, paths: dict[str, Path]) -> Stats:
    """Figures of the written shard: how many lines gave its pairs, and how many pairs have two equal replies.

    Also how many lines have pairs whose tools or tool calls differ from the line's, if only in their members' order.
    """
    sources, num_out, num_identical = task.by_source, Counter[str](), 0
    lines, tools = set[Line](), dict[Line, set[str]]()
    for rows in read_batches(paths.get(DATA), _EXAMINED):
        num_identical += num_equal_conversations(rows["chosen"], rows["rejected"])
        num_out.update(schemas.num_rows_by_source(rows))
        lines.update(zip(rows["source"].to_pylist(), rows["line"].to_pylist(), strict=True))
        for line, texts in tools_by_line(rows):
            tools.setdefault(line, set()).update(texts)
    num_lines_with_pairs = Counter(source for source, _ in lines)
    counts = counts_of_files(
        sources, num_out=num_out, num_lines_with_pairs=num_lines_with_pairs, num_rejects=num_rejects(paths)
    )
    num_other_tools = num_lines_with_other_tools(task.path, tools, two_line_files=task.rules.two_line_files)
    return {**counts, "num_identical": num_identical, "num_other_tools": num_other_tools}


# --- the stage -----------------------------------------------------------------------------------------------


def publish_validated(settings: Settings, raw: Snapshot, log: Log) -> Snapshot:
    """Validate every raw shard whose key is not found, hold back the files that are mostly damaged, and publish."""
    raw_shards = raw.manifest.shards
    before = _shards_before(raw) if settings.two_line_files else {}
    rules = {source: rules_of_file(settings, source) for shard in raw_shards for source in shard.by_source}
    unused_globs = globs_without_files(settings, rules)
    for glob in unused_globs:
        log(f"{glob} matches none of the files")

    verdict = Verdict({}, [])

    def plan(publisher: Publication) -> list[Task]:
        nonlocal verdict
        unjudged = [_task(raw, shard, before.get(shard.name), rules) for shard in raw_shards]
        counted = _counted_shards(publisher, unjudged, settings, log)
        verdict = verdict_of_files(raw_shards, counted, settings.max_malformed_fraction)
        _log_held_back(verdict, log)
        return [
            _judged(task, seen, before.get(shard.name), shard, verdict)
            for task, seen, shard in zip(unjudged, counted, raw_shards, strict=True)
        ]

    def facts(_: Publication, shards: list[Shard]) -> dict[str, Any]:
        return {**_facts(verdict), "globs_without_files": unused_globs}

    return run_stage(Stage.VALIDATED, settings, raw, plan, validate_shard, measure_validated, log, facts=facts)


def _facts(verdict: Verdict) -> dict[str, Any]:
    held_back = verdict.held_back.items()
    return {
        "held_back": {
            source: {"num_malformed": held.num_malformed, "num_lines": held.num_lines} for source, held in held_back
        },
        "causes": {source: {"causes": held.causes, "advice": held.advice} for source, held in held_back},
    }


def _log_held_back(verdict: Verdict, log: Log) -> None:
    for source, held in itertools.islice(verdict.held_back.items(), _NUM_LOGGED):
        log(f"{source!r} is held back: {held.causes}; {held.advice}")
    if len(verdict.held_back) > _NUM_LOGGED:
        log(f"{len(verdict.held_back) - _NUM_LOGGED:,} more files are held back")


def _shards_before(raw: Snapshot) -> dict[str, Shard]:
    """For each shard, by name, the preceding one of its file that has lines or rejects."""
    found, last = {}, dict[str, Shard]()
    for shard in raw.manifest.shards:
        if shard.source in last:
            found[shard.name] = last[shard.source]
        if shard.files and not shard.sources:
            last[shard.source] = shard
    return found


def _task(raw: Snapshot, shard: Shard, before: Shard | None, rules: Mapping[str, ParsingRules]) -> Task:
    data, rejected = _raw_paths(raw, shard)
    files = tuple(
        ValidationTask(
            path=data,
            rejected=rejected,
            before=_raw_paths(raw, before),
            source=source,
            held_back="",
            refused=(),
            key_without_verdict="",
            rules=rules[source],
        )
        for source in shard.by_source
    )
    key = _key(shard, before, files)
    whole = dataclasses.replace(files[0], key_without_verdict=key)
    if shard.sources:
        whole = dataclasses.replace(whole, source="", files=files)
    return shard_task(shard, key, whole)


def _judged(task: Task, seen: Shard, before: Shard | None, shard: Shard, verdict: Verdict) -> Task:
    """The task of a shard under the verdict on all files; the same task if the verdict does not concern it."""
    files = tuple(
        _file_judged(file, seen.by_source[source], verdict) for source, file in task.arguments.by_source.items()
    )
    if not any(file.held_back or file.refused for file in files):
        return task
    whole = dataclasses.replace(task.arguments, files=files) if shard.sources else files[0]
    return dataclasses.replace(task, key=_key(shard, before, files), arguments=whole)


def _file_judged(file: ValidationTask, seen: Stats, verdict: Verdict) -> ValidationTask:
    held = verdict.held_back.get(file.source)
    held_back = f"its file is held back: {held.causes}; {held.advice}" if held else ""
    refused = tuple(refusal for refusal in verdict.refused if refusal.shape in seen.get("signs", {}))
    return dataclasses.replace(file, held_back=held_back, refused=refused) if held_back or refused else file


def _key(shard: Shard, before: Shard | None, files: tuple[ValidationTask, ...]) -> str:
    decisive = [[msgspec.to_builtins(part) for part in (file.rules, file.held_back, file.refused)] for file in files]
    of_shard = [decisive] if shard.sources else decisive[0]
    return fingerprint(Stage.VALIDATED, VERSION, *of_shard, shard.key, *([before.key] if before else []))


def _raw_paths(raw: Snapshot, shard: Shard | None) -> tuple[Path | None, Path | None]:
    """The files of a shard's lines and of its rejects."""
    paths = {file.folder: raw.directory / file.path for file in shard.files} if shard else {}
    return paths.get(DATA), paths.get(REJECTS)


def _counted_shards(publisher: Publication, tasks: list[Task], settings: Settings, log: Log) -> list[Shard]:
    """A shard for each task, for its counts, which are the same under any verdict; computed if there is none."""
    before = (
        {shard.stats.get("key_without_verdict"): shard.key for shard in previous.manifest.shards}
        if (previous := publisher.previous)
        else {}
    )
    known = {task.key: publisher.find(task.key) or publisher.find(before.get(task.key, task.key)) for task in tasks}
    missing = [task for task in tasks if known[task.key] is None]
    if missing:
        computed = compute_shards(publisher, missing, validate_shard, measure_validated, settings, log)
        known |= {shard.key: shard for shard in computed}
    return [shard for task in tasks if (shard := known[task.key]) is not None]
