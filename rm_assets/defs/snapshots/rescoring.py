"""Held-out pairs with their messages, from validated_preferences, and a job that scores pairs with a model."""

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rm_assets.data.sources.evaluation_sets import evaluation_name
from rm_assets.data.stages.validation import EQUAL_CELLS
from rm_assets.data.storage.parquet import open_parquet, read_table, write_table
from rm_assets.data.storage.snapshots import Snapshot, SnapshotError, read_snapshot
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.defs.launchers.resource import AssetRun
from rm_assets.defs.project import Project
from rm_assets.defs.snapshots.models import ModelSnapshot, readable_directory
from rm_assets.training.jobs.result import MANIFEST, MODEL
from rm_assets.training.jobs.scoring_job import PAIRS, SCORED_FILE, ScoringJob

BATCH_SIZE = 16
_RANKING = ["source", "line", "pair_id", "chosen_key", "rejected_key"]


def trained_on(project: Project, model: ModelSnapshot) -> Snapshot:
    """The padded pairs that a model was trained on; raises SnapshotError if they were removed."""
    name = model.manifest["data_snapshot"]
    try:
        return read_snapshot(project.storage / Stage.PADDED / name)
    except FileNotFoundError:
        raise SnapshotError(f"padded_pairs {name!r}, which the model was trained on, is gone: train again") from None


def preferences_of(validated: Snapshot, pair_ids: Collection[str]) -> pa.Table:
    """The rows of these pairs, read a shard at a time: held-out pairs are few, but all messages may be many."""
    wanted = pa.array(sorted(pair_ids), pa.string())
    tables = [schemas.VALIDATED.empty_table()]
    for path in validated.paths():
        found = read_table([path], schemas.VALIDATED, ["pair_id"])["pair_id"]
        if pc.any(keep := pc.is_in(found, wanted)).as_py():
            tables.append(read_table([path], schemas.VALIDATED).filter(keep))
    return pa.concat_tables(tables)


def pair_key(row: Mapping[str, Any]) -> tuple[str, int, str]:
    """The key of a pair in every table. A line with equal replies may give a pair twice: they count as one."""
    return row["source"], row["line"], row["pair_id"]


def pair_facts(validated: Snapshot, preferences: pa.Table) -> Any:
    """A data frame of what the report slices these pairs by, with the places of replies in evaluation sets' rankings.

    A pair that its line repeats has a row for each of its places.
    """
    import pandas as pd

    from rm_assets.training.report.benchmark_rules import PLACES, with_places
    from rm_assets.training.report.slices import KEY, slice_facts

    ranked: pd.DataFrame = with_places(_evaluation_pairs(validated), _equal_cells(validated))
    return slice_facts(preferences).drop_duplicates(KEY).merge(ranked[[*KEY, *PLACES]], how="left", on=KEY)


def num_incomplete_lines(validated: Snapshot, scored: Collection[str]) -> int:
    """How many lines of evaluation sets with several pairs have one that is not scored, being a reject.

    The rules of benchmarks leave these lines out.
    """
    pairs = _evaluation_pairs(validated)
    several = pairs[pairs.duplicated(["source", "line"], keep=False)]
    return len(several[~several["pair_id"].isin(scored)].drop_duplicates(["source", "line"]))


def _evaluation_pairs(validated: Snapshot) -> Any:
    shards = [shard for shard in validated.manifest.shards if evaluation_name(shard.source)]
    paths = [path for shard in shards if (path := validated.data_path(shard))]
    return read_table(paths, schemas.VALIDATED, _RANKING).to_pandas()


def _equal_cells(validated: Snapshot) -> dict[tuple[str, int], set[tuple[int, int]]]:
    """The cells of each line of evaluation sets that have no pair, as validation counted them."""
    return {
        (source, int(line)): {(one, other) for one, other in cells}
        for shard in validated.manifest.shards
        for source, stats in shard.by_source.items()
        for line, cells in stats.get(EQUAL_CELLS, {}).items()
    }


def rescore_pairs(run: AssetRun, model: ModelSnapshot, pairs: Sequence[Mapping[str, Any]]) -> Any:
    """Score these pairs with a model in a job: a data frame with the schema `scoring_job.SCORED`.

    Raises TrainingFailedError if the job ends without a result.
    """
    settings = run.project.settings
    with tempfile.TemporaryDirectory(prefix="rm_assets_scoring_") as name:
        directory, saved = Path(name), model.directory / MODEL
        table = pa.Table.from_pylist([{"variant": "", **pair} for pair in pairs], schema=PAIRS)
        sha256 = write_table(directory / "pairs.parquet", table)
        job = ScoringJob(
            output_directory=name,
            model=str(readable_directory(run.project, saved, directory / MODEL)),
            model_sha256={
                file.removeprefix(f"{MODEL}/"): sha256
                for file, sha256 in model.manifest["files"].items()
                if file.startswith(f"{MODEL}/")
            },
            pairs=str(directory / "pairs.parquet"),
            pairs_sha256=sha256,
            max_length=settings.max_length,
            batch_size=BATCH_SIZE,
        )
        (directory / "job.json").write_text(json.dumps(job.model_dump(), indent=1))
        run.launch(directory / "job.json")
        written = json.loads((directory / MANIFEST).read_bytes())["files"]
        with open_parquet(directory / SCORED_FILE, sha256=written[SCORED_FILE]) as file:
            return file.read().to_pandas()


def sample_pairs(pairs: Any, limit: int) -> Any:
    """At most `limit` rows of a data frame, those with the smallest pair_id: a hash, so a stable random sample."""
    return pairs.sort_values(["pair_id", "source", "line"], kind="stable", ignore_index=True).head(limit)
