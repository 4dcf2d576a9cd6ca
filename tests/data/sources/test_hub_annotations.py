"""Annotations on the Hugging Face Hub: a stand-in of its API answers on the loopback."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import REPOSITORY, Hub, hub_server
from support import plain_row, rows, silent, violations

from rm_assets.data.sources.content_version import content_listing
from rm_assets.data.sources.discovery import find_annotations
from rm_assets.data.stages.raw import files_to_read, publish_raw
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings, SettingsError

ROOT = f"hf://datasets/{REPOSITORY}"
TOKEN = "hf_" + "CANARY" * 6


def parquet(*numbers: int) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([plain_row(number) for number in numbers]), stream)
    return stream.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as server:
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": server.endpoint})
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        server.files = {
            "README.md": b"# A data set",
            "data/train.parquet": parquet(1, 2, 3),
            "data/more/test.jsonl": json.dumps(plain_row(4)).encode() + b"\n",
            "old/a.csv": b"prompt,chosen,rejected\np,c,r\n",
        }
        yield server


def on_hub(tmp_path: Path, setting: str = ROOT) -> Settings:
    return Settings(annotations=setting, storage=str(tmp_path / "storage"), num_workers=1)


def prompts(settings: Settings) -> list[tuple[str, int, str]]:
    raw = publish_raw(settings, silent)
    assert set(violations({Stage.RAW: raw}).values()) == {0}
    return [(row["source"], row["line"], json.loads(row["text"])["prompt"]) for row in rows(raw)]


@pytest.mark.parametrize(
    ("setting", "sources"),
    [
        (ROOT, ["data/more/test.jsonl", "data/train.parquet", "old/a.csv"]),
        (f"{ROOT}/data", ["more/test.jsonl", "train.parquet"]),
        (f"{ROOT}@main/data", ["more/test.jsonl", "train.parquet"]),
        (f"{ROOT}/data/*.parquet", ["train.parquet"]),
        (f"{ROOT}/**/*.csv", ["old/a.csv"]),
        (f"{ROOT}/old/a.csv", ["a.csv"]),
    ],
)
def test_files_are_found_by_data_set_directory_glob_or_name(hub: Hub, setting: str, sources: list[str]) -> None:
    assert [file.source for file in find_annotations(setting).files] == sources


def test_a_data_set_is_read_once_and_what_changes_in_it_again(hub: Hub, tmp_path: Path) -> None:
    settings = on_hub(tmp_path)
    expected = [
        ("data/more/test.jsonl", 1, "What is 4 plus one?"),
        *(("data/train.parquet", line, f"What is {line} plus one?") for line in (1, 2, 3)),
        ("old/a.csv", 1, "p"),
    ]
    assert prompts(settings) == expected
    hub.requests.clear()
    assert publish_raw(settings, silent).num_new_shards == 0
    assert not [path for _, path in hub.requests if "/resolve/" in path]
    before = version(settings)
    hub.files["data/more/test.jsonl"] = json.dumps(plain_row(5)).encode() + b"\n"  # of the same size
    assert version(settings) != before
    assert prompts(settings) == [("data/more/test.jsonl", 1, "What is 5 plus one?"), *expected[1:]]


def version(settings: Settings) -> str | None:
    return content_listing(files_to_read(settings)[1], Path(settings.storage), settled_seconds=30.0).version


@pytest.mark.parametrize("missing", ["hf://datasets/owner/nothing", f"{ROOT}/nothing", f"{ROOT}/nothing.jsonl"])
def test_what_is_not_there_is_one_clear_error_without_the_token(hub: Hub, missing: str) -> None:
    with pytest.raises(SettingsError) as error:
        find_annotations(missing)
    assert "there is no such file or directory" in str(error.value) or "cannot be reached" in str(error.value)
    assert repr(missing) in str(error.value)
    assert "CANARY" not in str(error.value)


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub, tmp_path: Path) -> None:
    said: list[str] = []
    publish_raw(on_hub(tmp_path), said.append)
    assert hub.tokens == {f"Bearer {TOKEN}"}
    written = [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]
    assert written
    assert not any(b"CANARY" in path.read_bytes() for path in written)
    assert "CANARY" not in "".join(said)
