"""Prints the results of a successful command-line run as its last lines.

The lines are read from what the run's steps recorded in Dagster: the metadata and the checks that the UI shows, too.
"""

import atexit
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import click
from dagster import AssetCheckEvaluation, AssetCheckSeverity, DagsterEventType, DagsterInstance

from rm_assets.display_text import one_line, printable

_WARNING_CHARACTERS = 400
_NUM_REASONS = 4
_MATERIALIZE = "dagster asset materialize -m rm_assets.definitions --select"
BUILT_IN_SAMPLE = "the built-in sample"
"""What `raw_preferences` shows as its annotations when the setting is unset."""
Figures = Mapping[str, Any]
"""The metadata of one asset."""


def is_command_of_a_user() -> bool:
    """Whether a person's command runs in this process, not one of Dagster's own, such as that of a run of the UI."""
    context = click.get_current_context(silent=True)
    return context is not None and " api " not in f"{context.command_path} "


def print_summary_at_exit(instance: DagsterInstance, run_id: str) -> None:
    """On the command line, have the summary of a run whose steps all succeeded printed when the process ends."""
    if is_command_of_a_user() and (lines := list(summary(instance, run_id))):
        atexit.register(print, *lines, sep="\n", flush=True)


def summary(instance: DagsterInstance, run_id: str) -> Iterator[str]:
    """The result, the warnings, the model, the rejects and what to do next; nothing of a run with a failed step."""
    if instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE):
        return
    shown = _figures(instance, run_id)
    if not shown:
        return
    warnings = list(failed_warnings(instance, run_id)) or ["none"]
    labelled = [
        ("result", _result(shown)),
        *(("warnings", text) for text in warnings),
        ("model", _model(shown)),
        ("published", _published(shown)),
        ("rejects", _rejects(shown)),
        ("next", _next(shown)),
    ]
    yield from _lines(labelled)


def results_of_failed_run(instance: DagsterInstance, run_id: str) -> Iterator[str]:
    """What a run trained and evaluated before it failed, such as a model that is not promoted."""
    shown = _figures(instance, run_id)
    if "reward_model" in shown:
        result = _result(shown) if "reward_model_report" in shown else ""
        yield from _lines([("result", result), ("model", _model(shown))])


def _lines(labelled: Iterable[tuple[str, str]]) -> Iterator[str]:
    return (f"{label:<9} {printable(text)}" for label, text in labelled if text)


def failed_warnings(instance: DagsterInstance, run_id: str) -> Iterator[str]:
    """A line for each check of the run that failed as a warning."""
    for _, check in failed_checks(instance, run_id):
        if check.severity == AssetCheckSeverity.WARN:
            text = one_line(check.description or "")
            yield f"{check.check_name}: {textwrap.shorten(text, _WARNING_CHARACTERS, placeholder=' …')}"


def failed_checks(instance: DagsterInstance, run_id: str) -> Iterator[tuple[str, AssetCheckEvaluation]]:
    """The checks of the run that failed, each with its step."""
    for entry in instance.all_logs(run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION):
        event = entry.get_dagster_event()
        if not event.asset_check_evaluation_data.passed:
            yield str(event.step_key), event.asset_check_evaluation_data


def _figures(instance: DagsterInstance, run_id: str) -> dict[str, Figures]:
    """The metadata of each asset that the run materialized."""
    found: dict[str, Figures] = {}
    for entry in instance.all_logs(run_id, of_type=DagsterEventType.ASSET_MATERIALIZATION):
        materialization = entry.get_dagster_event().step_materialization_data.materialization
        metadata = {name: value.value for name, value in materialization.metadata.items()}
        found[materialization.asset_key.to_user_string()] = metadata
    return found


def _result(shown: Mapping[str, Figures]) -> str:
    if report := shown.get("reward_model_report"):
        interval = f"95 %: {report['accuracy_low']:.3f} to {report['accuracy_high']:.3f}"
        longer = f"; the longer reply wins in {report['longer_wins']:.3f}" if "longer_wins" in report else ""
        return f"{report['accuracy']:.3f} of {report['num_pairs']:,} test pairs ranked right ({interval}){longer}"
    if pairs := shown.get("padded_pairs"):
        splits = ", ".join(f"{pairs[f'{split}_pairs']:,} {split}" for split in ("train", "validation", "test"))
        return f"pairs: {splits} ({pairs['path']})"
    return f"materialized {', '.join(shown)}"


def _model(shown: Mapping[str, Figures]) -> str:
    if not (model := shown.get("reward_model")):
        return ""
    states = ["trained now" if model["trained_now"] else "not trained again: nothing changed"]
    if promotion := shown.get("promoted_reward_model"):
        states.append(promotion["verdict"])
        if promotion["verdict"] != "promoted":
            states[-1] += f": {promotion['reason']}"
    return f"{model['path']} ({'; '.join(states)}); its README.md tells how to use it"


def _published(shown: Mapping[str, Figures]) -> str:
    pushed = shown.get("published_reward_model", {})
    return ", ".join(
        f"{pushed[f'{kind}_url']} ({'pushed now' if pushed[f'{kind}_pushed_now'] else 'nothing changed'})"
        for kind in ("model", "data")
        if f"{kind}_url" in pushed
    )


def _rejects(shown: Mapping[str, Figures]) -> str:
    if not (rejects := shown.get("rejected_annotations")):
        return ""
    num_rejects, lines = rejects["dagster/row_count"], shown.get("raw_preferences", {}).get("lines")
    counted = f"{num_rejects:,} rejects of {lines:,} lines" if lines else f"{num_rejects:,} rejects"
    if not num_rejects:
        return counted
    reasons = [record.data for record in rejects["rejects_by_reason"].records]
    named = [f"{row['rejects']:,} {row['reason']}" for row in reasons[:_NUM_REASONS]]
    return f"{counted}: {', '.join(named + ['…'] * (len(reasons) > _NUM_REASONS))} ({rejects['path']})"


def _next(shown: Mapping[str, Figures]) -> str:
    """What a user most likely wants to do after such a run."""
    advice: list[tuple[bool, Callable[[], str]]] = [
        (
            shown.get("raw_preferences", {}).get("annotations") == BUILT_IN_SAMPLE,
            lambda: f"your own data: RM_ANNOTATIONS=my.jsonl RM_MODEL=Qwen/Qwen3-0.6B {_MATERIALIZE} '*'",
        ),
        (
            "reward_model" in shown,
            lambda: f"score pairs: python -m rm_assets.training.score {shown['reward_model']['path']} pairs.jsonl",
        ),
        ("padded_pairs" in shown, lambda: f"train: {_MATERIALIZE} 'reward_model*'"),
    ]
    command = next((text() for applies, text in advice if applies), "")
    return "; ".join(filter(None, [command, "see it in the UI: dagster dev"]))
