"""What the UI shows of a data asset: figures as metadata and invariants as checks, all from the snapshot's manifest."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from rm_assets.data.sources.content_version import ASSET, CONTENT
from rm_assets.data.sources.evaluation_sets import FOLDER
from rm_assets.data.stages.invariants import INVARIANTS, Invariant
from rm_assets.data.storage.parquet import open_parquet, read_batches
from rm_assets.data.storage.snapshots import REJECTS, Manifest, Snapshot
from rm_assets.data.tables import schemas
from rm_assets.data.tables.reasons import MEANINGS, Reason
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.results.changes import pair_changes_metadata, reject_changes_metadata
from rm_assets.defs.results.file_checks import (
    file_check_specs,
    file_checks,
    is_collateral,
    rejects_by_file,
    rejects_table,
    trace_command,
)
from rm_assets.defs.results.lengths import lengths_metadata
from rm_assets.defs.results.metadata import (
    CELL_CHARACTERS,
    MAX_ROWS,
    figures_table,
    location_metadata,
    pair_preview,
    preview,
    table,
)
from rm_assets.defs.results.moved_storage import storage_metadata
from rm_assets.defs.runs.summary import BUILT_IN_SAMPLE
from rm_assets.display_text import as_code, shorten
from rm_assets.settings import Settings

TOO_LONG_CHECK = "few_pairs_are_too_long"
MAX_TOO_LONG = 0.1
NUM_PREVIEWED = 5
NUM_EXAMPLES = 5
_NOT_FOR_READING = ("_id", "_key", "_mask")
_READ_VERSION = f"dagster/input_data_version/{ASSET}"
"""Dagster's tag for the version of annotation_files that was read; it would name the one observed before the step."""


class NothingLeftError(RuntimeError):
    """A stage rejected every row, or too many to train on, so there is nothing to continue with."""


def check_specs(stage: Stage) -> list[dg.AssetCheckSpec]:
    """The stage's invariants, which are blocking, and the warnings about ignored and held-back files and long pairs."""
    specs = [
        dg.AssetCheckSpec(invariant.name, asset=stage.value, description=invariant.description, blocking=True)
        for invariant in INVARIANTS[stage]
    ]
    if stage is Stage.TOKENIZED:
        description = f"At most {MAX_TOO_LONG:.0%} of the pairs are rejected because they are longer than max_length."
        specs.append(dg.AssetCheckSpec(TOO_LONG_CHECK, asset=stage.value, description=description))
    return [*specs, *file_check_specs(stage)]


def stage_result(
    stage: Stage, snapshot: Snapshot, parent: Snapshot | None, settings: Settings, before: Snapshot | None = None
) -> dg.MaterializeResult:
    """The materialization of a data stage that has rows; `before` as for `file_checks`."""
    # the page keeps this order: the figures of a refresh first, its location last
    changes = pair_changes_metadata(before, snapshot) if stage is Stage.PADDED else {}
    metadata = storage_metadata(snapshot.directory.parent.parent) if stage is Stage.RAW else {}
    metadata |= {**_figures(stage, snapshot.manifest), **changes, **_tables(stage, snapshot, settings)}
    if stage is Stage.PADDED:
        metadata |= lengths_metadata(snapshot)
    if settings.shows_previews:
        shown = pair_preview if stage in (Stage.VALIDATED, Stage.FLATTENED) else preview
        metadata["preview"] = shown(_first_rows(snapshot))
    metadata |= _files(snapshot)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(snapshot.name),
        metadata=metadata,
        check_results=list(check_results(stage, snapshot, parent, settings, before)),
        tags={_READ_VERSION: snapshot.manifest.facts[CONTENT]} if stage is Stage.RAW else None,
    )


def nothing_left(stage: Stage, snapshot: Snapshot, parent: Snapshot | None) -> str:
    """Why a stage has no row, and where its rejects are."""
    why = _rejects(stage, snapshot, parent) or "its input was empty"
    return f"nothing is left after {stage}: {why}; each reject is in {str(snapshot.directory / REJECTS)!r}"


