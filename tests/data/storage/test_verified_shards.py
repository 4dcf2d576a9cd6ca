"""What `verify` makes of files and manifests of finished shards that are not as they were written."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
from support import plain_row, rows, run_stages, silent, violations, write_lines

from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.stages.flattening import publish_flattened
from rm_assets.data.stages.padding import publish_padded
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.rejects import publish_rejects
from rm_assets.data.stages.tokenization import publish_tokenized
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.storage import parquet
from rm_assets.data.storage.ownership import MANIFEST
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.shards import tables_writer, write_shard
from rm_assets.data.storage.snapshots import DATA, Snapshot, SnapshotError
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

SCHEMA = pa.schema([pa.field("value", pa.int64(), nullable=False)])


@pytest.fixture
def two_files(settings: Settings) -> Settings:
    """A file of three lines and one of four."""
    write_lines(Path(settings.annotations_path) / "a.jsonl", [plain_row(n) for n in range(3)])
    write_lines(Path(settings.annotations_path) / "b.jsonl", [plain_row(100 + n) for n in range(4)])
    return settings


def run_and_listen(settings: Settings) -> tuple[dict[Stage, Snapshot], list[str]]:
    """All stages with a log, and its lines that tell of shards computed again."""
    said: list[str] = []
    tokenizer = find_tokenizer(settings)
    raw = publish_raw(settings, said.append)
    validated = publish_validated(settings, raw, said.append)
    flattened = publish_flattened(settings, tokenizer, validated, said.append)
    tokenized = publish_tokenized(settings, tokenizer, validated, flattened, said.append)
    padded = publish_padded(settings, validated, tokenized, said.append)
    stages = dict(zip(Stage, (raw, validated, flattened, tokenized, padded), strict=True))
    return stages, [line for line in said if "computed again" in line]


def test_garbage_of_equal_size_is_replaced_in_all_stages(two_files: Settings) -> None:
    before = run_stages(two_files)
    expected = {stage: rows(snapshot) for stage, snapshot in before.items()}
    damaged = [path for snapshot in before.values() for path in snapshot.paths()]
    for path in damaged:
        path.write_bytes(b"x" * path.stat().st_size)
    full = two_files.model_copy(update={"verify": "full"})
    stages, said = run_and_listen(full)
    assert {stage: (s.name, s.num_new_shards) for stage, s in stages.items()} == {
        stage: (s.name, 2) for stage, s in before.items()
    }
    assert {stage: rows(snapshot) for stage, snapshot in stages.items()} == expected
    assert set(violations(stages).values()) == {0}
    assert len(said) == 10
    for stage, line in zip([stage for stage in Stage for _ in "ab"], said, strict=True):
        told = r"is damaged \(its sha256 is \w+, not \w+\); its shard of '[ab].jsonl' is computed again"
        assert re.fullmatch(rf"{stage}: '.*parquet' {told}", line)
    again, said = run_and_listen(full)
    assert [snapshot.num_new_shards for snapshot in again.values()] == [0] * 5
    assert said == []


def test_without_full_verification_sizes_count_and_the_first_reader_names_the_damage(two_files: Settings) -> None:
    [path, _] = run_stages(two_files)[Stage.FLATTENED].paths()
    path.write_bytes(b"x" * path.stat().st_size)
    stages, said = run_and_listen(two_files)
    assert [snapshot.num_new_shards for snapshot in stages.values()] == [0] * 5
    assert said == []
    with pytest.raises(SnapshotError, match=r"is damaged .*: materialize flattened_conversations again with RM_VERIFY"):
        run_stages(two_files.model_copy(update={"max_length": 500}))


def test_an_older_manifest_with_other_numbers_of_rows_is_made_again(two_files: Settings) -> None:
    manifest = run_stages(two_files)[Stage.VALIDATED].directory / MANIFEST
    before = manifest.read_bytes()
    without_hash = {name: value for name, value in json.loads(before).items() if name != "sha256"}  # as older ones are
    manifest.write_text(json.dumps(without_hash).replace('"num_rows": 3', '"num_rows": 4'))
    stages, _ = run_and_listen(two_files)
    assert {name: count for name, count in violations(stages).items() if count} == {
        "validated_preferences: pairs unaccounted": 1,
        "flattened_conversations: pairs not read": 1,
    }
    stages, said = run_and_listen(two_files.model_copy(update={"verify": "full"}))
    assert [snapshot.num_new_shards for snapshot in stages.values()] == [0, 1, 0, 0, 0]
    assert ["its number of rows is 3, not 4" in line for line in said] == [True]
    assert manifest.read_bytes() == before
    assert set(violations(stages).values()) == {0}


def test_a_damaged_file_is_replaced_and_never_written_through_its_link(tmp_path: Path) -> None:
    def published(values: list[int], verify: str, said: list[str]) -> Snapshot:
        with open_publication(tmp_path, "asset", 3, said.append, verify) as publication:
            fills = {value: tables_writer({DATA: pa.table({"value": [value]}, SCHEMA)}, {}) for value in values}
            shards = [
                publication.find(f"{value}")
                or write_shard(publication.directory, f"s{value}", f"{value}", f"{value}", fill)
                for value, fill in fills.items()
            ]
            return publication.publish(shards, {}, {})

    said: list[str] = []
    older, newer = (published(values, "stamps", said) for values in ([1, 2], [1, 3]))
    linked, path = older.paths()[0], newer.paths()[0]
    assert path.stat().st_ino == linked.stat().st_ino
    sound = path.read_bytes()
    garbage = bytes(len(sound))
    path.write_bytes(garbage)
    healed = published([1, 3], "full", said)
    assert (healed.name, healed.num_new_shards, len(said)) == (newer.name, 1, 1)
    assert (path.read_bytes(), linked.read_bytes()) == (sound, garbage)
    assert parquet.read_table(healed.paths(), SCHEMA)["value"].to_pylist() == [1, 3]
    assert sorted(tmp_path.rglob("*.parquet")) == sorted([*older.paths(), *healed.paths()])


def test_a_finished_shard_of_an_interrupted_run_is_verified_too(tmp_path: Path) -> None:
    said: list[str] = []
    fill = tables_writer({DATA: pa.table({"value": [1]}, SCHEMA)}, {})
    with open_publication(tmp_path, "asset", 1, silent) as publication:
        write_shard(publication.directory, "s", "a.jsonl", "key", fill)
    [path] = tmp_path.rglob("*.parquet")
    path.write_bytes(bytes(path.stat().st_size))
    with open_publication(tmp_path, "asset", 1, said.append, "full") as publication:
        assert publication.find("key") is None
        assert publication.find("key") is None
    assert ["its shard of 'a.jsonl' is computed again" in line for line in said] == [True]


def test_the_table_of_all_rejects_is_verified_too(settings: Settings) -> None:
    write_lines(Path(settings.annotations_path) / "a.jsonl", [*(plain_row(n) for n in range(20)), b"{"])
    stages = run_stages(settings)
    [path] = publish_rejects(settings, stages, silent).paths()
    path.write_bytes(bytes(path.stat().st_size))
    full = settings.model_copy(update={"verify": "full"})
    assert [row["reason"] for row in rows(publish_rejects(full, stages, silent))] == ["not_json"]
