"""The whole graph, run once on a few pairs, for the tests that look at what came of it."""

import os
from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest
from audited import AuditedRun, audited_run
from support import QUICK, polite_rows, write_lines

from rm_assets.definitions import definitions

# The jobs of a test are small, and on a busy machine threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

RunGraph = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture(scope="session")
def run_graph() -> RunGraph:
    """Materialize everything, or a selection, with these settings; the result even if it fails."""

    def run(
        selection: str = "*", instance: dg.DagsterInstance | None = None, **settings: Any
    ) -> dg.ExecuteInProcessResult:
        loaded = definitions()
        return dg.materialize(
            list(loaded.assets or []),
            selection=selection,
            resources=loaded.resources,
            instance=instance,
            run_config={"resources": {"project": {"config": settings}}},
            raise_on_error=False,
        )

    return run


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory, run_graph: RunGraph) -> tuple[dict[str, Any], Any]:
    """Settings and result of a first run over one sound file and one with a broken line."""
    directory = tmp_path_factory.mktemp("graph")
    write_lines(directory / "annotations" / "a.jsonl", polite_rows(60))
    write_lines(directory / "annotations" / "b.jsonl", [*polite_rows(90)[60:], b'{"prompt": "a secret zebra'])
    write_lines(directory / "held.jsonl", polite_rows(206)[200:])
    settings = {"annotations": str(directory / "annotations"), "storage": str(directory / "storage"), **QUICK}
    settings["evaluation_files"] = {"held": str(directory / "held.jsonl")}
    return settings, run_graph(**settings)


@pytest.fixture(scope="session")
def audited(tmp_path_factory: pytest.TempPathFactory) -> AuditedRun:
    """A whole run by the command line, its training in two processes, with every process watched."""
    return audited_run(tmp_path_factory.mktemp("audited"), num_processes=2)