def _rejects(stage: Stage, snapshot: Snapshot, parent: Snapshot | None) -> str:
    """A stage's rejects by reason, the first line that shows what to fix, and how to look at it; empty without any."""
    why = ", ".join(f"{count:,} {reason}" for reason, count in reason_totals(snapshot.manifest).most_common())
    facts = snapshot.manifest.facts
    for source, cause in facts.get("causes", {}).items() if stage is Stage.VALIDATED else ():
        why += f"; {as_code(source)} is held back: {cause['causes']}; {cause['advice']}"
        break  # one file shows what to fix
    snapshots = [parent, snapshot] if parent and stage is Stage.VALIDATED else [snapshot]
    first = next((row for row in rejects_by_file(*snapshots) if not is_collateral(row)), None)
    if first:
        source, line = first["file"], first["first_line"]
        why += f"; the first: {as_code(source)}{f', line {line}' if line else ''}: {first['example']}"
        why += f"; see: {trace_command(source, line)}"
    return why


def require_pairs(pairs: Snapshot, settings: Settings) -> None:
    """Raise NothingLeftError unless padded_pairs has pairs to train a model on, and others to judge it by."""
    counts = {split: pairs.manifest.total(f"num_{split}") for split in ("train", "validation", "test", "evaluation")}
    if not counts["train"]:
        problem, cure = "train on", "add annotations, or lower test_fraction and validation_fraction"
    elif not counts["test"] + counts["evaluation"]:
        problem, cure = (
            "judge a model by",
            "add annotations of more prompts, raise test_fraction, or set evaluation_files",
        )
    else:
        return
    found = ", ".join(f"{count:,} {split}" for split, count in counts.items()) + " pairs"
    found += f", and none of {', '.join(map(repr, empty))}" if (empty := sets_without_pairs(pairs, settings)) else ""
    rejects = f"; its rejects: {why}" if (why := _rejects(Stage.PADDED, pairs, None)) else ""
    raise NothingLeftError(f"no pairs to {problem}: {Stage.PADDED} has {found}{rejects}; {cure}")


def sets_without_pairs(pairs: Snapshot, settings: Settings) -> list[str]:
    """The evaluation sets of which padded_pairs has no pair, so that a report cannot have them."""
    folders = {file.folder for shard in pairs.manifest.shards for file in shard.files}
    return [name for name in settings.evaluation_files if f"{FOLDER}/{name}" not in folders]


def reason_totals(manifest: Manifest) -> Counter[str]:
    """How often each reason to reject occurs in a snapshot."""
    totals: Counter[str] = Counter()
    for shard in manifest.shards:
        totals.update(shard.stats.get("reasons", {}))
    return totals


def _figures(stage: Stage, manifest: Manifest) -> dict[str, Any]:
    """The figures that people follow as numbers, which are plotted over time; the others as one table."""
    others = {name: manifest.total(statistic) for name, statistic in _TOTALS[stage].items()}
    followed = {name: others.pop(name) for name in _FOLLOWED if name in others}
    rows = {"dagster/row_count": manifest.num_rows(), "rejects": manifest.num_rows(rejects=True)}
    return rows | followed | ({"figures": figures_table(others)} if others else {})


def _files(snapshot: Snapshot) -> dict[str, Any]:
    files = [file for shard in snapshot.manifest.shards for file in shard.files]
    return {
        "shards": len(snapshot.manifest.shards),
        "new_shards": snapshot.num_new_shards,
        "made_from": ", ".join(f"{asset} {name}" for asset, name in snapshot.manifest.inputs.items()) or "files",
        "megabytes": round(sum(file.num_bytes for file in files) / 1e6, 3),
        **location_metadata(snapshot.directory),
    }


_TOTALS = {
    Stage.RAW: {"lines": "num_lines", "blank_lines": "num_blank", "bytes_read": "num_bytes"},
    Stage.VALIDATED: {
        "held_back_lines": "num_held_back",
        "tied_pairs": "num_tied",
        "pairs_over_the_cap": "num_not_taken",
        "responses_left_out": "num_left_out",
    },
    Stage.FLATTENED: {
        "characters": "num_characters",
        "rewritten_by_template": "num_rewritten",
        "rendered_one_by_one": "num_one_by_one",
    },
    Stage.TOKENIZED: {"tokens": "num_tokens", "shared_prefix_tokens": "num_shared_tokens"},
    Stage.PADDED: {
        "train_pairs": "num_train",
        "validation_pairs": "num_validation",
        "test_pairs": "num_test",
        "evaluation_pairs": "num_evaluation",
        "tokens": "num_tokens",
        "padding_tokens": "num_padding",
    },
}


_FOLLOWED = (
    *("lines", "held_back_lines"),
    *("train_pairs", "validation_pairs", "test_pairs", "evaluation_pairs", "tokens"),
)


