"""The pairs of a benchmark: those of a file of annotations, repeated, with every copy made distinct."""

import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.stages.flattening import publish_flattened
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.tokenization import publish_tokenized
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.storage.snapshots import Snapshot
from rm_assets.settings import Settings

Pair = dict[str, Any]


def base_pairs(settings: Settings) -> list[Pair]:
    """All pairs of the annotations that reach `tokenized_pairs`, as lists of messages with a role and a content.

    Pairs with tools or tool calls are left out: `datasets` fills their objects with nulls, so that TRL would render
    others than these.
    """
    with tempfile.TemporaryDirectory() as storage:
        own = settings.model_copy(update={"storage": storage, "num_workers": 1})
        tokenizer = find_tokenizer(own)
        raw = publish_raw(own, _silent)
        validated = publish_validated(own, raw, _silent)
        flattened = publish_flattened(own, tokenizer, validated, _silent)
        tokenized = publish_tokenized(own, tokenizer, validated, flattened, _silent)
        reached = {row["pair_id"] for row in rows(tokenized)}
        pairs = [row for row in rows(validated) if row["pair_id"] in reached and not row["tools"]]
    sides = [
        {side: [_plain(message) for message in pair[side]] for side in ("prompt", "chosen", "rejected")}
        for pair in pairs
    ]
    return [pair for pair in sides if None not in itertools.chain(*pair.values())]


def rows(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    """The rows of a snapshot's data, file by file."""
    for path in snapshot.paths():
        yield from pq.read_table(path, partitioning=None).to_pylist()


def write_copies(pairs: list[Pair], num_pairs: int, path: Path) -> None:
    """Write pairs as JSON lines until there are `num_pairs`.

    Copy 3 of a pair has " (3)" at the end of its first message and of its replies: no prompt and no pair is a
    duplicate of another, and the split sees as many prompts as there are pairs.
    """
    with path.open("w", encoding="utf-8") as stream:
        for number in range(num_pairs):
            copy, index = divmod(number, len(pairs))
            stream.write(json.dumps(_copy(pairs[index], f" ({copy})"), ensure_ascii=False) + "\n")


def _copy(pair: Pair, mark: str) -> Pair:
    def marked(message: dict[str, str]) -> dict[str, str]:
        return message | {"content": message["content"] + mark}

    prompt, chosen, rejected = pair["prompt"], pair["chosen"], pair["rejected"]
    return {
        "prompt": [marked(prompt[0]), *prompt[1:]] if prompt else [],
        "chosen": [*chosen[:-1], marked(chosen[-1])],
        "rejected": [*rejected[:-1], marked(rejected[-1])],
    }


def _plain(message: dict[str, Any]) -> dict[str, str] | None:
    present = {name: value for name, value in message.items() if value is not None}
    return present if present.keys() == {"role", "content"} else None


def _silent(text: str) -> None:
    pass
