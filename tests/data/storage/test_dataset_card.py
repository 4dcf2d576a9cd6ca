"""A snapshot as a data set: its directory given to `datasets`, as to the Hub's viewer."""

from pathlib import Path

import datasets
import pytest
import yaml
from support import plain_row, rows, run_stages, silent, write_lines

from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.rejects import publish_rejects
from rm_assets.data.storage.dataset_card import CARD
from rm_assets.data.storage.ownership import MANIFEST, begin_snapshot, finish_removals
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings


def configurations(snapshot: Snapshot) -> dict[str, list[str]]:
    """The folders of each configuration."""
    front_matter = (snapshot.directory / CARD).read_text().split("---\n")[1]
    found = yaml.safe_load(front_matter)["configs"]
    return {each["config_name"]: [file["path"] for file in each["data_files"]] for each in found}


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """Annotations with rejects at two stages, and an evaluation set."""
    directory = Path(settings.annotations_path)
    write_lines(directory / "a.jsonl", [plain_row(number) for number in range(60)] + [plain_row(3), b"{", b"\xff"])
    held = write_lines(tmp_path / "held.jsonl", [plain_row(number) for number in range(100, 107)])
    changes = {"evaluation_files": {"held.out": str(held)}, "test_fraction": 0.3, "validation_fraction": 0.2}
    return settings.model_copy(update=changes)


def test_datasets_loads_the_directory_of_every_stage(settings: Settings, tmp_path: Path) -> None:
    stages = run_stages(settings)
    snapshots = [*stages.values(), publish_rejects(settings, stages, silent)]
    for snapshot in snapshots:
        loaded = datasets.load_dataset(str(snapshot.directory), cache_dir=str(tmp_path))
        is_padded = snapshot.manifest.asset == Stage.PADDED
        assert list(loaded) == (["train", "validation", "test"] if is_padded else ["train"])
        num_held_out = 7 if is_padded else 0
        assert sum(map(len, loaded.values())) == snapshot.manifest.num_rows() - num_held_out > 0
        for name, split in loaded.items():
            folder = name if is_padded else "data"
            assert split.to_list() == rows(snapshot, folder)


def test_rejects_and_evaluation_sets_are_configurations_of_their_own(settings: Settings, tmp_path: Path) -> None:
    stages = run_stages(settings)
    assert configurations(stages[Stage.FLATTENED]) == {"default": ["data/*.parquet"]}
    assert configurations(stages[Stage.VALIDATED]) == {"default": ["data/*.parquet"], "rejects": ["rejects/*.parquet"]}
    padded = stages[Stage.PADDED]
    assert configurations(padded) == {
        "default": ["train/*.parquet", "validation/*.parquet", "test/*.parquet"],
        "evaluation-held.out": ["evaluation/held.out/*.parquet"],
        "rejects": ["rejects/*.parquet"],
    }
    held = datasets.load_dataset(str(padded.directory), "evaluation-held.out", cache_dir=str(tmp_path))
    assert {name: len(split) for name, split in held.items()} == {"test": 7}
    rejects = datasets.load_dataset(str(padded.directory), "rejects", split="train", cache_dir=str(tmp_path))
    assert rejects["reason"] == ["duplicate"]


def test_the_card_has_the_number_of_rows_of_each_part(settings: Settings) -> None:
    padded = run_stages(settings)[Stage.PADDED]
    text = (padded.directory / CARD).read_text()
    for folder in ("train", "validation", "test"):
        assert f"| default | {folder} | {len(rows(padded, folder))} |" in text
    assert "| evaluation-held.out | test | 7 |" in text
    assert "| rejects | train | 1 |" in text


def test_the_card_follows_the_rejects_and_leaves_the_name_as_it_is(settings: Settings) -> None:
    path = Path(settings.annotations_path) / "a.jsonl"
    write_lines(path, [plain_row(1), b"\xff"])
    before = publish_raw(settings, silent)
    assert "| rejects | train | 1 |" in (before.directory / CARD).read_text()
    write_lines(path, [plain_row(1), b"\xff", b"\xfe"])
    after = publish_raw(settings, silent)
    assert after.name == before.name
    assert "| rejects | train | 2 |" in (after.directory / CARD).read_text()
    assert all(file.path != CARD for shard in after.manifest.shards for file in shard.files)


def test_the_card_of_a_snapshot_without_rows_names_no_configuration(settings: Settings) -> None:
    write_lines(Path(settings.annotations_path) / "a.jsonl", [b"\xff"])
    raw = publish_raw(settings.model_copy(update={"evaluation_files": {}}), silent)
    assert configurations(raw) == {"rejects": ["rejects/*.parquet"]}


def test_a_run_killed_at_its_last_step_keeps_the_card_and_an_unpublished_one_goes(settings: Settings) -> None:
    raw = publish_raw(settings, silent)
    begin_snapshot(raw.directory, [CARD])  # the note that the killed run left
    finish_removals(raw.directory.parent)
    assert (raw.directory / CARD).is_file()
    begin_snapshot(raw.directory, [CARD])
    (raw.directory / MANIFEST).unlink()
    finish_removals(raw.directory.parent)
    assert not raw.directory.exists()
