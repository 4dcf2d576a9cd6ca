"""The rules of the house: who imports whom, what loading the definitions costs, and what the README promises."""

import ast
import gc
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rm_assets"
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = [
    "display_text",
    "json_settings",
    "settings",
    "addresses",
    "settings_loading",
    "data",
    "reference_pages",
    "training",
    "trace",
    "diff",
    "defs",
    "definitions",
]
# The folders of each room, lowest first: a module imports only from its own folder and those before it.
WINGS = {
    "data": ["tables", "storage", "compute", "sources", "formats", "pairs", "chat", "stages"],
    "training": [
        *("processes", "jobs", "devices", "packing", "report", "model", "saved_model", "loop"),
        *("run", "score", "serve", "torchrun", "__main__"),
    ],
    "defs": ["runs", "project", "launchers", "snapshots", "results", "assets", "automation"],
}
FORBIDDEN = {
    "display_text": {"dagster", "dagster_pipes", "torch", "transformers", "pandas", "pyarrow"},
    "json_settings": {"dagster", "dagster_pipes", "torch", "transformers", "pandas", "pyarrow"},
    "settings": {"dagster", "dagster_pipes", "torch", "transformers", "pandas", "pyarrow"},
    "addresses": {"dagster", "dagster_pipes", "torch", "transformers", "pandas", "pyarrow"},
    "settings_loading": {"dagster", "dagster_pipes", "torch", "transformers", "pandas", "pyarrow"},
    "data": {"dagster", "dagster_pipes", "torch", "pandas", "matplotlib"},
    "sample": {"dagster", "dagster_pipes", "torch", "pandas", "matplotlib"},
    "training": {"dagster", "matplotlib"},
    "trace": {"dagster", "dagster_pipes", "torch", "transformers", "pandas", "matplotlib"},
    "diff": {"dagster", "dagster_pipes", "torch", "transformers", "matplotlib"},
    "defs": {"torch", "transformers"},
    "definitions": {"torch", "transformers"},
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, and whether it does so when it is loaded."""
    gc.disable()  # CPython 3.11 raises SystemError if a finalizer runs while it builds the tree (gh-106905)
    try:
        tree = ast.parse(path.read_text())
    finally:
        gc.enable()
    loading = {id(node) for node in tree.body for node in ([node] if not isinstance(node, ast.If) else [])}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            yield name, id(node) in loading


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_the_rooms_before_it(path: Path) -> None:
    own = room(path)
    for name, at_load in imports(path):
        top, _, rest = name.partition(".")
        assert top not in FORBIDDEN.get(own, set()), f"{own} must not import {top}"
        if top != "rm_assets" or own == "__init__":
            continue
        other = rest.split(".")[0]
        if own == "sample" or other == "sample":
            assert own == other, "only the settings name the sample, by its path"
            continue
        assert ROOMS.index(other) <= ROOMS.index(own), f"{own} must not import {other}"
        is_heavy = other == "training" and rest.split(".")[1] not in ("jobs", "processes")
        assert not (own == "defs" and is_heavy and at_load), f"{name} is heavy: import it inside a function"


def wing(module: str) -> tuple[str, int] | None:
    """The room of a module by its dotted name, and the number of its wing there."""
    _, room_name, *rest = [*module.split("."), "", ""][:3]
    names = WINGS.get(room_name, [])
    return (room_name, names.index(rest[0])) if rest[0] in names else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_wing_imports_only_the_wings_before_it(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if len(parts) < 3 or parts[-1] == "__init__":
        return
    own = wing(".".join(parts))
    assert own or parts[1] not in WINGS, f"{path} stands in no wing"
    for name, _ in imports(path):
        other = wing(name)
        assert not own or not other or own[0] != other[0] or other[1] <= own[1], f"{path} must not import {name}"


def test_no_folder_holds_more_than_a_reader_can_survey() -> None:
    for folder in {path.parent for path in MODULES}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= 16, f"{folder.relative_to(PACKAGE)} holds {len(modules)} modules"


def test_the_package_imports_nothing() -> None:
    assert list(imports(PACKAGE / "__init__.py")) == []


def test_annotations_of_dagster_config_stay_types() -> None:
    for path in (PACKAGE / "defs").rglob("*.py"):
        assert "from __future__ import annotations" not in path.read_text(), path.name


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(result.stdout.split())


def test_loading_the_definitions_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "tokenizers", "matplotlib", "pandas", "datasets"}
    heavy |= {"ray", "kubernetes", "dagster_k8s", "dagster_ray"}
    assert loaded_by("import rm_assets.definitions") & heavy == set()
    assert loaded_by("import tokenizers") & heavy == {"tokenizers"}  # the check can fail


def test_the_training_job_can_be_described_without_torch() -> None:
    names = ("training_job", "scoring_job", "result", "transport")
    modules = loaded_by("import " + ", ".join(f"rm_assets.training.jobs.{name}" for name in names))
    assert modules & {"torch", "transformers", "dagster"} == set()


def test_what_the_process_of_dagster_calls_needs_no_torch() -> None:
    names = ("reward_model_report", "promotion", "suspects", "slices")
    modules = loaded_by("import " + ", ".join(f"rm_assets.training.report.{name}" for name in names))
    assert modules & {"torch", "transformers", "dagster"} == set()


# --- files at the root ---------------------------------------------------------------------------------------


def test_the_root_holds_only_what_belongs_there() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    if listed.returncode != 0:
        pytest.skip("no git checkout")
    roots = {name.split("/")[0] for name in listed.stdout.splitlines()}
    allowed = {
        "pyproject.toml",
        "README.md",
        "rm_assets",
        "tests",
        "workspace.yaml",
        "dagster.yaml",
        "LICENSE",
        "benchmarks",
    }
    assert {name for name in roots if not name.startswith(".")} <= allowed


def test_workspace_and_pyproject_name_the_same_code_location() -> None:
    """Dagster prefers `[tool.dg]` to workspace.yaml, and keeps whether a sensor is on by the location's name."""
    [location] = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    assert location["python_module"] == {
        "module_name": "rm_assets.definitions",
        "working_directory": ".",
        "location_name": "rm_assets",
    }
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert "dagster" not in tools
    assert tools["dg"] == {
        "directory_type": "project",
        "project": {
            "root_module": "rm_assets",
            "code_location_name": location["python_module"]["location_name"],
            "code_location_target_module": location["python_module"]["module_name"],
        },
    }


def test_the_map_in_the_readme_has_every_folder() -> None:
    readme = (ROOT / "README.md").read_text()
    tree = readme[readme.index("## Map") :]
    folders = {path.parent.name for path in MODULES if path.name == "__init__.py"}
    assert sorted(folder for folder in folders if not re.search(rf"\b{folder}/", tree)) == []
