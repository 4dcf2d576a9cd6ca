"""How tables are written as Parquet, and that none is read as other values than were written."""

import ast
import hashlib
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import plain_row, rows, run_stages, silent, write_lines

import rm_assets
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.storage import parquet
from rm_assets.data.storage.files import resolve_path
from rm_assets.data.storage.ownership import MANIFEST
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.shards import tables_writer, write_shard
from rm_assets.data.storage.snapshots import REJECTS, Snapshot, SnapshotError
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

WRITES = """
import pyarrow as pa
from rm_assets.data.storage.parquet import parquet_writer

rows = pa.table({"text": ["x" * 4_000] * 16_000})
pool = pa.default_memory_pool()
before = pool.bytes_allocated()
with parquet_writer("/dev/null", rows.schema) as writer:
    writer.write_table(rows)
print(rows.nbytes, pool.max_memory() - before)
"""


def test_writing_texts_takes_less_than_their_size() -> None:
    """In a process of its own, as Arrow knows the most that was ever allocated in one."""
    done = subprocess.run([sys.executable, "-c", WRITES], capture_output=True, text=True, check=True)
    num_bytes, more_bytes = map(int, done.stdout.split())
    assert more_bytes < num_bytes


def test_every_column_is_in_an_encoding_that_readers_of_ten_years_ago_know(settings: Settings) -> None:
    """BYTE_STREAM_SPLIT of integers is of 2024: DuckDB before 2.0, Spark 3.5 and pyarrow 15 do not read it."""
    write_lines(Path(settings.annotations_path) / "a.jsonl", [plain_row(number) for number in range(20)] + [b"{"])
    encodings = set()
    for snapshot in run_stages(settings).values():
        for path in snapshot.directory.rglob("*.parquet"):
            metadata = pq.ParquetFile(path).metadata
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            columns = [group.column(number) for group in groups for number in range(group.num_columns)]
            encodings |= {encoding for column in columns for encoding in column.encodings}
            assert {column.compression for column in columns} == {"ZSTD"}
    assert encodings == {"PLAIN", "RLE", "RLE_DICTIONARY"}


# --- files that are not as they were written -----------------------------------------------------------------

PACKAGE = Path(rm_assets.__file__).parent
OPENERS = {
    "ParquetFile",
    "ParquetDataset",
    "ParquetWriter",
    "read_metadata",
    "read_parquet",
    "read_schema",
    "to_parquet",
}
OPENERS |= {"dataset", "load_dataset", "memory_map", "write_dataset", "write_table"}


def parquet_calls(path: Path) -> set[str]:
    """The functions of other libraries by which a module opens or writes Parquet files."""
    tree = ast.parse(path.read_text())
    own = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "rm_assets.data.storage.parquet"
        for alias in node.names
    }
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    attributes = {call.attr for call in calls if isinstance(call, ast.Attribute)}
    plain = {call.id for call in calls if isinstance(call, ast.Name)} - own
    written = {call.attr for call in calls if isinstance(call, ast.Attribute) and _is_writer(call)}
    return (attributes | plain) & (OPENERS | {"read_table"}) - written


def _is_writer(call: ast.Attribute) -> bool:
    """Whether a call is `writer.write_table(...)`, of a writer that `parquet_writer` made."""
    return call.attr == "write_table" and not (isinstance(call.value, ast.Name) and call.value.id in ("pq", "parquet"))


def test_one_module_alone_opens_and_writes_our_parquet_files() -> None:
    found = {path: parquet_calls(path) for path in PACKAGE.rglob("*.py")}
    assert {"ParquetFile", "ParquetWriter", "read_metadata"} <= found.pop(PACKAGE / "data" / "storage" / "parquet.py")
    found[PACKAGE / "training" / "packing" / "pair_store.py"] -= {
        "memory_map"
    }  # of its own store, whose files it hashes
    assert found.pop(PACKAGE / "data" / "sources" / "parquet_batches.py") == {
        "ParquetFile",
        "read_metadata",
    }  # others' files
    assert {path.name: calls for path, calls in found.items() if calls} == {}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[Stage, Snapshot]:
    """Snapshots with a reject, a split of each kind and an evaluation set."""
    home = tmp_path_factory.mktemp("stages")
    write_lines(home / "annotations" / "a.jsonl", [*(plain_row(n) for n in range(40)), b"{broken", plain_row(1)])
    write_lines(home / "held.jsonl", [plain_row(900)])
    settings = Settings(
        annotations=str(home / "annotations"),
        storage=str(home / "storage"),
        evaluation_files={"held": str(home / "held.jsonl")},
        num_workers=1,
    )
    return run_stages(settings)


