"""Other versions and other libraries read what the product writes: `pytest -m servers`, with a network for pip."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from server_environments import TORCH, Trained, golden_scores, run_program

pytestmark = pytest.mark.servers

TRANSFORMERS = {
    "4.51": f"{TORCH} transformers==4.51.0 accelerate==1.15.0",
    "4.57": f"{TORCH} transformers==4.57.6",
}
READS = [("4.51", "qwen3"), ("4.51", "llama"), ("4.57", "qwen3"), ("4.57", "llama"), ("4.57", "gemma3_text")]
"""transformers 4.51 has no classifier for Gemma 3."""


@pytest.mark.parametrize(("version", "name"), READS)
def test_the_code_of_the_card_gives_the_golden_scores_in_transformers_4(
    version: str, name: str, trained: Callable[..., Trained], environment: Callable[..., Path]
) -> None:
    directory = trained(name).directory
    found = run_program(environment(TRANSFORMERS[version]), "card", directory)
    assert found["same_texts"]
    assert found["alone"] == pytest.approx(golden_scores(directory), abs=1e-5)
    assert found["together"] == pytest.approx(golden_scores(directory), abs=1e-5)


@pytest.mark.parametrize("version", TRANSFORMERS)
def test_a_pipeline_gives_scores_and_not_their_sigmoid(
    version: str, trained: Callable[..., Trained], environment: Callable[..., Path]
) -> None:
    directory = trained("qwen3").directory
    found = run_program(environment(TRANSFORMERS[version]), "pipeline", directory)
    assert found == pytest.approx(golden_scores(directory), abs=1e-5)


@pytest.mark.parametrize("saved_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3_text"])
def test_sentence_transformers_takes_messages_and_gives_the_golden_scores(
    name: str, saved_dtype: str, trained: Callable[..., Trained], environment: Callable[..., Path]
) -> None:
    directory = trained(name, saved_dtype).directory
    found = run_program(environment(f"{TORCH} sentence-transformers==6.2.0"), "cross_encoder", directory)
    assert found == pytest.approx(golden_scores(directory), abs=1e-5)


@pytest.mark.parametrize(
    ("library", "packages"),
    [
        ("duckdb", "duckdb==1.4.4"),
        ("duckdb", "duckdb==1.0.0"),
        ("pyarrow", "pyarrow==15.0.2 'numpy<2'"),
        pytest.param(
            "spark",
            "pyspark==3.5.7",
            marks=pytest.mark.skipif(not shutil.which("java"), reason="Spark needs Java (apt: default-jre-headless)"),
        ),
    ],
)
def test_older_libraries_read_the_rows_of_every_stage(
    library: str, packages: str, trained: Callable[..., Trained], environment: Callable[..., Path]
) -> None:
    paths = [path for snapshot in trained("qwen3").stages.values() for path in snapshot.directory.rglob("*.parquet")]
    assert len(paths) >= 7
    assert run_program(environment(packages), "parquet_rows", library, *paths) == [
        pq.read_table(path).to_pylist() for path in paths
    ]
