"""Planted wrong labels are found again, by models that never saw them."""

import contextlib
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support import QUICK, polite_rows, write_lines

from rm_assets.settings import SAMPLE
from rm_assets.settings_loading import load_settings
from rm_assets.training.report.suspects import fold_of

SELECTION = "*suspect_annotations"


def metadata(result: Any) -> dict[str, Any]:
    [event] = result.asset_materializations_for_node("suspect_annotations")
    return {name: value.value for name, value in event.metadata.items()}


def flipped(rows: list[Any], share: float) -> tuple[list[Any], set[int]]:
    """The rows with the labels of some turned around, and the numbers of their lines."""
    generator = random.Random(11)
    chosen = set(generator.sample(range(len(rows)), round(share * len(rows))))
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    turned = [{swapped.get(n, n): v for n, v in row.items()} if i in chosen else row for i, row in enumerate(rows)]
    return turned, {number + 1 for number in chosen}


def precision(suspects: list[dict[str, Any]], num_judged: int, planted: set[int], share: float = 0.05) -> float:
    """The share of planted lines among the most suspect `share` of all judged pairs."""
    most = suspects[: round(share * num_judged)]
    return sum(row["line"] in planted for row in most) / round(share * num_judged)


def run_on(rows: list[Any], directory: Path, run_graph, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    write_lines(directory / "a.jsonl", rows)
    paths = {"annotations": str(directory / "a.jsonl"), "storage": str(directory / "storage")}
    given = paths | settings | {"suspect_folds": 2}
    result = run_graph(selection=SELECTION, **given)
    assert result.success
    return given, metadata(result)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, run_graph) -> tuple[Any, ...]:
    """Settings, metadata, and the lines with planted wrong labels of a run over polite rows."""
    rows, planted = flipped(polite_rows(120), 0.05)
    settings = QUICK | {"epochs": 2, "batch_pairs": 16, "learning_rate": 3e-3}
    return *run_on(rows, tmp_path_factory.mktemp("suspects"), run_graph, **settings), planted


def test_most_suspect_are_the_planted_wrong_labels(found) -> None:
    _, told, planted = found
    suspects = pq.read_table(Path(told["path"]) / "data").to_pylist()
    assert told["judged_pairs"] == 120
    assert precision(suspects, 120, planted) >= 5 * 0.05


def test_no_pair_is_judged_by_a_model_that_saw_its_prompt(found) -> None:
    _, told, _ = found
    for row in pq.read_table(Path(told["path"]) / "data").to_pylist():
        assert row["fold"] == fold_of(row["prompt_key"], 2)


def test_suspects_are_ready_to_be_judged_again(found) -> None:
    settings, told, _ = found
    rows = pq.read_table(Path(told["path"]) / "data").to_pylist()
    lines = [json.loads(line) for line in Path(told["jsonl"]).read_text().splitlines()]
    source = Path(settings["annotations"]).read_text().splitlines()
    assert [(line["source"], line["line"]) for line in lines] == [(row["source"], row["line"]) for row in rows]
    for line in lines:
        stated = json.loads(source[line["line"] - 1])
        assert line["margin"] < 0
        assert line["prompt"] == [{"role": "user", "content": stated["prompt"]}]
        assert line["labelled_chosen"] == [{"role": "assistant", "content": stated["chosen"]}]
        assert line["labelled_rejected"] == [{"role": "assistant", "content": stated["rejected"]}]


def test_a_second_run_trains_nothing(found, run_graph) -> None:
    settings, told, _ = found
    again = run_graph(selection="suspect_annotations", **settings)
    assert metadata(again)["path"] == told["path"]
    assert "training on the others" not in "\n".join(str(event) for event in again.all_events)


def test_one_fold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"suspect_folds \(or RM_SUSPECT_FOLDS\) is 1: one fold would leave nothing"):
        load_settings({"suspect_folds": 1}, {})


@pytest.mark.soak
def test_planted_wrong_labels_are_found_in_the_sample(tmp_path: Path, run_graph) -> None:
    rows = [row for path in sorted((SAMPLE / "annotations").iterdir()) for row in _pairs(path)]
    rows, planted = flipped(rows, 0.05)
    _, told = run_on(rows, tmp_path, run_graph, **json.loads((SAMPLE / "training.json").read_text()))
    suspects = pq.read_table(Path(told["path"]) / "data").to_pylist()
    found = precision(suspects, told["judged_pairs"], planted)
    print(f"{found:.3f} of the most suspect 5 % of {told['judged_pairs']} pairs were planted")
    assert found >= 5 * 0.05


def _pairs(path: Path) -> Iterator[Any]:
    """The sound rows of a file of the sample, whatever their format."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as stream:
        for line in stream:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if row.get("chosen") and row.get("rejected") and row["chosen"] != row["rejected"]:
                    yield row
