"""validated_preferences: one JSON parse a line, the format found, and each preference sound or a reject.

A file with more malformed lines than `max_malformed_fraction` is held back whole: its sound lines become rejects too,
so that a delivery gone wrong is not half used. So is a file with any ambiguous label: if `0` beside `output_1` and
`output_2` is a label, the `1` of the file's other lines may not mean `output_1`. The verdict is taken first, from
counts alone, and is part of the keys of the file's shards. A two-line file that has lost a line among several pairs of
one prompt is held back, too, as some of these may be turned round.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rm_assets.data import records
from rm_assets.data.engine import Task, compute_shards
from rm_assets.data.fingerprint import fingerprint
from rm_assets.data.formats.fast_path import plain_pair
from rm_assets.data.formats.parsing import stated_by
from rm_assets.data.formats.preferences import ParsingRules, PreferenceError, Stated
from rm_assets.data.formats.soundness import require_sound
from rm_assets.data.formats.two_lines import NumberedLine, num_broken_prompts, pairs_of_lines, stated_by_two_lines
from rm_assets.data.identities import stage_identity
from rm_assets.data.message_columns import num_equal_conversations
from rm_assets.data.pair_rows import PairRows
from rm_assets.data.parquet import read_batches
from rm_assets.data.publication import Publication, ShardWriter, Stats, publication
from rm_assets.data.records import MALFORMED, Reason, Stage
from rm_assets.data.reject_rows import num_rejects, reason_counts, reject_table
from rm_assets.data.snapshots import DATA, REJECTS, Shard, Snapshot
from rm_assets.data.storage import place
from rm_assets.data.written_tools import CALLS, num_lines_with_other_tools, tools_by_line
from rm_assets.settings import Settings

VERSION = 6
_COUNTS = ("num_in", "num_stated", "num_tied", "num_not_taken", "num_second_lines", "num_held_back")


# --- one shard -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ValidationTask:
    """A shard of raw lines with its rejects; `held_back` says why its file is held back, or is empty.

    `before` are the lines and the rejects of the shard before it, in two-line files.
    """

    path: Path | None
    rejected: Path | None
    before: tuple[Path | None, Path | None]
    source: str
    held_back: str
    rules: ParsingRules


def validate_shard(task: ValidationTask, writer: ShardWriter) -> Stats:
    """Rows and rejects of one shard of raw lines."""
    counts: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
    formats: Counter[str] = Counter()
    reasons: Counter[Reason] = Counter()
    takes_short_way = not (task.held_back or task.rules.columns or task.rules.two_line_files)
    for statements, num_lines in _statements(task):
        rows, rejects = PairRows(), []
        counts.update(num_in=num_lines, num_held_back=num_lines * bool(task.held_back))
        for lines, stated_by_lines in statements:
            line, text = lines[0]
            if takes_short_way and isinstance(text, bytes) and (pair := plain_pair(text)):
                rows.add_plain(line, pair)
                counts["num_stated"] += 1
                continue
            try:
                stated = stated_by_lines()
                for preference in stated.preferences:
                    require_sound(preference)
                if task.held_back:
                    raise PreferenceError(Reason.HELD_BACK_FILE, task.held_back)
                for preference in stated.preferences:
                    rows.add(lines[0][0], preference)
                counts["num_stated"] += len(stated.preferences)
                if stated.num_tied or stated.num_not_taken or len(lines) > 1:
                    more = {"num_tied": stated.num_tied, "num_not_taken": stated.num_not_taken}
                    counts.update(more, num_second_lines=len(lines) - 1)
            except PreferenceError as error:
                rejects += [_reject(task.source, line, error, text) for line, text in lines if text is not None]
        writer.write(DATA, rows.table(task.source))
        writer.write(REJECTS, reject_table(rejects))
        formats.update(rows.formats)
        reasons.update(reject["reason"] for reject in rejects)
        if task.rules.two_line_files:
            counts["num_broken_prompts"] = _num_broken_prompts(task, rejects)
    return {
        **counts,
        "num_malformed": sum(count for reason, count in reasons.items() if reason in MALFORMED),
        "num_ambiguous_labels": reasons[Reason.AMBIGUOUS_LABEL],
        "formats": dict(sorted(formats.items())),
        "reasons": reason_counts(reasons),
    }


Statement = tuple[list[NumberedLine], Callable[[], Stated]]
"""What to read together: a line or two, and how to know what they state."""


def _statements(task: ValidationTask) -> Iterator[tuple[Iterable[Statement], int]]:
    """The statements of each row group, and its number of lines; lines that come in twos are taken together."""
    batches = read_batches(task.path, records.RAW)
    if not task.rules.two_line_files:
        for rows in batches:
            statements = _single_lines(rows["line"].to_pylist(), _utf8(rows["text"]), task.rules)
            yield statements, records.num_rows_of(task.source, rows)
        return
    num_lines = sum(records.num_rows_of(task.source, rows) for rows in batches)
    yield (
        (
            ([first, *([second] if second else [])], functools.partial(stated_by_two_lines, first, second))
            for first, second in pairs_of_lines(_all_lines(task.path, task.rejected))
        ),
        num_lines,
    )


def _all_lines(path: Path | None, rejected: Path | None) -> list[NumberedLine]:
    found: list[NumberedLine] = []
    for rows in read_batches(path, records.RAW, ["line", "text"]):
        found += zip(rows["line"].to_pylist(), _utf8(rows["text"]), strict=True)
    for rejects in read_batches(rejected, records.REJECTS, ["line"]):
        found += [(line, None) for line in rejects["line"].to_pylist() if line]
    return found


def _num_broken_prompts(task: ValidationTask, rejects: list[dict[str, Any]]) -> int:
    reasons = (Reason.UNSHARED_PROMPT, Reason.INCOMPLETE_PAIR)
    unmatched = {reject["line"] for reject in rejects if reject["reason"] in reasons}
    if not unmatched:  # then nothing has to be read again
        return 0
    *_, before = (None, *pairs_of_lines(_all_lines(*task.before)))
    return num_broken_prompts(list(pairs_of_lines(_all_lines(task.path, task.rejected))), unmatched, before)


def _single_lines(lines: list[int], texts: list[bytes], rules: ParsingRules) -> Iterator[Statement]:
    for line, text in zip(lines, texts, strict=True):
        yield [(line, text)], functools.partial(stated_by, text, rules)


def _utf8(texts: pa.ChunkedArray) -> list[bytes]:
    """Texts as bytes, which is what a JSON parser wants."""
    return list(texts.cast(pa.binary()).to_pylist())


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
        *(records.VALIDATED.field(name) for name in ("source", "line")),
        pa.field("prompt", CALLS, nullable=False),
        *(records.VALIDATED.field(name) for name in ("chosen", "rejected", "tools")),
    ]
)


def validation_laws(task: ValidationTask, paths: dict[str, Path]) -> Stats:
    """Figures of the written shard: how many lines gave its pairs, and pairs whose two replies are equal.

    And how many of its lines have other tools or tool calls than their pairs, or have them in another order.
    """
    figures: Counter[str] = Counter(num_out=0, num_identical=0)
    lines: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    tools: dict[int, set[str]] = {}
    for rows in read_batches(paths.get(DATA), _EXAMINED):
        num_identical = num_equal_conversations(rows["chosen"], rows["rejected"])
        figures.update(num_out=records.num_rows_of(task.source, rows), num_identical=num_identical)
        lines.append(rows["line"].to_numpy())
        for line, texts in tools_by_line(rows):
            tools.setdefault(line, set()).update(texts)
    figures["num_other_tools"] = num_lines_with_other_tools(task.path, tools, two_line_files=task.rules.two_line_files)
    sorted_lines = np.sort(np.concatenate(lines))
    num_lines_with_pairs = min(len(sorted_lines), 1) + int(np.count_nonzero(np.diff(sorted_lines)))
    refused = num_rejects(paths, task.source)
    return {**figures, "num_lines_with_pairs": num_lines_with_pairs, "num_rejects": refused}


# --- the stage -----------------------------------------------------------------------------------------------


def validated_snapshot(settings: Settings, raw: Snapshot, say: Callable[[str], object]) -> Snapshot:
    """Validate every raw shard whose key is not found, hold back the files that are mostly damage, and publish."""
    with publication(place(settings.storage), Stage.VALIDATED, settings.keep_snapshots, say, settings.verify) as turn:
        limit, rules = settings.max_malformed_fraction, parsing_rules(settings)
        verdict = f"more than {limit:.4g} of the file's lines are malformed, or one has an ambiguous label"
        if settings.two_line_files:
            verdict += ", or a line is missing among several pairs of one prompt"
        before = _shards_before(raw) if settings.two_line_files else {}
        sound = [_task(raw, shard, before.get(shard.name), "", rules) for shard in raw.manifest.shards]
        held = [_task(raw, shard, before.get(shard.name), verdict, rules) for shard in raw.manifest.shards]
        held_back = _held_back_files(raw, _first_looks(turn, sound, held, settings, say), limit)
        tasks = [worse if task.source in held_back else task for task, worse in zip(sound, held, strict=True)]
        shards = compute_shards(turn, tasks, validate_shard, validation_laws, settings, say)
        return turn.publish(
            shards,
            {Stage.RAW: raw.name},
            {"held_back": held_back},
            stage_identity(Stage.VALIDATED, settings, raw.manifest.identity),
        )


def parsing_rules(settings: Settings) -> ParsingRules:
    """The settings that decide what a row states; they are part of the keys of the shards."""
    return ParsingRules(
        columns=settings.columns,
        labels=settings.labels,
        annotators=settings.annotators,
        max_pairs_per_prompt=settings.max_pairs_per_prompt,
        two_line_files=settings.two_line_files,
    )


def _shards_before(raw: Snapshot) -> dict[str, Shard]:
    """The shard with lines that comes before each shard in its file, by name."""
    found, last = {}, dict[str, Shard]()
    for shard in raw.manifest.shards:
        if shard.source in last:
            found[shard.name] = last[shard.source]
        if shard.files:
            last[shard.source] = shard
    return found


def _task(raw: Snapshot, shard: Shard, before: Shard | None, held_back: str, rules: ParsingRules) -> Task:
    key = fingerprint(
        Stage.VALIDATED, VERSION, msgspec.to_builtins(rules), shard.key, held_back, *([before.key] if before else [])
    )
    data, rejected = _raw_paths(raw, shard)
    arguments = ValidationTask(
        path=data,
        rejected=rejected,
        before=_raw_paths(raw, before),
        source=shard.source,
        held_back=held_back,
        rules=rules,
    )
    return Task(name=shard.name, source=shard.source, key=key, num_bytes=shard.num_bytes, arguments=arguments)


def _raw_paths(raw: Snapshot, shard: Shard | None) -> tuple[Path | None, Path | None]:
    """The files of a shard's lines and of its rejects."""
    paths = {file.folder: raw.directory / file.path for file in shard.files} if shard else {}
    return paths.get(DATA), paths.get(REJECTS)


