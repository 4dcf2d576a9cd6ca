"""Dagster entry point: assets, checks, jobs, sensors, schedule and resources."""

import inspect
import os
import warnings
from typing import Any

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
from rm_assets.defs.runs.failure_reason import print_error_at_exit
from rm_assets.settings import SettingsError
from rm_assets.settings_loading import load_settings

_KNOWN_WARNINGS = {
    "Parameter `include_sources` of function `AssetSelection.all` is": dg.BetaWarning,
    "Function `PipesMessageReader.expected_writer_count` is": dg.PreviewWarning,
}
"""Warnings about calls that Dagster's own code makes."""


class NoValues(dg.IOManager):
    """Refuses values: Dagster's own IO manager would pickle them. Assets read and write files, and return metadata."""

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        self._refuse()

    def load_input(self, context: dg.InputContext) -> None:
        self._refuse()

    def _refuse(self) -> None:
        raise dg.DagsterInvariantViolationError(
            "an asset of rm_assets hands on no value: write files, return a MaterializeResult, and name parents in deps"
        )


@dg.io_manager(description="Refuses values, so that nothing is pickled: assets read and write files themselves.")
def no_values() -> NoValues:
    """The IO manager of all assets."""
    return NoValues()


def _with_code_reference(asset: Any) -> Any:
    """The asset with the file and line of its function, which `dg.with_source_code_references` takes for those of the
    decorator `explained`."""
    body = inspect.unwrap(asset.op.compute_fn.decorated_fn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # code references are beta in Dagster
        place = dg.LocalFileCodeReference(file_path=body.__code__.co_filename, line_number=body.__code__.co_firstlineno)
        references = {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[place])}
    return asset.map_asset_specs(lambda spec: spec.merge_attributes(metadata=references))


@dg.definitions
def definitions() -> dg.Definitions:
    """What `-m rm_assets.definitions` and workspace.yaml load.

    The graph is a chain and each training is a process of its own, so all steps run in the process of the run. Raises
    SettingsError if the environment has a setting that cannot be used.
    """
    try:
        load_settings({}, os.environ)
    except SettingsError as error:
        print_error_at_exit(error)
        raise
    for message, category in _KNOWN_WARNINGS.items():
        warnings.filterwarnings("ignore", message=message, category=category)
    return dg.Definitions(
        assets=[_with_code_reference(asset) for asset in dg.load_assets_from_modules([data, training])],
        jobs=[jobs.refresh_data, jobs.train_model, jobs.everything, jobs.suspect_labels],
        sensors=[new_annotations, dead_runs, failed_runs, failed_checks],
        schedules=[nightly_training],
        resources={"project": ProjectResource(), "launcher": TrainingLauncher(), "io_manager": no_values},
        executor=watched_in_process_executor,
    )
