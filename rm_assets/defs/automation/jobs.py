"""The jobs: refresh the data, train a model, do both, find suspect labels. Sensor and schedule launch the first two."""

from typing import Any

import dagster as dg

from rm_assets.defs.assets.training import (
    promoted_reward_model,
    published_reward_model,
    reward_model,
    reward_model_report,
    suspect_annotations,
)

# A run whose process died is retried once and reuses its finished shards and checkpoints. A failed step is not retried
# by Dagster, as it would fail again: the sensor requests it a few times, the schedule the next night. The last tag is
# for instances whose dagster.yaml does not say so.
_RETRIES = {
    "dagster/max_retries": "1",
    "dagster/retry_strategy": "ALL_STEPS",
    "dagster/retry_on_asset_or_op_failure": "false",
}


def _launchpad(*settings: str) -> dict[str, Any]:
    """Config with which a job's launchpad begins: the settings most often changed there, null for not given.

    On a line of its own below them, Ctrl+Space lists the others.
    """
    return {"resources": {"project": {"config": dict.fromkeys(settings)}}}


TRAINS = "rm_assets/trains"
"""The tag of jobs that train, for the limits of a run queue."""

refresh_data = dg.define_asset_job(
    "refresh_data",
    selection=dg.AssetSelection.groups("annotations", "preparation"),
    description="Reads new and changed annotation files and prepares their pairs. Trains nothing.",
    config=_launchpad("annotations", "max_length"),
    tags=_RETRIES,
)

train_model = dg.define_asset_job(
    "train_model",
    selection=[reward_model, reward_model_report, promoted_reward_model, published_reward_model],
    description="Trains on the newest padded_pairs if they or the settings changed, reports, promotes, publishes.",
    config=_launchpad("epochs", "learning_rate"),
    tags={**_RETRIES, TRAINS: "true"},
)

everything = dg.define_asset_job(
    "everything",
    selection=dg.AssetSelection.all(),
    description="Everything that is not up to date, from the annotation files to the promoted model.",
    config=_launchpad("annotations", "epochs", "learning_rate", "max_length", "model"),
    tags={**_RETRIES, TRAINS: "true"},
)

suspect_labels = dg.define_asset_job(
    "suspect_labels",
    selection=[suspect_annotations],
    description="Finds suspect labels in the newest padded_pairs; set suspect_folds in the launchpad.",
    config=_launchpad("suspect_folds"),
)