def _first_looks(
    turn: Publication, sound: list[Task], held: list[Task], settings: Settings, say: Callable[[str], object]
) -> list[Shard]:
    """Each shard in whichever version is known, which count alike; shards known in neither are computed."""
    known = {task.key: turn.find(task.key) or turn.find(worse.key) for task, worse in zip(sound, held, strict=True)}
    missing = [task for task in sound if known[task.key] is None]
    if missing:
        computed = compute_shards(turn, missing, validate_shard, validation_laws, settings, say)
        known |= {shard.key: shard for shard in computed}
    return [shard for task in sound if (shard := known[task.key]) is not None]


def _held_back_files(raw: Snapshot, validated: list[Shard], limit: float) -> dict[str, dict[str, int]]:
    """The files with too much damage or an ambiguous label: their malformed and their non-blank lines, by source.

    So are two-line files whose pairs may be turned round.
    """
    num_lines: Counter[str] = Counter()
    num_malformed: Counter[str] = Counter()
    num_unclear: Counter[str] = Counter()
    for shard, seen in zip(raw.manifest.shards, validated, strict=True):
        num_lines[shard.source] += shard.stats["num_lines"] - shard.stats["num_blank"]
        num_malformed[shard.source] += shard.stats["num_malformed"] + seen.stats["num_malformed"]
        num_unclear[shard.source] += seen.stats["num_ambiguous_labels"] + seen.stats.get("num_broken_prompts", 0)
    return {
        source: {"num_malformed": num_malformed[source], "num_lines": total}
        for source, total in sorted(num_lines.items())
        if num_malformed[source] > limit * total or num_unclear[source]
    }
