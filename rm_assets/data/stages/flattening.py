"""flattened_conversations: each pair as text, rendered by the chat template.

`prompt + chosen` and `prompt + rejected` are the two whole conversations. The prompt ends where the template's
generation prompt ends, or at the first difference between the two renderings if that is earlier.
"""

import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rm_assets.data.chat.model_files import TokenizerFiles
from rm_assets.data.chat.pair_rendering import SIDES
from rm_assets.data.chat.rendering import RenderedPairs, flatten_pairs
from rm_assets.data.chat.template_renderer import TemplateRenderer
from rm_assets.data.chat.tokenizer import load_chat_tokenizer
from rm_assets.data.compute.engine import Task
from rm_assets.data.stages.identities import settings_key
from rm_assets.data.stages.rejects import num_rejects, reason_counts, refused_rows
from rm_assets.data.stages.run_stage import Log, log_slow_paths, run_stage, shard_task
from rm_assets.data.storage.fingerprint import fingerprint
from rm_assets.data.storage.parquet import read_batches
from rm_assets.data.storage.shards import ShardWriter, Stats, counts_of_files
from rm_assets.data.storage.snapshots import DATA, REJECTS, Shard, Snapshot
from rm_assets.data.tables import schemas
from rm_assets.data.tables.reasons import Reason
from rm_assets.data.tables.schemas import PAIR_COLUMNS, Stage
from rm_assets.settings import Settings

VERSION = 6


@dataclass(frozen=True, kw_only=True)
class FlatteningTask:
    """A shard of validated pairs, and the tokenizer whose chat template renders them."""

    path: Path | None
    sources: tuple[str, ...]
    tokenizer: TokenizerFiles
    allow_control_tokens: bool


@functools.lru_cache(maxsize=4)
def template_renderer(files: TokenizerFiles) -> TemplateRenderer:
    """The renderer of these files' chat template, one per process."""
    return TemplateRenderer(load_chat_tokenizer(files))


def flatten_shard(task: FlatteningTask, writer: ShardWriter) -> Stats:
    """Render one shard of validated pairs; if the fast path fails its check, transformers renders the whole shard."""
    renderer = template_renderer(task.tokenizer)
    was_fast = not renderer.reason
    stats = _flatten(task, renderer, writer)
    if was_fast and renderer.reason:
        writer.restart()
        stats = _flatten(task, renderer, writer)
    return stats | {"renderer": "jinja" if renderer.reason else "pieces", "renderer_reason": renderer.reason}


def _flatten(task: FlatteningTask, renderer: TemplateRenderer, writer: ShardWriter) -> Stats:
    num_in, counts = Counter[str](), Counter(num_rewritten=0, num_one_by_one=0)
    reasons: Counter[Reason] = Counter()
    for rows in read_batches(task.path, schemas.VALIDATED):
        pairs, refused, num_one_by_one = flatten_pairs(renderer, rows, allow_control_tokens=task.allow_control_tokens)
        writer.write(DATA, _table(rows, pairs))
        details = {row: (error.reason, error.detail) for row, error in refused.items()}
        writer.write(REJECTS, refused_rows(rows, Stage.FLATTENED, details))
        num_in.update(schemas.num_rows_by_source(rows))
        counts.update(num_one_by_one=num_one_by_one, num_rewritten=int(pairs.is_rewritten.sum()))
        reasons.update(error.reason for error in refused.values())
    return {**counts_of_files(task.sources, num_in=num_in), **counts, "reasons": reason_counts(reasons)}


def _table(rows: pa.Table, pairs: RenderedPairs) -> pa.Table:
    if len(pairs.rows) < rows.num_rows:
        rows = rows.take(pa.array(pairs.rows))
    columns: dict[str, Any] = {name: rows[name] for name in (*PAIR_COLUMNS, "margin")}
    made = ("prompt", *SIDES, *(f"{side}_control_tokens" for side in SIDES))
    return schemas.build_table(columns | {name: getattr(pairs, name) for name in made}, schemas.FLATTENED)


def measure_flattened(task: FlatteningTask, paths: dict[str, Path]) -> Stats:
    """Figures of the written shard: pairs out, rejects, and pairs whose two texts are equal."""
    num_out, figures = Counter[str](), Counter(num_identical=0, num_characters=0)
    for rows in read_batches(paths.get(DATA), schemas.FLATTENED, ["source", "prompt", "chosen", "rejected"]):
        num_out.update(schemas.num_rows_by_source(rows))
        figures.update(
            num_identical=pc.sum(pc.equal(rows["chosen"], rows["rejected"])).as_py(),
            num_characters=sum(pc.sum(pc.utf8_length(column)).as_py() for column in rows.columns[1:]),
        )
    return {**counts_of_files(task.sources, num_out=num_out, num_rejects=num_rejects(paths)), **figures}


# --- the stage -----------------------------------------------------------------------------------------------


def publish_flattened(settings: Settings, tokenizer: TokenizerFiles, validated: Snapshot, log: Log) -> Snapshot:
    """Render every validated shard whose result is not stored yet, and publish the snapshot."""
    settings_hash = settings_key(Stage.FLATTENED, VERSION, settings, tokenizer.identity)

    def task(shard: Shard) -> Task:
        arguments = FlatteningTask(
            path=validated.data_path(shard),
            sources=tuple(shard.by_source),
            tokenizer=tokenizer,
            allow_control_tokens=settings.control_tokens == "allow",
        )
        return shard_task(shard, fingerprint(settings_hash, shard.key), arguments)

    snapshot = run_stage(
        Stage.FLATTENED,
        settings,
        validated,
        lambda _: [task(shard) for shard in validated.manifest.shards],
        flatten_shard,
        measure_flattened,
        log,
        tokenizer=tokenizer.identity,
    )
    log_slow_paths(snapshot, "rendered by transformers one by one, many times slower", "renderer_reason", log)
    return snapshot
