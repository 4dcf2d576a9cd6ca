"""The jobs: refresh the data, train on them, or both. Each is run by hand, by the sensor or by the schedule."""

import dagster as dg

from rm_assets.defs.assets.data import (
    annotation_files,
    flattened_conversations,
    padded_pairs,
    raw_preferences,
    rejected_annotations,
    tokenized_pairs,
    validated_preferences,
)
from rm_assets.defs.assets.training import promoted_reward_model, reward_model, reward_model_report

# A run whose process died is started once more, and finds what it had done. A step that failed is not repeated by
# Dagster, as it would fail again: the sensor asks a few times, the schedule the next night. The last tag says so where
# an instance's own dagster.yaml does not.
_RETRIES = {
    "dagster/max_retries": "1",
    "dagster/retry_strategy": "ALL_STEPS",
    "dagster/retry_on_asset_or_op_failure": "false",
}
TRAINS = "rm_assets/trains"
"""The tag that tells jobs which train from others, for the limits of a run queue."""

refresh_data = dg.define_asset_job(
    "refresh_data",
    selection=[
        annotation_files,
        raw_preferences,
        validated_preferences,
        flattened_conversations,
        tokenized_pairs,
        padded_pairs,
        rejected_annotations,
    ],
    description="Reads the annotation files and prepares their pairs, as far as they are new. Trains nothing.",
    tags={**_RETRIES, TRAINS: "false"},
)

train_model = dg.define_asset_job(
    "train_model",
    selection=[reward_model, reward_model_report, promoted_reward_model],
    description="Trains on the newest padded_pairs if they or the settings changed, then reports and promotes.",
    tags={**_RETRIES, TRAINS: "true"},
)

everything = dg.define_asset_job(
    "everything",
    selection=dg.AssetSelection.all() | dg.AssetSelection.assets(annotation_files),
    description="All of it, from the annotation files to the promoted model, as far as it is new.",
    tags={**_RETRIES, TRAINS: "true"},
)
