"""The report of a model as a snapshot: slices, pairs and calibration as Parquet, and beside them JSON and PNG files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import pyarrow as pa

from rm_assets.data.storage.files import read_file
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.snapshots import DATA, Snapshot, SnapshotError
from rm_assets.data.storage.writing import write_file, write_json
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.launchers.resource import AssetRun
from rm_assets.defs.snapshots.models import ModelSnapshot, training_steps
from rm_assets.defs.snapshots.rescoring import (
    num_incomplete_lines,
    pair_facts,
    pair_key,
    preferences_of,
    rescore_pairs,
    sample_pairs,
    trained_on,
)
from rm_assets.training.jobs.result import SCORES_FILE, read_scores

VERSION = 6
ASSET = "reward_model_report"
PAIRS = "pairs"
CALIBRATION = "calibration"
HISTORY_FILE = "history.json"
REPORT_FILE = "report.json"
_HISTORY_FIGURES = ("num_pairs", "accuracy", "accuracy_low", "accuracy_high", "log_loss")


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """A published report: its figures, its tables as data frames, and what its plots need besides.

    `table`, `pairs` and `calibration` have the schemas schemas.REPORT, REPORT_PAIRS and CALIBRATION; `history` has a
    row per reported model, oldest first; `steps` are the lines of the training's metrics.jsonl; `precision` says how
    the scores were computed.
    """

    snapshot: Snapshot
    metrics: dict[str, Any]
    table: Any
    pairs: Any
    calibration: Any
    history: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    precision: str

    @property
    def judged_on(self) -> str:
        """The pairs that the figures are about, in words."""
        return "test pairs" if (self.pairs["split"] == "test").any() else "pairs of the evaluation sets"


def write_report(run: AssetRun, model: ModelSnapshot) -> WrittenReport:
    """Evaluate the model's held-out scores, score the prompt baselines, and publish; unchanged inputs cost nothing."""
    project, settings = run.project, run.project.settings
    validated = project.ancestor(trained_on(project, model), Stage.VALIDATED)
    limits = [settings.max_rescored_pairs, settings.max_length]
    key = fingerprint(ASSET, VERSION, model.key, model.manifest["files"][SCORES_FILE], validated.name, limits)
    with open_publication(
        project.storage, ASSET, settings.keep_snapshots, run.log.info, settings.verify
    ) as publication:
        history = _read_history(publication.directory / HISTORY_FILE)
        inputs = {"reward_model": model.directory.name, Stage.VALIDATED: validated.name}
        snapshot = publication.publish_tables(key, lambda: _evaluate(run, model, validated), inputs)
        metrics = snapshot.manifest.shards[0].stats
        history = _update_history(publication.directory / HISTORY_FILE, history, model, metrics)
    return WrittenReport(
        snapshot=snapshot,
        metrics=metrics,
        table=read_table(snapshot.paths(DATA), schemas.REPORT).to_pandas(),
        pairs=read_table(snapshot.paths(PAIRS), schemas.REPORT_PAIRS).to_pandas(),
        calibration=read_table(snapshot.paths(CALIBRATION), schemas.CALIBRATION).to_pandas(),
        history=history,
        steps=training_steps(model),
        precision=model.precision,
    )


def _evaluate(run: AssetRun, model: ModelSnapshot, validated: Snapshot) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """The report's tables by folder, and its figures."""
    from rm_assets.training.report.reward_model_report import build_report

    scores = read_scores(model.directory)
    held_out = scores[scores["split"] != "validation"]
    preferences = preferences_of(validated, set(held_out["pair_id"]))
    baselines = _prompt_baselines(run, model, held_out, preferences)
    report = build_report(scores, pair_facts(validated, preferences), baselines)
    num_left_out = num_incomplete_lines(validated, set(held_out["pair_id"]))
    figures = {**report.metrics, **({"num_incomplete_lines": num_left_out} if num_left_out else {})}
    frames = {
        DATA: (report.table, schemas.REPORT),
        PAIRS: (report.pairs, schemas.REPORT_PAIRS),
        CALIBRATION: (report.calibration, schemas.CALIBRATION),
    }
    return {
        folder: pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
        for folder, (frame, schema) in frames.items()
    }, figures


def _prompt_baselines(run: AssetRun, model: ModelSnapshot, held_out: Any, preferences: pa.Table) -> Any:
    """The prompt baselines on a sample of each held-out set; prompts are exchanged within a set."""
    from rm_assets.training.report.baselines import baseline_results, prompt_variants

    rows = {pair_key(row): row for row in preferences.to_pylist()}
    variants = []
    for _, pairs in held_out.groupby("split", sort=True):
        keys = map(pair_key, sample_pairs(pairs, run.project.settings.max_rescored_pairs).to_dict("records"))
        variants += prompt_variants([rows[key] for key in dict.fromkeys(keys)])
    run.log.info(f"scoring {len(variants)} pairs with another prompt or none, for the baselines")
    scored = rescore_pairs(run, model, variants)
    if problems := int((scored["problem"] != "").sum()):
        run.log.info(f"{problems} of them have no score, for example: {scored['problem'].max()}")
    return baseline_results(scored)


class _Row(TypedDict):
    model: str
    data_snapshot: str
    time: str
    num_pairs: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    log_loss: float


def _read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of all models so far; raises SnapshotError if the file is damaged, as it cannot be rebuilt."""
    try:
        return [dict(row) for row in msgspec.json.decode(read_file(path), type=list[_Row])]
    except FileNotFoundError:
        return []
    except (msgspec.MsgspecError, IsADirectoryError) as error:
        raise SnapshotError(
            f"{str(path)!r} cannot be read ({error}): restore it, or remove it to begin a new history"
        ) from None


def _update_history(
    path: Path, rows: list[dict[str, Any]], model: ModelSnapshot, metrics: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Write the history with this model's row at its end; a model that is reported on again keeps one row.

    The history is not part of the snapshot, whose name must not depend on earlier runs.
    """
    if not rows or rows[-1]["model"] != model.directory.name:
        rows = [row for row in rows if row["model"] != model.directory.name]
        row = {"model": model.directory.name, "data_snapshot": model.manifest["data_snapshot"]}
        row |= {"time": datetime.now(UTC).isoformat(timespec="seconds")}
        rows.append(row | {name: metrics[name] for name in _HISTORY_FIGURES})
        write_json(path, rows)
    return rows


def write_derived_files(snapshot: Snapshot, files: Mapping[str, bytes], log: Callable[[str], object]) -> None:
    """Write files derived from the data for people and other programs into the snapshot's directory."""
    written = 0
    for name, content in files.items():
        path = snapshot.directory / name
        if not path.exists() or path.read_bytes() != content:
            write_file(path, content)
            written += 1
    if written:
        log(f"wrote {written} files of the report to {snapshot.directory}")
