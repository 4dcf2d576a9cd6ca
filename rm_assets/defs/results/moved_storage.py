"""Whether a run uses a different storage from the one that the catalog shows, as an experiment does.

An asset has one entry in Dagster's catalog, whatever storage a run writes to: the latest run replaces it.
"""

from pathlib import Path
from typing import Any

import dagster as dg

_KEY = "storage"


def storage_metadata(storage: Path) -> dict[str, Any]:
    """The storage of a materialization, which later ones are compared with."""
    return {_KEY: dg.MetadataValue.path(str(storage.resolve()))}


def moved_storage(context: dg.AssetExecutionContext, storage: Path) -> str:
    """A warning if the catalog shows this asset in another storage; empty otherwise.

    Compared is the last materialization that has `storage_metadata`.
    """
    before = context.instance.get_latest_materialization_event(context.asset_key)
    shown = before.asset_materialization.metadata.get(_KEY) if before and before.asset_materialization else None
    if shown is None or shown.value == (now := str(storage.resolve())):
        return ""
    return (
        f"{context.asset_key.to_user_string()} was in {shown.value} and is in {now} now, which the catalog shows from "
        "this run on: run again with the former storage to show that one, and use a separate "
        "DAGSTER_HOME for experiments"
    )
