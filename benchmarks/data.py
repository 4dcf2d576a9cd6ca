"""How fast annotations become padded pairs: the five data stages, TRL's preparation, and a bare floor, side by side.

    python benchmarks/data.py                                        # the built-in sample, a minute or two
    python benchmarks/data.py --annotations pairs.jsonl --tokenizer path/to/qwen3 --repeat-to 500000
    python benchmarks/data.py --scaling                              # 1, 4 and 16 times the pairs: speed and memory
    python benchmarks/data.py --before path/to/other/checkout        # its stages, too, in turn with these

Every measurement is a process of its own, in turn: ours, TRL with one process and with two (`load_dataset` of the JSON
lines, then `RewardTrainer._prepare_dataset`), ours again, and so on; medians count. The floor reads JSON lines of
already rendered texts, parses them with msgspec, encodes them with the same encoder and writes ids to Parquet, on as
many processes as the stages have; its MB/s are those of its own lines. Imports, the tokenizer's load and the start of
workers are counted on no side and printed apart; the forks of TRL's `num_proc=2` cannot be told from its work. The
tables can be pasted into RESULTS.md.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pairs import base_pairs, write_copies

from rm_assets.data.storage.snapshots import latest_snapshot
from rm_assets.data.tables.schemas import Stage
from rm_assets.settings import Settings

Result = dict[str, Any]


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", help="file of annotations in any format; default: the built-in sample")
    parser.add_argument("--tokenizer", help="directory of a tokenizer with a chat template; default: the sample's")
    parser.add_argument("--repeat-to", type=int, default=50_000, help="pairs for our stages and for the floor")
    parser.add_argument("--trl-pairs", type=int, default=20_000, help="pairs that TRL prepares")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of ours and of the floor")
    parser.add_argument("--before", help="another checkout of this project, whose stages are measured as well")
    parser.add_argument("--scaling", action="store_true", help="ours alone, on 1, 4 and 16 times --trl-pairs")
    arguments = parser.parse_args()
    settings = Settings(annotations=arguments.annotations, tokenizer=arguments.tokenizer)
    pairs = base_pairs(settings)
    print(_machine(arguments, len(pairs)))
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), arguments.tokenizer, arguments.workers)
        if arguments.scaling:
            print(scaling(bench, pairs, arguments.trl_pairs, arguments.rounds))
        else:
            print(comparison(bench, pairs, arguments))


class Bench:
    """A directory for the files of all measurements, and the processes that make them."""

    def __init__(self, directory: Path, tokenizer: str | None, workers: int) -> None:
        self.directory, self.tokenizer, self.workers = directory, tokenizer, workers

    def file(self, pairs: list[dict[str, Any]], num_pairs: int) -> Path:
        """A file of so many pairs, written once."""
        path = self.directory / f"{num_pairs}" / "pairs.jsonl"
        if not path.exists():
            path.parent.mkdir()
            write_copies(pairs, num_pairs, path)
        return path

    def measure(self, side: str, file: Path, checkout: str | None = None, **options: Any) -> Result:
        """One measurement of one side, in a process of its own; of `checkout`, if not of this one."""
        task = {"side": side, "file": str(file), "tokenizer": self.tokenizer, "workers": self.workers, **options}
        script = Path(__file__).with_name("measured.py")
        environment = {
            **os.environ,
            "HF_DATASETS_CACHE": tempfile.mkdtemp(dir=self.directory),
            "TQDM_DISABLE": "1",
            "PYTHONWARNINGS": "ignore",
            "PYTHONPATH": checkout or str(Path(__file__).parents[1]),
        }
        done = subprocess.run(
            [sys.executable, str(script), json.dumps(task)], stdout=subprocess.PIPE, env=environment, check=True
        )
        result: Result = json.loads(done.stdout.splitlines()[-1])
        result |= {"file_bytes": file.stat().st_size}
        used = result["processor_seconds"] / result["num_pairs"] * 1e6
        print(
            f"{side}: {result['num_pairs']:,} pairs in {result['seconds']:.2f} s, {used:.1f} µs each", file=sys.stderr
        )
        return result


# --- the tables ----------------------------------------------------------------------------------------------


def comparison(bench: Bench, pairs: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Ours against TRL on the same file, then ours against the floor on the long one."""
    short, long = bench.file(pairs, arguments.trl_pairs), bench.file(pairs, arguments.repeat_to)
    rendered = bench.directory / "rendered.jsonl"
    results: dict[str, list[Result]] = {name: [] for name in ("ours, short", "trl 1", "trl 2", "ours", "floor")}
    if arguments.before:
        results["before"] = []
    for turn in range(arguments.rounds):
        storage = bench.directory / f"storage-{turn}"
        trl_ids = bench.directory / "trl.parquet"
        results["ours, short"].append(bench.measure("ours", short, storage=str(storage)))
        results["trl 1"].append(bench.measure("trl", short, num_proc=1, ids=str(trl_ids)))
        results["trl 2"].append(bench.measure("trl", short, num_proc=2))
        equality = _equality(storage, trl_ids)
        long_storage = bench.directory / f"storage-long-{turn}"
        results["ours"].append(bench.measure("ours", long, storage=str(long_storage)))
        if not rendered.exists():
            _write_rendered(long_storage, rendered)
        results["floor"].append(bench.measure("floor", rendered))
        if arguments.before:
            before = bench.directory / f"storage-before-{turn}"
            results["before"].append(bench.measure("ours", long, checkout=arguments.before, storage=str(before)))
            shutil.rmtree(before)
        shutil.rmtree(storage)
        shutil.rmtree(long_storage)
    best_trl = max(_speed(results["trl 1"]), _speed(results["trl 2"]))
    rows = [
        ("TRL, num_proc=1", results["trl 1"]),
        ("TRL, num_proc=2", results["trl 2"]),
        ("ours, on TRL's pairs", results["ours, short"]),
        ("ours", results["ours"]),
        ("the bare floor", results["floor"]),
        *([("ours, before", results["before"])] if arguments.before else []),
    ]
    lines = [_HEADINGS + " times TRL's best |", _RULE]
    lines += [_row(name, of, best_trl) for name, of in rows]
    lines += ["", f"Ours runs at {_speed(results['ours']) / _speed(results['floor']):.2f} of the floor. {equality}", ""]
    return "\n".join(lines) + "\n" + _stages(results["ours"]) + "\n" + _apart(results)


