"""Sends the curves of a training to TensorBoard or Weights & Biases, if the setting `tracking` says so."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rm_assets.settings import TrainingSettings
from rm_assets.training.jobs.training_job import TrainingError

Tracker = Callable[[Mapping[str, float]], object]
"""Takes a line of `metrics.jsonl`: a step's number under "step", and figures by name."""

TENSORBOARD = "tensorboard"


def open_tracker(settings: TrainingSettings, directory: Path, name: str, configuration: Mapping[str, Any]) -> Tracker:
    """A tracker for the training called `name`, which may resume an earlier attempt.

    TensorBoard's files are written to `directory`; Weights & Biases takes account and project from its own environment
    variables. Raises TrainingError if the package is missing.
    """
    try:
        if settings.tracking == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            return _tensorboard(SummaryWriter(str(directory / TENSORBOARD)))
        if settings.tracking == "wandb":
            import wandb

            run = wandb.init(id=name, name=name, resume="allow", dir=str(directory), config=dict(configuration))
            return lambda line: run.log({**_figures(line)}, step=int(line["step"]))
    except ImportError:
        raise TrainingError(
            f"tracking is {settings.tracking!r}, which is not installed: pip install 'rm_assets[{settings.tracking}]'"
        ) from None
    return lambda line: None


def _tensorboard(writer: Any) -> Tracker:
    def take(line: Mapping[str, float]) -> None:
        for name, value in _figures(line).items():
            writer.add_scalar(name, value, int(line["step"]))
        writer.flush()

    return take


def _figures(line: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name != "step"}
