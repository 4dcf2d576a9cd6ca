"""What other processes are asked to do in tests: spawned ones must be able to import it."""

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from support import plain_row, run_stages, silent, write_lines

from rm_assets.data.storage import retention
from rm_assets.data.storage.files import resolve_path
from rm_assets.data.storage.latest import ConcurrentPublicationError
from rm_assets.data.storage.publication import open_publication
from rm_assets.data.storage.shards import tables_writer, write_shard
from rm_assets.data.storage.snapshots import DATA
from rm_assets.settings import Settings

SCHEMA = pa.schema([pa.field("value", pa.int64(), nullable=False)])


def write_own_number(directory: Path) -> None:
    (directory / str(os.getpid())).touch()


def bytes_in_pools_of_arrow(_: int) -> int:
    """What Arrow took for a Parquet file from allocators other than the C library's."""
    pq.write_table(pa.table({"value": list(range(1_000))}), pa.BufferOutputStream())
    pools = [getattr(pa, f"{name}_memory_pool")() for name in pa.supported_memory_backends() if name != "system"]
    return sum(pool.total_bytes_allocated() for pool in pools)


def own_number(_: int) -> int:
    return os.getpid()


def count_for_minutes(directory: Path) -> int:
    """One call that lets nobody else run, and that no signal but SIGKILL ends."""
    write_own_number(directory)
    return sum(range(10**10))


def has_torch(_: int) -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def loads_pandas_for_an_array(_: int) -> bool:
    return pa.array([1, 2]).to_pylist() == [1, 2] and "pandas" in sys.modules


def published(storage: Path, *values: int, keep: int = 3) -> object:
    """A snapshot of one shard for each value."""
    with open_publication(storage, "asset", keep, silent) as publication:
        shards = []
        for value in values:
            tables = {DATA: pa.table({"value": [value]}, SCHEMA)}
            shards.append(
                publication.find(f"key-{value}")
                or write_shard(publication.directory, f"s{value}", "", f"key-{value}", tables_writer(tables, {}))
            )
        return publication.publish(shards, {}, {})


def publish_without_shared_locks(cache: str, storage: str, value: int) -> None:
    """Publish several times as on a machine of its own, which shares no lock with others."""
    os.environ["XDG_CACHE_HOME"] = cache
    for _ in range(3):
        with contextlib.suppress(ConcurrentPublicationError):
            published(resolve_path(storage), 1, value)


def publish_until_told(cache: str, storage: str, values: list[int], report: Path) -> None:
    """Publish a snapshot for each value, as on a machine of its own; writes the outcome of each, by snapshot name."""
    os.environ["XDG_CACHE_HOME"] = cache
    retention._READING_SECONDS = 0.0  # nobody reads the older snapshots, and each publication lists all
    outcomes = {}
    for value in values:
        with open_publication(resolve_path(storage), "asset", 3, silent) as publication:
            tables = {DATA: pa.table({"value": [value]}, SCHEMA)}
            shard = write_shard(publication.directory, "s", "", f"key-{value}", tables_writer(tables, {}))
            before = publication.previous.name if publication.previous else None
            try:
                outcomes[publication.publish([shard], {}, {}).name] = [before, "published"]
            except ConcurrentPublicationError as error:
                name = next(word for word in str(error).split() if word.endswith(":") and len(word) == 17)[:-1]
                outcomes[name] = [before, str(error)]
    report.write_text(json.dumps(outcomes))


def kill_writers_of_one_storage(storage: str) -> None:
    """Have three processes publish changing values to one asset, and kill one of them six times; then all.

    They are forked from this process, which has to have done nothing with Arrow.
    """
    chance, storage_path = random.Random(6), Path(storage)
    latest = storage_path / "asset" / "latest.json"

    def start(seed: int) -> int:
        if number := os.fork():
            return number
        try:
            values = random.Random(seed)
            while True:
                published(storage_path, *values.sample(range(6), 3))
        except BaseException as error:
            print(f"a writer failed: {error!r}", flush=True)
        os._exit(1)

    writers = [start(seed) for seed in range(3)]
    for seed in range(3, 9):
        before = latest.stat().st_mtime_ns if latest.exists() else 0
        while not latest.exists() or latest.stat().st_mtime_ns == before:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(writers[0], signal.SIGKILL)
        os.waitpid(writers.pop(0), 0)
        writers.append(start(seed))
    for number in writers:
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)


def run_stages_again_and_again(annotations: str, storage: str, number: int, passes: int) -> None:
    """All data stages on one storage that keeps one snapshot, with a file of this process's own that changes."""
    settings = Settings(annotations=annotations, storage=storage, keep_snapshots=1, num_workers=1)
    for again in range(passes):
        rows = [plain_row(1000 * number + row) for row in range(10 + again)]
        write_lines(Path(annotations) / f"of-{number}.jsonl", list(rows))
        run_stages(settings)
