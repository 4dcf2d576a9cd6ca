"""Where a pair came from and what happened to it: `python -m rm_assets.trace PAIR_ID`, or `... FILE LINE`.

It reads the newest snapshots in RM_STORAGE and prints the line, its pairs or its reject at each stage, the split, and
the scores of each model. FILE is a source as rows and rejects show it, or the end of one.

Exit codes: 0 found, 1 not found, 2 wrong arguments.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_assets.data.storage.files import StorageError, resolve_path
from rm_assets.data.storage.latest import latest_name
from rm_assets.data.storage.parquet import read_matching_rows
from rm_assets.data.storage.retention import snapshots_by_age
from rm_assets.data.storage.snapshots import (
    REJECTS,
    Snapshot,
    SnapshotError,
    latest_snapshot,
    read_snapshot,
)
from rm_assets.data.tables.reasons import MEANINGS, Reason
from rm_assets.data.tables.schemas import Stage
from rm_assets.display_text import one_line, printable, shorten
from rm_assets.settings import SettingsError
from rm_assets.settings_loading import load_settings
from rm_assets.training.jobs.result import SCORES_FILE, read_manifest

USAGE = "usage: python -m rm_assets.trace PAIR_ID | FILE LINE"
_MODEL, _PROMOTED = "reward_model", "promoted_reward_model"
_PREVIEW_CHARACTERS = 100
_MOST_DIGITS = 18
"""Of a line number, which is an int64 in the datasets."""


class NotFoundError(LookupError):
    """The storage does not have what was asked for."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of an annotation file."""

    source: str
    line: int


def main(arguments: list[str]) -> int:
    """Print the trace of a pair or a line; returns the exit code."""
    if len(arguments) not in (1, 2) or not all(map(_is_line_number, arguments[1:])):
        print(USAGE, file=sys.stderr)
        return 2
    return print_lines(lambda storage: trace(storage, *arguments))


