"""Decisions of padded_pairs over all shards: which rows are dropped, and which prompts are in two splits."""

import itertools
import random
from pathlib import Path

import pyarrow as pa
import pytest
from support import run_stages, silent, write_lines

from rm_assets.data.pairs.duplicates import dropped_rows
from rm_assets.data.stages import padding
from rm_assets.data.storage.parquet import read_table
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.shards import tables_writer, write_shard
from rm_assets.data.tables import schemas
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings


def flipped(row: dict[str, str]) -> dict[str, str]:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


@pytest.mark.parametrize("conflicts", ["drop", "majority", "keep"])
def test_pairs_of_many_shards_are_dropped_as_if_all_were_in_one(settings: Settings, conflicts: str) -> None:
    draw = random.Random(1)
    plain = [{"prompt": f"Q{number}", "chosen": f"good {number}", "rejected": f"bad {number}"} for number in range(40)]
    lines = [*plain, *draw.choices(plain[:20], k=20), *map(flipped, draw.choices(plain[10:25], k=10))]
    draw.shuffle(lines)
    write_lines(Path(settings.annotations_path) / "a.jsonl", lines)
    tokenized = run_stages(settings.model_copy(update={"shard_bytes": 300}))[Stage.TOKENIZED]
    assert len(tokenized.manifest.shards) > 10
    keys = read_table(tokenized.paths(), schemas.TOKENIZED, ["chosen_key", "rejected_key"])
    expected = dropped_rows(*keys.columns, conflicts).reasons()
    assert len(expected) >= 20
    found = padding._dropped_by_shard(tokenized, conflicts)
    ends = itertools.accumulate((shard.num_rows() for shard in tokenized.manifest.shards), initial=0)
    starts = zip(tokenized.manifest.shards, ends, strict=False)
    assert {
        start + row: reason for shard, start in starts for row, reason in found[shard.name].reasons().items()
    } == expected


def test_a_prompt_in_two_splits_is_counted_once_in_whatever_shards_it_is(tmp_path: Path) -> None:
    keys = [f"{number:032x}" for number in range(1, 8)]
    shards = [
        {"train": [0, 1, 1, 2], "validation": [3]},
        {"train": [3, 4, 5], "test": [1, 6]},
        {"validation": [3, 1], "test": [6, 2]},
    ]  # 3 is in train and validation, 1 in all of them, 2 in train and test
    with open_publication(tmp_path, "padded_pairs", 3, silent) as publisher:
        written = []
        for number, splits in enumerate(shards):
            fill = tables_writer(
                {
                    split: pa.table({"prompt_key": [keys[place] for place in places]})
                    for split, places in splits.items()
                },
                {},
            )
            written.append(write_shard(publisher.directory, f"shard-{number}", "a", str(number), fill))
        assert padding._num_prompts_in_two_splits(publisher, written) == 3
        assert padding._num_prompts_in_two_splits(publisher, written[:1]) == 0