_ENGINE_NAMES = {"pieces": "the template's pieces, joined", "jinja": "Jinja, conversation by conversation"}
_ENGINES = {Stage.FLATTENED: ("renderer", "renderer_reason"), Stage.TOKENIZED: ("encoder", "encoder_reason")}


def _engines(manifest: Manifest, name: str, reason: str) -> dict[str, str]:
    """Which renderer or encoder did the stage's work, and why it was not the fast one."""
    used = Counter(shard.stats[name] for shard in manifest.shards)
    reasons = sorted({shard.stats[reason] for shard in manifest.shards} - {""})
    shown = {name: ", ".join(f"{_ENGINE_NAMES.get(key, key)} ({count} shards)" for key, count in sorted(used.items()))}
    return shown | ({reason: shorten("; ".join(reasons), CELL_CHARACTERS)} if reasons else {})


def _tables(stage: Stage, snapshot: Snapshot, settings: Settings) -> dict[str, Any]:
    manifest = snapshot.manifest
    totals = reason_totals(manifest)
    metadata: dict[str, Any] = {"rejects_by_reason": _reasons_table(totals)} if totals else {}
    if totals:
        metadata["rejects_by_file"] = rejects_table(rejects_by_file(snapshot))
    metadata["files"] = table(_rows_by_file(manifest))
    if stage in _ENGINES:
        metadata |= _engines(manifest, *_ENGINES[stage])
    if stage is Stage.RAW:
        metadata["annotations"] = settings.annotations or BUILT_IN_SAMPLE
        metadata["content_version"] = manifest.facts[CONTENT]
        ignored = [{"file": name} for name in manifest.facts["ignored_files"]]
        metadata |= {"ignored_files": table(ignored, {"file": "string"})} if ignored else {}
    if stage is Stage.VALIDATED:
        formats: Counter[str] = Counter()
        for shard in manifest.shards:
            formats.update(shard.stats["formats"])
        if unused := manifest.facts.get("globs_without_files"):
            metadata["globs_without_files"] = table([{"setting": name} for name in unused], {"setting": "string"})
        metadata["formats"] = table([{"format": name, "pairs": count} for name, count in formats.most_common()])
    return metadata


def _reasons_table(totals: Counter[str]) -> dg.TableMetadataValue:
    """Rejects by reason, most frequent first, with what the reason means."""
    rows = [
        {"reason": reason, "rejects": count, "meaning": MEANINGS[Reason(reason)]}
        for reason, count in totals.most_common()
    ]
    return table(rows, {"reason": "string", "rejects": "int", "meaning": "string"})


def _rows_by_file(manifest: Manifest) -> list[dict[str, Any]]:
    """One row per annotation file, those with the most rejects first."""
    files: dict[str, dict[str, Any]] = {}
    for shard in manifest.shards:
        rejects = shard.rows_by_source(rejects=True)
        for source, rows in shard.rows_by_source().items():
            row = files.setdefault(source, {"file": source, "rows": 0, "rejects": 0, "shards": 0})
            row["rows"] += rows
            row["rejects"] += rejects[source]
            row["shards"] += 1
    return sorted(files.values(), key=lambda row: (-row["rejects"], row["file"]))


def _first_rows(snapshot: Snapshot) -> pa.Table:
    with open_parquet(snapshot.paths()[0]) as file:
        named = [name for name in file.schema_arrow.names if not name.endswith(_NOT_FOR_READING)]
        return pa.Table.from_batches([next(file.iter_batches(batch_size=NUM_PREVIEWED, columns=named))])


def check_results(
    stage: Stage, snapshot: Snapshot, parent: Snapshot | None, settings: Settings, before: Snapshot | None = None
) -> Iterator[dg.AssetCheckResult]:
    """The results of a stage's checks, in the order of `check_specs`; `before` as for `file_checks`."""
    for invariant in INVARIANTS[stage]:
        violations = invariant.violations(snapshot.manifest, parent.manifest if parent else None)
        yield dg.AssetCheckResult(
            check_name=invariant.name,
            passed=not any(violations.values()),
            description=_counted(invariant, violations),
            metadata={name.replace(" ", "_"): count for name, count in violations.items()},
        )
    if stage is Stage.TOKENIZED:
        yield _too_long_result(snapshot.manifest, settings.max_length)
    yield from file_checks(stage, snapshot, parent, settings, before)


