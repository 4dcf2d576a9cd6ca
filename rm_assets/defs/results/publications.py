"""What the UI shows of published_reward_model: where the model is on the Hub, and which commit pushed it."""

import dagster as dg

from rm_assets.defs.results.metadata import location_metadata
from rm_assets.defs.snapshots.publications import Publication


def publication_result(publication: Publication) -> dg.MaterializeResult:
    """The materialization; its data version changes with what is on the Hub."""
    shown: dict[str, dg.MetadataValue | str] = {}
    for repository, pushed in publication.pushed.items():
        kind = "data" if repository.startswith("datasets/") else "model"
        shown[f"{kind}_url"] = dg.MetadataValue.url(pushed.url.partition("/commit/")[0])
        shown[f"{kind}_commit"] = dg.MetadataValue.url(pushed.url)
        shown[f"{kind}_pushed_now"] = dg.MetadataValue.bool(pushed.now)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(publication.snapshot.name),
        metadata={
            **shown,
            "promoted_model": publication.model.directory.name,
            **location_metadata(publication.snapshot.directory),
        },
    )
