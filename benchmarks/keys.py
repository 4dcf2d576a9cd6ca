"""What decisions over all pairs cost, by the number of pairs: duplicates, splits, manifests. Keys alone, no texts.

    python benchmarks/keys.py                              # 10^5, 10^6 and 10^7 pairs: some minutes, 4 GB
    python benchmarks/keys.py --pairs 1000000

Each number of pairs is measured in a process of its own. Keys are random, and one pair in a hundred is there twice. The
peak leaves out the keys themselves, all in memory here, since `padded_pairs` reads them shard by shard.
The manifest has one shard for each 31,000 pairs, which are 32 MiB of lines of about 1,080 bytes, with the entry of a
real padded shard. The table can be pasted into `rm_assets/data/SCALE.md`.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from rm_assets.data.pairs.digests import key_digests, shared_digests
from rm_assets.data.pairs.duplicates import dropped_rows
from rm_assets.data.pairs.splits import splits_of
from rm_assets.data.storage.snapshots import Manifest, Shard, ShardFile

PAIRS_PER_SHARD = 31_000
_STATS = dict.fromkeys((f"num_figure_{number:02}" for number in range(16)), 31_000)


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="*", default=[10**5, 10**6, 10**7])
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    print("| pairs | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for num_pairs in arguments.pairs:
        done = subprocess.run(
            [sys.executable, __file__, "--measure", str(num_pairs)], stdout=subprocess.PIPE, check=True
        )
        found = json.loads(done.stdout)
        print(f"| {num_pairs:,} | " + " | ".join(f"{found[name]:,.2f}" for name in COLUMNS) + " |", flush=True)


COLUMNS = (
    *("duplicates, CPU s", "duplicates, peak MiB"),
    *("splits, CPU s", "prompts in two splits, CPU s", "manifest, MiB", "manifest read, CPU s"),
)


def measure(num_pairs: int) -> dict[str, float]:
    """The figures of one number of pairs."""
    chosen, rejected = (_keys(num_pairs, seed) for seed in (1, 2))
    held = _peak_bytes()
    _, duplicates = _seconds(lambda: dropped_rows(chosen, rejected, "drop"))
    peak = _peak_bytes()
    sample = chosen.slice(0, min(num_pairs, PAIRS_PER_SHARD)).to_pylist()
    _, of_sample = _seconds(lambda: splits_of(sample, "seed", 0.05, 0.1))
    _, shared = _seconds(lambda: shared_digests(key_digests(chosen), key_digests(rejected)))
    shards = tuple(map(_shard, range(-(-num_pairs // PAIRS_PER_SHARD))))
    manifest = Manifest(asset="padded_pairs", snapshot="0" * 16, identity="", inputs={}, facts={}, shards=shards)
    content = msgspec.json.encode(manifest)
    _, reading = _seconds(lambda: msgspec.json.decode(content, type=Manifest))
    peak_mib, manifest_mib = (peak - held) / 2**20, len(content) / 2**20
    splits = of_sample / len(sample) * num_pairs  # shard by shard in the workers
    return dict(zip(COLUMNS, (duplicates, peak_mib, splits, shared, manifest_mib, reading), strict=True))


def _keys(num_pairs: int, seed: int) -> pa.ChunkedArray:
    """Random keys of 32 hexadecimal digits, a chunk for each shard; the last hundredth is equal to the first."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    random = np.random.default_rng(seed)
    sizes = _chunk_sizes(num_pairs - num_pairs // 100)
    chunks = [_column(digits[random.integers(0, 16, 32 * size, np.uint8)].tobytes()) for size in sizes]
    again = pa.chunked_array(chunks).slice(0, num_pairs // 100)
    return pa.chunked_array([*chunks, *again.chunks])


def _chunk_sizes(num_pairs: int) -> list[int]:
    full, rest = divmod(num_pairs, PAIRS_PER_SHARD)
    return [PAIRS_PER_SHARD] * full + [rest] * bool(rest)


def _column(text: bytes) -> pa.StringArray:
    ends = np.arange(0, len(text) + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(text))


def _shard(number: int) -> Shard:
    name = f"annotations-{number:08}"
    paths = [f"{folder}/{name}.parquet" for folder in ("train", "validation", "test")]
    files = tuple(
        ShardFile(path=path, sha256="0" * 64, num_rows=10_000, num_bytes=5_000_000, footer_sha256="0" * 64)
        for path in paths
    )
    return Shard(name=name, source="annotations.jsonl", key="0" * 64, files=files, stats=_STATS)


def _seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return call(), time.process_time() - start


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
