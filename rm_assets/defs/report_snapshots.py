"""The report of a model as a snapshot: one Parquet of slices, its figures in the manifest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rm_assets.data import records
from rm_assets.data.fingerprint import fingerprint
from rm_assets.data.parquet import read_table
from rm_assets.data.publication import publication, stage_shard, tables_writer
from rm_assets.data.records import Stage
from rm_assets.data.snapshots import DATA, Snapshot, SnapshotError, parent_snapshot, read_snapshot
from rm_assets.defs.model_snapshots import ModelSnapshot
from rm_assets.settings import Settings

VERSION = 2
ASSET = "reward_model_report"
_SLICES = ["source", "line", "pair_id", "format", "num_turns", "subset"]


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """A published report, with what its pictures are drawn from."""

    snapshot: Snapshot
    report: Any  # rm_assets.training.report.Report, on the test split
    table: Any  # data frame with the schema records.REPORT, evaluation sets included
    scores: Any  # data frame of the test pairs


def written_report(settings: Settings, model: ModelSnapshot, say: Callable[[str], object]) -> WrittenReport:
    """Evaluate the model's held-out scores and publish the result."""
    import pandas as pd

    from rm_assets.training.report import reward_model_report
    from rm_assets.training.result import SCORES_FILE

    storage = Path(settings.storage)
    scores = pq.read_table(model.directory / SCORES_FILE).to_pandas()
    validated = scored_preferences(storage, model.manifest["data_snapshot"])
    slices = read_table(validated.paths(), records.VALIDATED, _SLICES).to_pandas()
    report = reward_model_report(scores, slices)
    rows = [report.table, *_evaluation_rows(scores, slices)]
    key = fingerprint(ASSET, VERSION, model.key, model.manifest["files"][SCORES_FILE], validated.name)
    table = pa.Table.from_pandas(pd.concat(rows), schema=records.REPORT, preserve_index=False)
    with publication(storage, ASSET, settings.keep_snapshots, say) as turn:
        shard = turn.find(key) or stage_shard(
            turn.directory, ASSET, "", key, tables_writer({DATA: table}, dict(report.metrics))
        )
        inputs = {"reward_model": model.directory.name, Stage.VALIDATED: validated.name}
        snapshot = turn.publish([shard], inputs, {})
    rows = read_table(snapshot.paths(), records.REPORT).to_pandas()
    return WrittenReport(snapshot=snapshot, report=report, table=rows, scores=scores[scores["split"] == "test"])


def _evaluation_rows(scores: Any, slices: Any) -> Iterator[Any]:
    """The report's rows of each evaluation set: all its pairs, and by subset."""
    from rm_assets.training.job import EVALUATION
    from rm_assets.training.report import reward_model_report

    for split in sorted(set(scores["split"])):
        if split.startswith(EVALUATION):
            rows = reward_model_report(scores, slices, split).table
            yield rows[rows["slice"].isin(["all", "subset"])].assign(slice=split)


def scored_preferences(storage: Path, padded: str) -> Snapshot:
    """The validated snapshot that a padded one came from, by the inputs that each manifest names."""
    try:
        snapshot = read_snapshot(storage / Stage.PADDED / padded)
    except FileNotFoundError:
        raise SnapshotError(f"padded_pairs {padded!r}, which the model was trained on, is gone: train anew") from None
    for stage in (Stage.TOKENIZED, Stage.FLATTENED, Stage.VALIDATED):
        snapshot = parent_snapshot(storage, snapshot, stage)
    return snapshot
