"""Names made of sources: none is another's, and where one were, the laws would tell."""

import re
from pathlib import Path

import pyarrow as pa
import pytest
from support import plain_row, rows, run_stages, silent, violations, write_lines

from rm_assets.data.stages import raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.storage import publication as publishing
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.shards import ShardWriter, tables_writer, write_shard
from rm_assets.data.storage.snapshots import DATA, SnapshotError
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

# The first 32 bits of the sha256 of both are equal, and so are their last 60 characters.
ALIKE = [
    f"annotator-{n}/annotations/preferences/human/english/round-01/final/part-00000.jsonl"
    for n in ("0003745", "0032483")
]
NUM_PAIRS = 5


@pytest.fixture
def two_files(settings: Settings) -> Settings:
    """Two files of as many lines each, none equal to another."""
    for index, name in enumerate("ab"):
        write_lines(
            Path(settings.annotations_path) / f"{name}.jsonl", [plain_row(100 * index + n) for n in range(NUM_PAIRS)]
        )
    return settings


def test_files_whose_names_end_alike_keep_all_their_rows(settings: Settings) -> None:
    for index, name in enumerate(ALIKE):
        write_lines(Path(settings.annotations_path) / name, [plain_row(100 * index + n) for n in range(NUM_PAIRS)])
    stages = run_stages(settings)
    for stage, snapshot in stages.items():
        assert sorted((row["source"], row["line"]) for row in rows(snapshot)) == [
            (source, line) for source in ALIKE for line in range(1, NUM_PAIRS + 1)
        ], stage
    assert set(violations(stages).values()) == {0}


@pytest.mark.parametrize(
    "source", ["a.jsonl", "x" * 4000, "名" * 100 + ".jsonl", ".-_.jsonl", "evaluation:held/a.jsonl"]
)
def test_the_name_of_a_shard_is_a_short_file_name_with_128_bits_of_the_sources_hash(source: str) -> None:
    name = raw.shard_name(source, 123_456)
    assert re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)?-[0-9a-f]{32}-123456", name)
    assert len(f"{name}.parquet") < 255 - 40  # a file that is written beside has a longer one


@pytest.mark.parametrize("names", [("same", "same"), ("Case", "case")])
def test_shards_that_would_share_a_file_are_not_published(tmp_path: Path, names: tuple[str, str]) -> None:
    with open_publication(tmp_path, "asset", 1, silent) as publication:
        shards = [
            write_shard(
                publication.directory, name, source, source, tables_writer({DATA: pa.table({"value": [1]})}, {})
            )
            for name, source in zip(names, ("one.jsonl", "other.jsonl"), strict=True)
        ]
        with pytest.raises(SnapshotError, match=r"asset: shards of 'one.jsonl' and 'other.jsonl' share the name"):
            publication.publish(shards, {}, {})
        assert list(tmp_path.rglob("manifest.json")) == []


def test_a_shard_that_takes_the_place_of_another_breaks_a_law(
    two_files: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "shard_name", lambda source, index: "same")
    monkeypatch.setattr(publishing, "_require_distinct", lambda asset, shards: None)
    lines = raw.publish_raw(two_files, silent)
    assert [row["source"] for row in rows(lines)] == ["b.jsonl"] * 2 * NUM_PAIRS
    stages = {Stage.RAW: lines, Stage.VALIDATED: publish_validated(two_files, lines, silent)}
    assert violations(stages)["validated_preferences: lines not read"] == NUM_PAIRS


@pytest.mark.parametrize("stage", list(Stage))
def test_rows_that_change_places_between_two_files_break_a_law(
    two_files: Settings, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    write = ShardWriter.write
    swapped = {"a.jsonl": "b.jsonl", "b.jsonl": "a.jsonl"}

    def write_swapped(writer: ShardWriter, folder: str, table: pa.Table) -> None:
        if stage in writer.path(folder).parts:
            sources = pa.array([swapped[source] for source in table["source"].to_pylist()], pa.string())
            table = table.set_column(0, table.schema.field("source"), sources)
        write(writer, folder, table)

    monkeypatch.setattr(ShardWriter, "write", write_swapped)
    broken = {name for name, count in violations(run_stages(two_files)).items() if count}
    assert any(name.startswith(f"{stage}: ") and name.endswith("unaccounted") for name in broken)
