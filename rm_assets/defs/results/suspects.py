"""What the UI shows of suspect_annotations: counts by file and the most suspect labels, never their text."""

import dagster as dg

from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.snapshots import DATA, Snapshot
from rm_assets.data.tables import schemas
from rm_assets.defs.results.metadata import location_metadata, table
from rm_assets.defs.snapshots.suspects import JSONL_FILE

NUM_SHOWN = 50


def suspects_result(snapshot: Snapshot) -> dg.MaterializeResult:
    """The materialization: suspect labels by file, the most suspect ones, and the location of all."""
    rows = read_table(snapshot.paths(DATA), schemas.SUSPECTS)
    by_file = rows.group_by("source").aggregate([([], "count_all")]).sort_by([("count_all", "descending")])
    named = ("source", "line", "margin", "suspicion", "pair_id")  # the hash last, as it is wide
    first = [{name: row[name] for name in named} for row in rows.slice(0, NUM_SHOWN).to_pylist()]
    shown = [{**row, "margin": round(row["margin"], 3), "suspicion": round(row["suspicion"], 3)} for row in first]
    files = [{"file": row["source"], "suspects": row["count_all"]} for row in by_file.to_pylist()]
    return dg.MaterializeResult(
        data_version=dg.DataVersion(snapshot.name),
        metadata={
            "num_suspects": rows.num_rows,
            "judged_pairs": snapshot.manifest.total("num_pairs"),
            "folds": snapshot.manifest.total("num_folds"),
            "suspects_by_file": table(files, {"file": "string", "suspects": "int"}),
            "suspects": table(shown, dict(zip(named, ("string", "int", "float", "float", "string"), strict=True))),
            "jsonl": dg.MetadataValue.path(str(snapshot.directory / JSONL_FILE)),
            **location_metadata(snapshot.directory),
        },
    )