def _counted(invariant: Invariant, violations: dict[str, int]) -> str:
    """The counted violations, such as `0 lines not read, 2 pairs unaccounted; broken: Every line gave …`."""
    counted = ", ".join(f"{count:,} {name}" for name, count in violations.items())
    return f"{counted}; broken: {invariant.description}" if any(violations.values()) else counted


def _too_long_result(manifest: Manifest, max_length: int) -> dg.AssetCheckResult:
    num_too_long, num_pairs = reason_totals(manifest)[Reason.TOO_LONG], manifest.num_rows()
    num_pairs += manifest.num_rows(rejects=True)
    passed = num_too_long <= MAX_TOO_LONG * num_pairs
    text = f"{num_too_long:,} of {num_pairs:,} pairs are longer than max_length, {max_length:,} tokens"
    advice = ": raise max_length, or set over_long to drop_turns, or the model learns only from short conversations"
    return dg.AssetCheckResult(
        check_name=TOO_LONG_CHECK,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=text if passed else text + advice,
        metadata={"too_long": num_too_long},
    )


def rejects_result(snapshot: Snapshot, before: Snapshot | None = None) -> dg.MaterializeResult:
    """The materialization of all rejects: changes since `before`, tables by stage, reason and file, and examples."""
    by_file = rejects_by_file(snapshot)
    counts, num_rows = _reject_counts(snapshot)
    by_stage, reasons = Counter[str](), Counter[str]()
    for (stage, reason), count in counts.items():
        by_stage[stage] += count
        reasons[reason] += count
    stages = [{"stage": stage.value, "rejects": by_stage[stage.value]} for stage in Stage]
    num_in = snapshot.manifest.total("num_in")
    return dg.MaterializeResult(
        data_version=dg.DataVersion(snapshot.name),
        metadata={
            "dagster/row_count": num_rows,
            **reject_changes_metadata(before, snapshot),
            "rejects_by_stage": table(stages, {"stage": "string", "rejects": "int"}),
            **({"rejects_by_reason": _reasons_table(reasons)} if reasons else {}),
            "rejects_by_file": rejects_table(by_file),
            "rejects": table(_examples(snapshot, by_file), {"file": "string", "line": "int", "why": "string"}),
            **location_metadata(snapshot.directory),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name="rejects_are_complete",
                passed=num_rows == num_in,
                description=f"{num_rows:,} rejects are here; all stages together have {num_in:,}.",
                metadata={"rejects_of_all_stages": num_in, "rejects_here": num_rows},
            )
        ],
    )


def _examples(snapshot: Snapshot, by_file: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few rejects of each file and reason, for as many as the page shows; valid lines held back are one row."""
    causes = [row for row in by_file if not is_collateral(row)]
    room = {(row["file"], row["reason"]): NUM_EXAMPLES for row in causes[: MAX_ROWS // NUM_EXAMPLES]}
    shown: list[dict[str, Any]] = []
    for path in snapshot.paths():
        for rows in read_batches(path, schemas.REJECTS, ["source", "line", "reason", "detail"]):
            for (source, reason), number in room.items():
                is_of_it = pc.and_(pc.equal(rows["source"], source), pc.equal(rows["reason"], reason))
                for row in rows.filter(is_of_it).slice(0, number).to_pylist():
                    room[source, reason] -= 1
                    why = f"{reason}: {row['detail']}".removesuffix(": ")
                    shown.append({"file": source, "line": row["line"], "why": why})
    shown.sort(key=lambda row: (row["file"], row["line"]))
    shown += [
        {"file": row["file"], "why": f"{row['rejects']:,} {row['example']}"} for row in by_file if is_collateral(row)
    ]
    num_shown = sum(NUM_EXAMPLES - left for left in room.values())
    more = sum(row["rejects"] for row in causes) - num_shown
    return [*shown, *([{"file": f"… {more:,} more rows, in the Parquet file"}] if more else [])]


def _reject_counts(snapshot: Snapshot) -> tuple[Counter[tuple[str, str]], int]:
    """Rejects counted by (stage, reason) and in all; read a row group at a time."""
    counts: Counter[tuple[str, str]] = Counter()
    for path in snapshot.paths():
        for rows in read_batches(path, schemas.REJECTS, ["stage", "reason"]):
            grouped = rows.group_by(["stage", "reason"]).aggregate([([], "count_all")]).to_pylist()
            counts.update({(row["stage"], row["reason"]): row["count_all"] for row in grouped})
    return counts, counts.total()
