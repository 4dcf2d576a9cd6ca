"""What the UI shows of reward_model: its metrics, its training curves, and whether its files are intact."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic_core import to_jsonable_python

from rm_assets.defs.project import Project
from rm_assets.defs.results.changes import verdict_changes_metadata
from rm_assets.defs.results.metadata import figures_table, location_metadata, numbers
from rm_assets.defs.results.plots import markdown_picture, training_curves
from rm_assets.defs.snapshots.models import ASSET, ModelSnapshot, training_steps
from rm_assets.display_text import as_code
from rm_assets.settings import Settings, setting_fields
from rm_assets.training.jobs.result import FEW_STEPS, GOLDEN, MODEL, TrainingResultError, few_steps_warning, read_result

_FOLLOWED = (
    *("test_accuracy", "test_accuracy_low", "test_accuracy_high", "test_loss", "train_loss", "train_pairs"),
    "pairs_per_second",
)
"""The figures shown as single numbers, which Dagster plots over time; with losses and accuracies of other pairs."""
_FOLLOWED_ENDS = ("_loss", "_accuracy", "_accuracy_low", "_accuracy_high")

_NAMED = {"saved_by_sharing": "share_saved_by_sharing", "padding": "share_of_padding", "seconds": "training_seconds"}
"""Figures whose own names are unclear outside of the report."""

MODEL_CHECKS = [
    dg.AssetCheckSpec(
        "files_match_their_hashes",
        asset=ASSET,
        description="Every file of the model is byte for byte what the training job wrote.",
        blocking=True,
    ),
    dg.AssetCheckSpec(
        "optimizer_steps_are_enough",
        asset=ASSET,
        description=f"Training had at least {FEW_STEPS} optimizer steps: fewer hardly change a pretrained model.",
    ),
]


def model_result(model: ModelSnapshot, project: Project, before: ModelSnapshot | None) -> dg.MaterializeResult:
    """The materialization of a model: its training curves, its metrics, what it was made from, its location, and the
    held-out pairs that it ranks differently from the model `before`."""
    curves = markdown_picture(training_curves(training_steps(model)), "loss and accuracy by optimizer step")
    directory = model.directory / MODEL
    golden = json.loads((directory / GOLDEN).read_text(encoding="utf-8"))
    figures = {_NAMED.get(name, name): value for name, value in numbers(model.manifest["metrics"]).items()}
    names = dict.fromkeys([*_FOLLOWED, *(name for name in figures if name.endswith(_FOLLOWED_ENDS))])
    followed = {name: figures.pop(name) for name in names if name in figures}
    figures |= numbers({"largest_bfloat16_difference": golden["largest_bfloat16_difference"]})
    figures["golden_conversations"] = len(golden["conversations"])
    return dg.MaterializeResult(
        data_version=dg.DataVersion(model.directory.name),
        metadata={
            "training_curves": dg.MetadataValue.md(curves),
            **followed,
            "head": model.manifest["metrics"].get("head", "not recorded"),  # as in older manifests
            "base_model": "a toy with random weights" if project.model.toy else project.model.name,
            "tokenizer": project.settings.tokenizer or project.settings.model or "built-in",
            "settings": dg.MetadataValue.json(changed_settings(project.settings)),
            "model_card": dg.MetadataValue.md(_card(directory)),
            "figures": figures_table(figures),
            **verdict_changes_metadata(before, model),  # tables of up to 100 rows
            "packing": model.manifest["metrics"]["packing_reason"],
            "precision": model.precision,
            "trained_now": model.trained_now,
            "data_snapshot": model.manifest["data_snapshot"],
            "versions": dg.MetadataValue.json(model.manifest["versions"]),
            **location_metadata(directory),
        },
        check_results=[_hashes(model), _steps(model)],
    )


def changed_settings(settings: Settings) -> dict[str, Any]:
    """The settings that differ from their defaults, as JSON: those of the environment, of run config and the sample."""
    values = settings.model_dump(mode="json")
    values |= values.pop("training") | values.pop("launch")
    defaults = {name: to_jsonable_python(field.default) for name, field in setting_fields()}
    return {name: value for name, value in values.items() if value != defaults[name]}


def _card(directory: Path) -> str:
    """The model card without its front matter, which is for the Hub."""
    return (directory / "README.md").read_text(encoding="utf-8").partition("\n---\n")[2].strip()


def _hashes(model: ModelSnapshot) -> dg.AssetCheckResult:
    """Hash the files where they are published; they were verified before they were moved there."""
    try:
        files = read_result(model.directory, model.key)["files"]
        problem = ""
    except TrainingResultError as error:
        files, problem = model.manifest["files"], as_code(str(error), limit=1000)
    return dg.AssetCheckResult(
        check_name="files_match_their_hashes",
        passed=not problem,
        description=problem or f"{len(files)} files match the manifest.",
        metadata={"files": len(files)},
    )


def _steps(model: ModelSnapshot) -> dg.AssetCheckResult:
    num_steps = int(model.manifest["metrics"]["num_steps"])
    warning = few_steps_warning(num_steps)
    return dg.AssetCheckResult(
        check_name="optimizer_steps_are_enough",
        passed=not warning,
        severity=dg.AssetCheckSeverity.WARN,
        description=warning or f"{num_steps:,} optimizer steps.",
        metadata={"num_steps": num_steps},
    )
