"""Millions of rejects take the memory of those of one shard, on their way into the table and onto the page."""

import hashlib
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
from rejects_memory import memory_of_rejects
from support import plain_row, rows, run_stages, silent, write_lines

from rm_assets.data.pairs.duplicates import dropped_rows
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.rejects import publish_rejects
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

NUM_REJECTS = 200_000


def test_rejects_are_gathered_and_shown_a_shard_at_a_time(tmp_path: Path) -> None:
    stages = []
    for count in (1, NUM_REJECTS):
        write_lines(tmp_path / f"{count}.jsonl", [b"\xff"] * count)
        settings = Settings(
            annotations=str(tmp_path / f"{count}.jsonl"), storage=str(tmp_path / str(count)), shard_bytes=20_000
        )
        stages.append((settings, publish_raw(settings, silent)))
    assert len(stages[-1][1].manifest.shards) == 20
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(memory_of_rejects, *stages[0]).result()  # imports what is needed
        rows_shown, passed, peak, arrow_peak = process.submit(memory_of_rejects, *stages[1]).result()
    assert rows_shown == NUM_REJECTS
    assert passed
    assert peak < 10 * NUM_REJECTS  # a dict for each would take a hundred times as much
    assert arrow_peak < 32 * 2**20  # however many there are: row groups of 8 MiB, written and joined


def test_rejects_of_all_stages_stand_in_the_order_of_their_lines_with_the_hashes_of_these(tmp_path: Path) -> None:
    too_long = plain_row(3, chosen="word " * 3_000)
    lines = [plain_row(1), b"{", plain_row(2), b"\xff", plain_row(1), too_long, plain_row(2)]
    lines += [*map(plain_row, range(10, 40)), plain_row(1)]  # in a second shard
    write_lines(tmp_path / "in" / "b.jsonl", lines)
    write_lines(tmp_path / "in" / "a.jsonl", [*map(plain_row, range(50, 60)), b"["])
    settings = Settings(annotations=str(tmp_path / "in"), storage=str(tmp_path / "s"), shard_bytes=17_000)
    stages = run_stages(settings)
    assert len(stages[Stage.RAW].manifest.shards) == 3
    found = rows(publish_rejects(settings, {stage: stages[stage] for stage in reversed(Stage)}, silent))
    assert [(row["source"], row["line"], row["reason"]) for row in found] == [
        ("a.jsonl", 11, "not_json"),
        ("b.jsonl", 2, "not_json"),
        ("b.jsonl", 4, "not_utf8"),
        ("b.jsonl", 5, "duplicate"),
        ("b.jsonl", 6, "too_long"),
        ("b.jsonl", 7, "duplicate"),
        ("b.jsonl", 38, "duplicate"),
    ]
    written = {name: (tmp_path / "in" / name).read_bytes().split(b"\n") for name in ("a.jsonl", "b.jsonl")}
    for row in found:
        assert row["line_sha256"] == hashlib.sha256(written[row["source"]][row["line"] - 1]).hexdigest()


def test_dropped_rows_are_held_without_an_object_for_each() -> None:
    keys = pa.chunked_array([["ab" * 16] * 20_000])
    before = sys.getallocatedblocks()
    dropped = dropped_rows(keys, keys, "drop")
    assert sys.getallocatedblocks() - before < 1_000
    assert dropped.rows.tolist() == list(range(1, 20_000))