def scaling(bench: Bench, pairs: list[dict[str, Any]], num_pairs: int, rounds: int) -> str:
    """Ours on 1, 4 and 16 times the pairs."""
    files = [bench.file(pairs, num_pairs * times) for times in (1, 4, 16)]
    results: dict[Path, list[Result]] = {file: [] for file in files}
    for turn in range(rounds):
        for file in files:
            storage = bench.directory / f"storage-{turn}"
            results[file].append(bench.measure("ours", file, storage=str(storage)))
            shutil.rmtree(storage)
    first = _speed(results[files[0]])
    lines = [_HEADINGS + " times the first's speed |", _RULE]
    lines += [_row(f"{times}x", results[file], first) for times, file in zip((1, 4, 16), files, strict=True)]
    return "\n".join(lines)


_HEADINGS = "| | pairs | seconds | processor µs per pair | pairs/s | MB/s of JSON lines | peak memory |"
_RULE = "|---" * 8 + "|"


def _row(name: str, results: list[Result], reference_speed: float) -> str:
    num_pairs, seconds = results[0]["num_pairs"], _median(results, "seconds")
    peak = max(result["peak_bytes"] or 0 for result in results)
    cells = [
        name,
        f"{num_pairs:,}",
        f"{seconds:.2f}",
        f"{_median(results, 'processor_seconds') / num_pairs * 1e6:.1f}",
        f"{num_pairs / seconds:,.0f}",
        f"{results[0]['file_bytes'] / 1e6 / seconds:.1f}",
        f"{peak / 2**20:,.0f} MiB" if peak else "unknown",
        f"{num_pairs / seconds / reference_speed:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _stages(results: list[Result]) -> str:
    times = {stage: statistics.median(result["stages"][stage] for result in results) for stage in results[0]["stages"]}
    whole, num_pairs = sum(times.values()), results[0]["num_pairs"]
    lines = ["| stage | seconds | share | µs per pair |", "|---|---|---|---|"]
    lines += [
        f"| {stage} | {seconds:.2f} | {seconds / whole:.0%} | {seconds / num_pairs * 1e6:.1f} |"
        for stage, seconds in times.items()
    ]
    return "\n".join(lines) + "\n"


def _apart(results: dict[str, list[Result]]) -> str:
    parts = [f"{name} {_median(of, 'setup_seconds'):.1f} s" for name, of in results.items()]
    return f"Not counted (imports, the tokenizer's load and self-test, the start of workers): {'; '.join(parts)}."


def _median(results: list[Result], name: str) -> float:
    return float(statistics.median(result[name] for result in results))


def _speed(results: list[Result]) -> float:
    return float(results[0]["num_pairs"]) / _median(results, "seconds")


def _machine(arguments: argparse.Namespace, num_pairs: int) -> str:
    names = ("rm_assets", "fastokens", "tokenizers", "transformers", "trl", "datasets", "pyarrow")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    source = Path(arguments.annotations).name if arguments.annotations else "the built-in sample"
    tokenizer = Path(arguments.tokenizer).name if arguments.tokenizer else "the sample's"
    return (
        f"{date.today().isoformat()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}; {versions}. Pairs: {num_pairs:,} of {source}, repeated; tokenizer: {tokenizer}; "
        f"{arguments.workers} processes; medians of {arguments.rounds}.\n"
    )


# --- the same ids --------------------------------------------------------------------------------------------


def _equality(storage: Path, trl_ids: Path) -> str:
    tokenized = latest_snapshot(storage, Stage.TOKENIZED)
    assert tokenized is not None
    columns = ["chosen_ids", "rejected_ids"]
    ours = pa.concat_tables([pq.read_table(path, columns=columns, partitioning=None) for path in tokenized.paths()])
    theirs = pq.read_table(trl_ids, columns=columns)
    if ours.num_rows != theirs.num_rows:
        raise SystemExit(f"ours has {ours.num_rows} pairs, TRL {theirs.num_rows}: the results are not comparable")
    if not all(
        ours[name].combine_chunks().equals(theirs[name].combine_chunks().cast(ours[name].type)) for name in columns
    ):
        raise SystemExit("ours and TRL have different ids")
    return f"All ids of {ours.num_rows:,} pairs are equal to TRL's."


def _write_rendered(storage: Path, path: Path) -> None:
    flattened = latest_snapshot(storage, Stage.FLATTENED)
    assert flattened is not None
    with path.open("w", encoding="utf-8") as stream:
        for file in flattened.paths():
            for row in pq.read_table(file, columns=["prompt", "chosen", "rejected"], partitioning=None).to_pylist():
                sides = {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
                stream.write(json.dumps(sides, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