def flipped(content: bytes, chance: random.Random) -> bytes:
    """The content with one bit turned round, anywhere in it."""
    changed = bytearray(content)
    changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(changed)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait for rejects that may be changing."""
    monkeypatch.setattr(parquet, "_MOMENT_SECONDS", 0.0)


@pytest.mark.parametrize("few_bytes", [parquet._FEW_BYTES, 0], ids=["as a small file", "as a large file"])
def test_no_flipped_bit_of_a_published_file_is_read_as_something_else(
    stages: dict[Stage, Snapshot], few_bytes: int, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    monkeypatch.setattr(parquet, "_FEW_BYTES", few_bytes)
    chance, num_noticed = random.Random(few_bytes), 0
    for stage, snapshot in stages.items():
        for path in [*snapshot.paths(), *snapshot.paths(REJECTS)]:
            schema = schemas.REJECTS if path.parent.name == REJECTS else getattr(schemas, stage.name)
            flat = [field.name for field in schema if not pa.types.is_nested(field.type)]
            content, whole, some = path.read_bytes(), parquet.read_table([path], schema), chance.sample(flat, 2)
            for _ in range(15):
                path.write_bytes(flipped(content, chance))
                advice = rf"{path.name}' is damaged \(.*\): materialize {stage} again with RM_VERIFY=full"
                with pytest.raises(SnapshotError, match=advice):
                    parquet.read_table([path], schema)
                try:
                    assert parquet.read_table([path], schema, some) == whole.select(some)
                except SnapshotError:
                    num_noticed += 1
            path.write_bytes(content)
            assert parquet.read_table([path], schema) == whole
    assert num_noticed > 30


@pytest.mark.parametrize(
    "change", [lambda content: b"x" * len(content), lambda content: content[:-1], lambda content: b""]
)
def test_a_file_of_other_content_is_named_whatever_it_holds(
    stages: dict[Stage, Snapshot], change: Callable[[bytes], bytes]
) -> None:
    path = stages[Stage.PADDED].paths("evaluation/held")[0]
    content = path.read_bytes()
    path.write_bytes(change(content))
    for columns in (None, ["pair_id"]):
        with pytest.raises(SnapshotError, match="materialize padded_pairs again with RM_VERIFY=full"):
            parquet.read_table([path], schemas.PADDED, columns)
    path.write_bytes(content)


def test_files_that_changed_places_are_damaged_however_alike_they_are(stages: dict[Stage, Snapshot]) -> None:
    paths = stages[Stage.PADDED].paths("train")[:1] + stages[Stage.PADDED].paths("test")[:1]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)
    for path in paths:
        with pytest.raises(SnapshotError, match="is damaged"):
            next(parquet.read_batches(path, schemas.PADDED))
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)


def test_a_manifest_that_states_another_number_of_rows_is_found_out(stages: dict[Stage, Snapshot]) -> None:
    manifest = stages[Stage.TOKENIZED].directory / MANIFEST
    content = manifest.read_bytes()
    manifest.write_bytes(content.replace(b'"num_rows": 41', b'"num_rows": 40'))
    assert manifest.read_bytes() != content
    parquet._expected_files.cache_clear()
    with pytest.raises(SnapshotError, match=r"its number of rows is 41, not 40"):
        parquet.read_table(stages[Stage.TOKENIZED].paths(), schemas.TOKENIZED, ["pair_id"])
    manifest.write_bytes(content)
    assert parquet.read_table(stages[Stage.TOKENIZED].paths(), schemas.TOKENIZED).num_rows == 42


def test_rejects_that_changed_under_a_reader_are_read_by_the_manifest_of_now(settings: Settings, at_once: None) -> None:
    path = write_lines(Path(settings.annotations_path) / "a.jsonl", [plain_row(1), plain_row(2), b"{"])
    settings = settings.model_copy(update={"max_malformed_fraction": 1.0})
    before = first_stages(settings)
    assert [row["reason"] for row in rows(before, REJECTS)] == ["not_json"]
    write_lines(path, [plain_row(1), plain_row(2), b"{}"])
    assert first_stages(settings).name == before.name
    assert [row["reason"] for row in rows(before, REJECTS)] == ["unknown_format"]


def first_stages(settings: Settings) -> Snapshot:
    return publish_validated(settings, publish_raw(settings, silent), silent)


def test_the_footer_that_a_manifest_states_is_the_end_of_its_file(stages: dict[Stage, Snapshot]) -> None:
    for snapshot in stages.values():
        for shard in snapshot.manifest.shards:
            for file in shard.files:
                content = (snapshot.directory / file.path).read_bytes()
                footer = content[-8 - int.from_bytes(content[-8:-4], "little") :]
                assert hashlib.sha256(footer).hexdigest() == file.footer_sha256


def test_a_file_on_another_file_system_is_verified(tmp_path: Path) -> None:
    home = resolve_path(f"memory://{tmp_path.name}")
    schema = pa.schema([pa.field("value", pa.int64(), nullable=False)])
    with open_publication(home, "asset", 1, silent) as publication:
        fill = tables_writer({"data": pa.table({"value": range(1000)}, schema)}, {})
        snapshot = publication.publish([write_shard(publication.directory, "s", "", "key", fill)], {}, {})
    [path] = snapshot.paths()
    content = path.read_bytes()
    for place_of_bit in (10, len(content) // 2, len(content) - 30):
        path.write_bytes(content[:place_of_bit] + bytes([content[place_of_bit] ^ 4]) + content[place_of_bit + 1 :])
        for columns in (None, ["value"]):
            with pytest.raises(SnapshotError, match=r"is damaged .*: materialize asset again with RM_VERIFY=full"):
                parquet.read_table([path], schema, columns)
    path.write_bytes(content)
    for columns in (None, ["value"]):
        assert parquet.read_table([path], schema, columns)["value"].to_pylist() == list(range(1000))
