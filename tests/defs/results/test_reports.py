"""What the page of a report shows of many subsets, of huge ones, and of those named as its own rows are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from support import silent

from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.snapshots import Manifest, Snapshot
from rm_assets.defs.results.report_checks import report_checks
from rm_assets.defs.results.report_plots import slices_plot
from rm_assets.defs.results.reports import report_result
from rm_assets.defs.snapshots.reports import WrittenReport, write_derived_files
from rm_assets.settings import Settings
from rm_assets.training.report.reward_model_report import build_report


def report_of(directory: Path, subsets: dict[str, list[str]], right: float = 1.0) -> WrittenReport:
    """A report whose pairs have these subsets, by split; the first pair is wrong, the others have this score."""
    names = [(split, subset) for split, of_split in subsets.items() for subset in of_split]
    scores = pd.DataFrame(
        {
            "source": "a.jsonl",
            "line": range(len(names)),
            "pair_id": [f"pair{index}" for index in range(len(names))],
            "prompt_key": [f"prompt{index}" for index in range(len(names))],
            "split": [split for split, _ in names],
            "chosen_score": np.array([0.0, *[right] * (len(names) - 1)], np.float32),
            "rejected_score": np.float32(0.5),
            "chosen_length": np.int32(9),
            "rejected_length": np.int32(9),
            "margin": np.float32(0),
        }
    )
    facts = scores[["source", "line", "pair_id"]].assign(format="plain", num_turns=1, script="Latin", agreement="")
    report = build_report(scores, facts.assign(subset=[subset for _, subset in names]))
    manifest = Manifest(asset="reward_model_report", snapshot="s", identity="", inputs={}, facts={}, shards=())
    return WrittenReport(
        snapshot=Snapshot(directory, manifest),
        metrics=report.metrics,
        table=report.table,
        pairs=report.pairs,
        calibration=report.calibration,
        history=[],
        steps=[],
        precision="",
    )


def shown(tmp_path: Path, subsets: dict[str, list[str]], right: float = 1.0) -> tuple[dict[str, Any], pd.DataFrame]:
    """The metadata of such a report, and its table."""
    written = report_of(tmp_path, subsets, right)
    drawn = dict.fromkeys(
        ("accuracy_by_slice", "calibration", "scores", "length_bias", "learning_curve", "history"), b""
    )
    return dict(report_result(written, drawn, Settings()).metadata or {}), written.table


def records(value: Any) -> list[dict[str, Any]]:
    return [dict(record.data) for record in value.records]


def test_of_a_model_no_better_than_chance_no_other_cause_is_advised(tmp_path: Path) -> None:
    written = report_of(tmp_path, {"test": ["x"] * 10}, right=0.0)
    written = replace(written, metrics=written.metrics | {"difference_length_spearman": 0.9})
    accuracy, *others = report_checks(written, Settings())
    assert not accuracy.passed and "not clearly better than chance" in str(accuracy.description)
    failed = [check for check in others if not check.passed]
    assert {check.check_name for check in failed} >= {"model_beats_length", "scores_do_not_follow_length"}
    for check in failed:
        assert str(check.description).endswith("not above chance: see accuracy_is_above_chance")
        assert "add pairs" not in str(check.description).lower()


def test_the_verdict_is_a_sentence_with_which_the_page_begins(tmp_path: Path) -> None:
    metadata, _ = shown(tmp_path, {"test": ["x"] * 40}, right=0.0)
    verdict = metadata["verdict"].value
    assert verdict.startswith("Ranks 0.000 of 40 test pairs right (95 % interval 0.000 to ")
    assert verdict.endswith(". Failed checks: accuracy_is_above_chance, model_beats_length.")
    page = MarkdownIt("gfm-like", {"linkify": False}).render(metadata["report"].value)
    assert page.startswith(f"<p><strong>{verdict}</strong></p>\n<table>")
    assert page.count("<tr>") == 5 and "<td><strong>failed</strong></td>\n<td>model_beats_length</td>" in page


def test_a_subset_called_all_does_not_take_the_place_of_the_whole_set(tmp_path: Path) -> None:
    metadata, _ = shown(tmp_path, {"test": ["x", "x", "all"], "evaluation/bench": ["all", "x", "x", "x"]})
    cells = {row["subset"]: (row["test"], row["bench"]) for row in records(metadata["evaluation_sets"])}
    assert cells == {
        "all": ("0.667 of 3", "1.000 of 4"),
        "x": ("0.500 of 2", "1.000 of 3"),
        "'all'": ("1.000 of 1", "1.000 of 1"),
    }
    slices = [row["slice"] for row in records(metadata["slices"])]
    assert len(set(slices)) == len(slices)


def test_evaluation_sets_called_as_the_tables_own_columns_have_columns_of_their_own(tmp_path: Path) -> None:
    metadata, _ = shown(tmp_path, {"test": ["x"], "evaluation/subset": ["x"], "evaluation/test": ["x", "x"]})
    assert records(metadata["evaluation_sets"])[0] == {
        "subset": "all",
        "test": "0.000 of 1",
        "evaluation/subset": "1.000 of 1",
        "evaluation/test": "1.000 of 2",
    }


def test_of_many_subsets_those_of_most_pairs_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    few = [f"subset {number}" for number in range(150)]
    large = ["subset 140"] * 9 + ["subset 149"] * 4
    metadata, table = shown(tmp_path, {"test": [*few, *large], "evaluation/bench": [*few, *large]})
    slices = records(metadata["slices"])
    assert len(slices) == 100
    names = [row["slice"] for row in slices]
    assert names[:2] == ["all", "evaluation/bench: all"]
    subsets = [name for name in names if name.startswith("subset: ")]
    assert subsets[:3] == ["subset: subset 140", "subset: subset 149", "subset: subset 0"]
    assert names[-1] == f"… {len(table) - 99} more slices, of fewer pairs, in the Parquet file"
    sets = records(metadata["evaluation_sets"])
    assert [row["subset"] for row in sets[:3]] == ["all", "subset 140", "subset 149"]
    assert sets[-1]["subset"] == "… 51 more rows, not shown"


@pytest.mark.parametrize(("num_subsets", "last"), [(94, "source: a.jsonl"), (95, "… 2 more slices, ")])
def test_a_table_of_a_hundred_slices_is_shown_whole(tmp_path: Path, num_subsets: int, last: str) -> None:
    # Beside the subsets there are a row of all pairs, and one each of format, turns, script, length and file.
    metadata, table = shown(tmp_path, {"test": [f"subset {number}" for number in range(num_subsets)]})
    assert len(table) == 6 + num_subsets
    slices = records(metadata["slices"])
    assert len(slices) == 100 and slices[-1]["slice"].startswith(last)


def test_a_slice_shows_its_best_baseline_and_by_length_only_those_without_length(tmp_path: Path) -> None:
    written = report_of(tmp_path, {"test": ["x"] * 4})
    baselines = {"longer_wins": 0.25, "shorter_wins": 0.75, "without_prompt": 0.625, "other_prompt": 0.5}
    kept = written.table["slice"].isin(["all", "length_difference", "subset"])
    table = written.table[kept].assign(**baselines)
    table.loc[table["slice"] == "subset", ["longer_wins", "shorter_wins", "without_prompt", "other_prompt"]] = np.nan
    drawn = dict.fromkeys(
        ("accuracy_by_slice", "calibration", "scores", "length_bias", "learning_curve", "history"), b""
    )
    metadata = dict(report_result(replace(written, table=table), drawn, Settings()).metadata or {})
    best = {
        row["slice"]: row["best baseline"].replace("\N{NO-BREAK SPACE}", " ") for row in records(metadata["slices"])
    }
    assert best == {
        "all": "0.750 shorter wins",
        "length_difference: equal length": "0.625 without prompt",
        "subset: x": "",
    }


def test_subsets_of_megabytes_are_shown_by_their_ends_and_hashes(tmp_path: Path) -> None:
    names = ["s" * 2_000_000 + sign + "e" * 1_000_000 for sign in "ab"]
    metadata, table = shown(tmp_path, {"test": [*names, "x"], "evaluation/bench": names})
    assert len(dg.serialize_value(metadata["slices"])) < 20_000
    assert len(dg.serialize_value(metadata["evaluation_sets"])) < 10_000
    for name in ("slices", "evaluation_sets"):
        first = [next(iter(row.values())) for row in records(metadata[name])]
        assert len(set(first)) == len(first)
    assert set(names) <= set(table["value"])  # data keep them whole
    assert slices_plot(table).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["![p](https:/host/x)", "[t](https:/e)", "<img src=x>", "a`b", "x\n\n# Title"])
def test_no_subset_writes_markdown_into_the_page(tmp_path: Path, name: str) -> None:
    metadata, _ = shown(tmp_path, {"test": [name] * 40}, right=0.5)
    plain, _ = shown(tmp_path, {"test": ["x"] * 40}, right=0.5)
    for part in ("verdict", "report"):
        pages = [MarkdownIt("gfm-like", {"linkify": False}).render(found[part].value) for found in (metadata, plain)]
        assert pages[0] == pages[1]


def test_files_beside_a_snapshot_are_replaced_and_never_written_into(tmp_path: Path) -> None:
    with open_publication(tmp_path, "reward_model_report", 1, silent) as publication:
        snapshot = publication.publish([], {}, {})
    backup, mine = tmp_path / "backup.json", tmp_path / "mine.png"
    mine.write_bytes(b"mine")
    (snapshot.directory / "history.png").symlink_to(mine)
    write_derived_files(snapshot, {"report.json": b"one", "history.png": b"one"}, silent)
    backup.hardlink_to(snapshot.directory / "report.json")
    write_derived_files(snapshot, {"report.json": b"two", "history.png": b"one"}, silent)
    assert (backup.read_bytes(), mine.read_bytes()) == (b"one", b"mine")
    found = {path.name: path.read_bytes() for path in snapshot.directory.iterdir()}
    assert found.keys() == {"manifest.json", "README.md", "report.json", "history.png"}
    assert (found["report.json"], found["history.png"]) == (b"two", b"one")