def print_lines(lines: Callable[[Path], Iterator[str]]) -> int:
    """Print what `lines` gives for the storage in RM_STORAGE, or why it gives nothing; returns the exit code."""
    try:
        for text in lines(resolve_path(load_settings({}, os.environ).storage)):
            print(printable(text))
    except (NotFoundError, SettingsError, SnapshotError, StorageError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _is_line_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= _MOST_DIGITS


def trace(storage: Path, name: str, number: str = "") -> Iterator[str]:
    """The trace of a pair_id, or of a file and a line number; raises NotFoundError if it is unknown."""
    stages = {stage: found for stage in Stage if (found := latest_snapshot(storage, stage))}
    if not stages:
        raise NotFoundError(f"no snapshots in {str(storage)!r}: set RM_STORAGE, or materialize the assets first")
    if number:
        lines, pair_id = [Line(source=_source(stages, name), line=int(number))], ""
    else:
        lines, pair_id = _lines_of_pair(stages, name), name
    for line in lines:
        yield from _trace_line(storage, stages, line, pair_id)


# --- the arguments ------------------------------------------------------------------------------------------


def _source(stages: dict[Stage, Snapshot], name: str) -> str:
    """The only source that equals a name, else ends with it, else is its end."""
    known = {source for snapshot in stages.values() for shard in snapshot.manifest.shards for source in shard.by_source}
    ends = Path(name).as_posix().removeprefix("./")
    found = {name} & known or {source for source in known if f"/{source}".endswith(f"/{ends}")}
    found = found or {source for source in known if f"/{ends}".endswith(f"/{source}")}
    if len(found) == 1:
        return found.pop()
    why = f"it may be any of {sorted(found)[:5]!r}" if found else f"known are {sorted(known)[:10]!r}"
    raise NotFoundError(f"no file {name!r} among the sources of the newest snapshots: {why}")


def _lines_of_pair(stages: dict[Stage, Snapshot], pair_id: str) -> list[Line]:
    """Every line that has the pair, as several files may have equal ones."""
    if Stage.VALIDATED not in stages:
        raise NotFoundError("validated_preferences has no snapshot, so no pair has an id yet: materialize it first")
    known = pair_id.isascii()  # an argument may not be valid UTF-8, which Parquet cannot search for
    rows = _rows(stages[Stage.VALIDATED].paths(), ["source", "line"], pair_id=pair_id) if known else []
    found = sorted({(row["source"], row["line"]) for row in rows})
    if not found:
        raise NotFoundError(f"no pair {pair_id!r} in validated_preferences {stages[Stage.VALIDATED].name!r}")
    return [Line(source=source, line=line) for source, line in found]


def _rows(paths: list[Path], columns: list[str], **wanted: Any) -> list[dict[str, Any]]:
    """The rows of Parquet files with these values."""
    return [row for path in paths for row in read_matching_rows(path, wanted, columns)]


# --- the trace -----------------------------------------------------------------------------------------------


def _trace_line(storage: Path, stages: dict[Stage, Snapshot], line: Line, pair_id: str) -> Iterator[str]:
    found = [
        f"  {stage:<24} {text}"
        for stage, snapshot in stages.items()
        for text in (*_at_stage(stage, snapshot, line, pair_id), *_rejects(stages, snapshot, line))
    ]
    if not found:
        raise NotFoundError(f"{line.source!r} has no line {line.line} in the newest snapshots: blank, or not read yet")
    yield f"{line.source}, line {line.line}"
    yield from found
    stated = _rows(stages[Stage.VALIDATED].paths(), ["pair_id"], **vars(line)) if Stage.VALIDATED in stages else []
    for pair in dict.fromkeys(row["pair_id"] for row in stated if pair_id in ("", row["pair_id"])):
        yield from _in_models(storage, line, pair)


def _at_stage(stage: Stage, snapshot: Snapshot, line: Line, pair_id: str) -> Iterator[str]:
    """The rows of a line, or of one pair of it, at a stage."""
    wanted: dict[str, Any] = dict(vars(line))
    if stage is not Stage.RAW and pair_id:
        wanted["pair_id"] = pair_id
    columns, describe = _COLUMNS[stage]
    for path in _paths_of_source(snapshot, line.source):
        folder = path.relative_to(snapshot.directory).parent.as_posix()
        for row in _rows([path], columns, **wanted):
            yield f"pair {row['pair_id']}: {describe(row, folder)}" if "pair_id" in row else describe(row, folder)


def _raw(row: dict[str, Any], _: str) -> str:
    return f"{len(row['text'].encode()):,} bytes: {_shortened(row['text'])}"


def _validated(row: dict[str, Any], _: str) -> str:
    subset = f", subset '{shorten(row['subset'])}'" if row["subset"] else ""
    votes = f", {row['num_agreeing']} of {row['num_annotators']} annotators" if row["num_annotators"] else ""
    return f"{row['format']}, {row['num_turns']} turns, margin {row['margin']:g}{votes}{subset}"


def _flattened(row: dict[str, Any], _: str) -> str:
    return "characters of " + ", ".join(f"{name} {len(row[name]):,}" for name in ("prompt", "chosen", "rejected"))


def _tokenized(row: dict[str, Any], _: str) -> str:
    dropped = f", {row['num_dropped_turns']} turns dropped" if row["num_dropped_turns"] else ""
    return f"chosen {len(row['chosen_ids']):,} tokens, rejected {len(row['rejected_ids']):,}{dropped}"


def _padded(_: dict[str, Any], folder: str) -> str:
    return f"in {folder}"


_VOTES = ("num_annotators", "num_agreeing")
# The columns read at each stage, and a function that describes a row with its folder.
_COLUMNS: dict[Stage, tuple[list[str], Callable[[dict[str, Any], str], str]]] = {
    Stage.RAW: (["text"], _raw),
    Stage.VALIDATED: (["pair_id", "format", "num_turns", "margin", "subset", *_VOTES], _validated),
    Stage.FLATTENED: (["pair_id", "prompt", "chosen", "rejected"], _flattened),
    Stage.TOKENIZED: (["pair_id", "chosen_ids", "rejected_ids", "num_dropped_turns"], _tokenized),
    Stage.PADDED: (["pair_id"], _padded),
}


def _paths_of_source(snapshot: Snapshot, source: str) -> list[Path]:
    return [
        snapshot.directory / file.path
        for shard in snapshot.manifest.shards
        if source in shard.by_source
        for file in shard.files
        if file.folder != REJECTS
    ]


def _rejects(stages: dict[Stage, Snapshot], snapshot: Snapshot, line: Line) -> Iterator[str]:
    """The rejects of a line at a stage, with the line kept in place of a duplicate. A file's own reject has line 0."""
    for number in dict.fromkeys((line.line, 0)):
        for row in _rows(snapshot.paths(REJECTS), ["reason", "detail"], source=line.source, line=number):
            reason = Reason(row["reason"])
            detail = f" ({row['detail']})" if row["detail"] else ""
            yield f"rejected, {reason}: {MEANINGS[reason]}{detail}{_kept_instead(stages, reason, line)}"


def _kept_instead(stages: dict[Stage, Snapshot], reason: Reason, line: Line) -> str:
    if reason is not Reason.DUPLICATE or Stage.PADDED not in stages:
        return ""
    keys = ["pair_id", "chosen_key", "rejected_key"]
    for row in _rows(stages[Stage.TOKENIZED].paths(), keys, **vars(line)):
        same = {name: row[name] for name in keys[1:]}
        for kept in _rows(stages[Stage.PADDED].paths(), ["source", "line"], **same):
            if (kept["source"], kept["line"]) != (line.source, line.line):
                return f"; kept is {kept['source']}, line {kept['line']}"
    return ""


def _in_models(storage: Path, line: Line, pair_id: str) -> Iterator[str]:
    """For each model, the pair's scores if it was held out, or that the model was trained on it."""
    wanted = {**vars(line), "pair_id": pair_id}
    for directory in reversed(snapshots_by_age(storage / _MODEL, None)):
        sha256 = read_manifest(directory)["files"].get(SCORES_FILE, "")
        name = f"{_MODEL} {directory.name}{_status(storage, directory.name)}"
        columns = ["split", "chosen_score", "rejected_score"]
        rows = read_matching_rows(directory / SCORES_FILE, wanted, columns, sha256)
        for row in rows:
            right = "right" if row["chosen_score"] > row["rejected_score"] else "not right"
            scores = f"chosen {row['chosen_score']:+.4f}, rejected {row['rejected_score']:+.4f}, {right}"
            yield f"  {name}  pair {pair_id}: {scores} ({row['split']})"
        if not rows:
            yield f"  {name}  pair {pair_id}: {_without_scores(storage, directory, wanted)}"


def _status(storage: Path, model: str) -> str:
    promoted = latest_snapshot(storage, _PROMOTED)
    marks = ["promoted"] if promoted and promoted.manifest.inputs.get(_MODEL) == model else []
    if latest_name(storage, _MODEL) == model:
        marks.append("newest")
    return f" ({', '.join(marks)})" if marks else ""


def _without_scores(storage: Path, model: Path, wanted: dict[str, Any]) -> str:
    padded = read_manifest(model)["data_snapshot"]
    try:
        data = read_snapshot(storage / Stage.PADDED / padded)
    except FileNotFoundError:
        return f"no scores, and its data {padded} were removed"
    if _rows(data.paths("train"), ["pair_id"], **wanted):
        return "trained on it, so no score"
    return "not among its pairs"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _PREVIEW_CHARACTERS else f"{line[:_PREVIEW_CHARACTERS]}…"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
