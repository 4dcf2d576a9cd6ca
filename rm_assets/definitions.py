"""Dagster entry point: assets, checks, jobs, sensors, schedule and resources."""

import warnings

import dagster as dg

from rm_assets.defs.assets import data, training
from rm_assets.defs.automation import jobs
from rm_assets.defs.automation.alerts import failed_checks, failed_runs
from rm_assets.defs.automation.arrival import new_annotations
from rm_assets.defs.automation.dead_runs import dead_runs
from rm_assets.defs.automation.nightly import nightly_training
from rm_assets.defs.launchers.resource import TrainingLauncher
from rm_assets.defs.project import ProjectResource
from rm_assets.defs.runs.executor import watched_in_process_executor

_KNOWN_WARNINGS = {
    "Parameter `include_sources` of function `AssetSelection.all` is": dg.BetaWarning,
    "Function `PipesMessageReader.expected_writer_count` is": dg.PreviewWarning,
}
"""Warnings about calls that Dagster's own code makes."""


@dg.definitions
def definitions() -> dg.Definitions:
    """What `-m rm_assets.definitions` and workspace.yaml load.

    The graph is a chain and each training is a process of its own, so all steps run in the process of the run.
    """
    for message, category in _KNOWN_WARNINGS.items():
        warnings.filterwarnings("ignore", message=message, category=category)
    return dg.Definitions(
        assets=dg.load_assets_from_modules([data, training]),
        jobs=[jobs.refresh_data, jobs.train_model, jobs.everything, jobs.suspect_labels],
        sensors=[new_annotations, dead_runs, failed_runs, failed_checks],
        schedules=[nightly_training],
        resources={"project": ProjectResource(), "launcher": TrainingLauncher()},
        executor=watched_in_process_executor,
    )
