"""What a refresh of the five data stages costs: cold, with nothing changed, and with one line appended.

    python benchmarks/refresh.py                                     # 20 and 200 MB of the built-in sample
    python benchmarks/refresh.py --annotations pairs.jsonl --tokenizer path/to/qwen3 --megabytes 200 2000

Every row is a process of its own, and what it loads while the stages run, the tokenizer above all, is in its seconds.
Its share of the cold run is given by the clock and by processors, which other work on the machine hardly changes.
Peak memory is that of the process and all that it started. Data files written are those that the storage did not hold
before.
"""

import argparse
import os
import tempfile
from pathlib import Path

from data import Bench
from pairs import base_pairs, write_copies

from rm_assets.settings import Settings

LONG_AGO = 1_600_000_000


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", help="file of annotations in any format; default: the built-in sample")
    parser.add_argument("--tokenizer", help="directory of a tokenizer with a chat template; default: the sample's")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[20, 200], help="sizes of the JSON lines, in 10^6")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    arguments = parser.parse_args()
    pairs = base_pairs(Settings(annotations=arguments.annotations, tokenizer=arguments.tokenizer))
    print("| | pairs | seconds | CPU seconds | of the cold run: clock, CPU | peak memory | data files written |")
    print("|---|---|---|---|---|---|---|")
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "pairs.jsonl"
            write_copies(pairs, len(pairs), file)
            write_copies(pairs, len(pairs) * megabytes * 10**6 // file.stat().st_size, file)
            last_line = _cut_last_line(file)
            bench = Refreshes(Bench(Path(directory), arguments.tokenizer, arguments.workers), file)
            print(bench.row(f"{megabytes:,} MB, cold"), flush=True)
            print(bench.row("nothing changed"), flush=True)
            with file.open("ab") as stream:
                stream.write(last_line)
            os.utime(file, (LONG_AGO, LONG_AGO))
            print(bench.row("one line appended"), flush=True)


def _cut_last_line(file: Path) -> bytes:
    """Take the last line off a file, and return it; the file looks old, since a young one is hashed twice."""
    with file.open("rb+") as stream:
        start = max(stream.seek(0, os.SEEK_END) - 2**20, 0)
        stream.seek(start)
        line = stream.read().splitlines(keepends=True)[-1]
        stream.truncate(file.stat().st_size - len(line))
    os.utime(file, (LONG_AGO, LONG_AGO))
    return line


class Refreshes:
    """Refreshes of one storage, one after another."""

    def __init__(self, bench: Bench, file: Path) -> None:
        self.bench, self.file, self.storage = bench, file, bench.directory / "storage"
        self.cold: dict[str, float] | None = None

    def row(self, name: str) -> str:
        """One refresh, as a row of the table."""
        before = self._data_files()
        result = self.bench.measure("ours", self.file, storage=str(self.storage), warm=False)
        self.cold = self.cold or result
        cells = [
            name,
            f"{result['num_pairs']:,}",
            f"{result['seconds']:.2f}",
            f"{result['processor_seconds']:.2f}",
            ", ".join(f"{result[what] / self.cold[what]:.1%}" for what in ("seconds", "processor_seconds")),
            f"{(result['peak_bytes'] or 0) / 2**20:,.0f} MiB" if result["peak_bytes"] else "unknown",
            f"{len(self._data_files() - before)}",
        ]
        return f"| {' | '.join(cells)} |"

    def _data_files(self) -> set[int]:
        """Files of Parquet by inode, as snapshots link to those of the one before."""
        return {path.stat().st_ino for path in self.storage.rglob("*.parquet")}


if __name__ == "__main__":
    main()
