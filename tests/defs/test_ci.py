"""What a CI relies on: exit codes, the reason in the last line, and the workflow on the page of deployment."""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from audited import COMMAND, AuditedRun

ROOT = Path(__file__).parents[2]


def workflow() -> dict[str, Any]:
    """The workflow on the page of deployment."""
    page = ROOT / "rm_assets" / "defs" / "DEPLOYMENT.md"
    [text] = re.findall(r"```yaml\n(name: .*?)```", page.read_text(), re.DOTALL)
    return dict(yaml.safe_load(text))


def dagster_steps() -> list[dict[str, Any]]:
    [job] = workflow()["jobs"].values()
    return [step for step in job["steps"] if step.get("run", "").startswith("dagster ")]


def dagster(command: str, environment: dict[str, str], directory: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    assert program == "dagster"
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, cwd=directory, capture_output=True, text=True, check=False
    )


def last_line(run: subprocess.CompletedProcess[str]) -> str:
    return run.stderr.rstrip().splitlines()[-1]


def test_the_workflow_has_the_steps_of_one() -> None:
    [job] = workflow()["jobs"].values()
    assert workflow()[True] == {"push": {"paths": ["annotations/**"]}}  # what YAML 1.1 makes of the word `on`
    assert job["runs-on"] and job["timeout-minutes"]
    assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    validate, materialize = dagster_steps()
    assert "definitions validate" in validate["run"] and "asset materialize" in materialize["run"]


@pytest.mark.parametrize("margin", [pytest.param(0.0, marks=pytest.mark.soak), 1e-6])
def test_the_workflow_fails_below_the_accuracy_it_asks_for_and_says_so_last(audited: AuditedRun, margin: float) -> None:
    assert 0 < audited.accuracy < 1 - margin
    _, materialize = dagster_steps()
    environment = {**materialize["env"], **audited.environment}
    assert set(materialize["env"]) == {"RM_ANNOTATIONS", "RM_FAIL_BELOW_ACCURACY"}
    environment["RM_FAIL_BELOW_ACCURACY"] = str(audited.accuracy + margin)
    run = dagster(materialize["run"], environment, audited.directory)
    assert run.returncode == (1 if margin else 0), run.stderr
    if margin:
        assert last_line(run).startswith(
            f"error: reward_model_report: the check accuracy_is_above_chance failed: accuracy {audited.accuracy:.3f}"
        )


def test_a_training_job_that_fails_is_told_in_the_last_line(audited: AuditedRun) -> None:
    command = "dagster asset materialize --select reward_model -m rm_assets.definitions"
    diverging = {"RM_NUM_PROCESSES": "1", "RM_LEARNING_RATE": "1e30", "RM_SEED": "1"}
    run = dagster(command, {**audited.environment, **diverging}, audited.directory)
    assert run.returncode == 1
    assert last_line(run).startswith(
        "error: reward_model: the training job failed: scores of the trained model are not "
    )


# the daemon of test_arrival_daemon loads the workspace, too
@pytest.mark.parametrize(
    "target", ["-m rm_assets.definitions", pytest.param(f"-w {ROOT / 'workspace.yaml'}", marks=pytest.mark.soak)]
)
def test_the_definitions_are_valid_by_module_and_by_workspace(tmp_path: Path, target: str) -> None:
    run = dagster(f"dagster definitions validate {target}", {**os.environ, "DAGSTER_HOME": str(tmp_path)}, ROOT)
    assert run.returncode == 0, run.stderr
    assert "Validation successful for code location rm_assets" in run.stderr + run.stdout
