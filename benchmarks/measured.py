"""One measurement of `data.py`, in a process of its own: our stages, TRL's preparation, or the floor.

It is called with a JSON object and prints one. `peak_bytes` is the largest memory of this process and all that it
started, looked at now and then, with shared pages counted once (Linux's proportional set size); None elsewhere. A look
at large processes takes the kernel tens of milliseconds, so the pauses are `_PAUSE` times as long.
"""

import contextlib
import io
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

Task = dict[str, Any]
_RANGE_BYTES = 8 * 2**20
_PAUSE = 20


def main() -> None:
    """Measure what the argument says."""
    task = json.loads(sys.argv[1])
    with contextlib.redirect_stdout(io.StringIO()):
        result = SIDES[task["side"]](task)
    print(json.dumps(result))


class Memory:
    """Watches the memory of this process and its descendants, as a context."""

    def __init__(self) -> None:
        self.peak: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        if not Path("/proc/self/smaps_rollup").exists():
            return
        self.peak, look_seconds = 0, 0.0
        while not self._done.wait(max(0.1, _PAUSE * look_seconds)):
            start = time.perf_counter()
            self.peak = max(self.peak, _memory_bytes(os.getpid()))
            look_seconds = time.perf_counter() - start


def _memory_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = {int(child) for task in tasks for child in (task / "children").read_text().split()}
    except (OSError, ValueError):
        return 0  # it has ended
    own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    return own + sum(map(_memory_bytes, children))


def _processor_seconds(process: int | str = "self") -> float | None:
    """The processor time of a process, its descendants, and children that have ended; None without Linux's /proc."""
    try:
        figures = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = {int(child) for task in tasks for child in (task / "children").read_text().split()}
    except OSError:
        return None
    own = sum(map(int, figures[11:15])) / os.sysconf("SC_CLK_TCK")  # user and system; then those of ended children
    return own + sum(_processor_seconds(child) or 0.0 for child in children)


class Moment:
    """A moment by the clock, and by the processor time of this process and its descendants."""

    def __init__(self) -> None:
        self.seconds, self.processor_seconds = time.perf_counter(), _processor_seconds()


def _result(started: float, ready: Moment, done: Moment, num_pairs: int, memory: Memory, **more: Any) -> dict[str, Any]:
    used = (done.processor_seconds or 0.0) - (ready.processor_seconds or 0.0)
    return {
        "setup_seconds": ready.seconds - started,
        "seconds": done.seconds - ready.seconds,
        "processor_seconds": used,
        "num_pairs": num_pairs,
        "peak_bytes": memory.peak,
        **more,
    }


# --- ours ----------------------------------------------------------------------------------------------------


def ours(task: Task) -> dict[str, Any]:
    """The five data stages, with their processes warmed up before unless `warm` is false."""
    started = time.perf_counter()
    from rm_assets.data.chat.model_files import find_tokenizer
    from rm_assets.data.stages.flattening import publish_flattened
    from rm_assets.data.stages.padding import publish_padded
    from rm_assets.data.stages.raw import publish_raw
    from rm_assets.data.stages.tokenization import publish_tokenized
    from rm_assets.data.stages.validation import publish_validated
    from rm_assets.settings import Settings

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    settings = Settings(
        annotations=task["file"], storage=task["storage"], tokenizer=task["tokenizer"], num_workers=task["workers"]
    )
    tokenizer = find_tokenizer(settings)
    if task.get("warm", True):
        _warm_up(settings, tokenizer)
    stages: dict[str, float] = {}

    def timed(stage: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        snapshot = stage(settings, *arguments, say)
        stages[snapshot.manifest.asset] = time.perf_counter() - start
        return snapshot

    with Memory() as memory:
        ready = Moment()
        raw = timed(publish_raw)
        validated = timed(publish_validated, raw)
        flattened = timed(publish_flattened, tokenizer, validated)
        tokenized = timed(publish_tokenized, tokenizer, validated, flattened)
        padded = timed(publish_padded, validated, tokenized)
        done = Moment()
    num_rejects = {
        snapshot.manifest.asset: snapshot.manifest.num_rows(rejects=True)
        for snapshot in (raw, validated, flattened, tokenized, padded)
    }
    return _result(started, ready, done, raw.manifest.num_rows(), memory, stages=stages, num_rejects=num_rejects)


def _warm_up(settings: Any, tokenizer: Any) -> None:
    """What a run has once for all its stages, and what is not counted: processes that have loaded the tokenizer."""
    from rm_assets.data.compute.workers import map_in_processes

    if Path(settings.annotations_path).stat().st_size <= settings.shard_bytes:
        _load(settings, tokenizer)  # a single shard is computed in this process
    else:
        with tempfile.TemporaryDirectory() as meeting:
            jobs = [(settings, tokenizer, Path(meeting))] * settings.num_workers
            list(map_in_processes(_load_and_meet, jobs, settings.num_workers))


def _load_and_meet(job: tuple[Any, Any, Path]) -> None:
    """Load once in each process: none takes a second job while others have none."""
    settings, tokenizer, meeting = job
    _load(settings, tokenizer)
    (meeting / str(os.getpid())).touch()
    deadline = time.monotonic() + 600
    while len(list(meeting.iterdir())) < settings.num_workers and time.monotonic() < deadline:
        time.sleep(0.05)


def _load(settings: Any, tokenizer: Any) -> None:
    from rm_assets.data.chat.encoder import load_encoder
    from rm_assets.data.stages.flattening import template_renderer
    from rm_assets.data.stages.tokenization import SELF_TESTS

    load_encoder(tokenizer, Path(settings.storage) / SELF_TESTS)
    template_renderer(tokenizer)


# --- TRL -----------------------------------------------------------------------------------------------------


def trl(task: Task) -> dict[str, Any]:
    """`load_dataset`, then the newest `RewardTrainer._prepare_dataset` with our limit of tokens."""
    started = time.perf_counter()
    from datasets import disable_progress_bars, load_dataset
    from trl import RewardConfig, RewardTrainer

    from rm_assets.data.chat.model_files import find_tokenizer
    from rm_assets.data.chat.tokenizer import load_chat_tokenizer
    from rm_assets.settings import Settings

    disable_progress_bars()
    settings = Settings(tokenizer=task["tokenizer"])
    tokenizer = load_chat_tokenizer(find_tokenizer(settings)).reference
    trainer = object.__new__(RewardTrainer)  # the preparation reads nothing of it
    with tempfile.TemporaryDirectory() as directory:
        options = {"dataset_num_proc": task["num_proc"], "max_length": settings.max_length}
        config = RewardConfig(output_dir=directory, report_to="none", use_cpu=True, bf16=False, **options)
        with Memory() as memory:
            ready = Moment()
            dataset = load_dataset("json", data_files=task["file"], split="train")
            num_pairs = len(dataset)
            prepared = trainer._prepare_dataset(dataset, tokenizer, config, "train")
            done = Moment()
    if "ids" in task:
        prepared.select_columns(["chosen_ids", "rejected_ids"]).to_parquet(task["ids"])
    return _result(started, ready, done, num_pairs, memory)


# --- the floor -----------------------------------------------------------------------------------------------


def floor(task: Task) -> dict[str, Any]:
    """Read, parse, encode rendered texts and write ids, by ranges of the file over processes."""
    started = time.perf_counter()
    size, workers = Path(task["file"]).stat().st_size, task["workers"]
    ranges = [(start, min(start + _RANGE_BYTES, size)) for start in range(0, size, _RANGE_BYTES)]
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as directory,
        ProcessPoolExecutor(workers, mp_context=context, initializer=_floor_encoder, initargs=(task,)) as pool,
    ):
        list(pool.map(time.sleep, [1.0] * workers))  # all of them are up, with their tokenizer
        with Memory() as memory:
            ready = Moment()
            jobs = [(task, start, end, f"{directory}/{start}.parquet") for start, end in ranges]
            num_pairs = sum(pool.map(_floor_range, jobs))
            done = Moment()
    return _result(started, ready, done, num_pairs, memory)


def _floor_encoder(task: Task) -> Any:
    from rm_assets.data.chat.encoder import load_encoder
    from rm_assets.data.chat.model_files import find_tokenizer
    from rm_assets.settings import Settings

    return load_encoder(find_tokenizer(Settings(tokenizer=task["tokenizer"])))


def _floor_range(job: tuple[Task, int, int, str]) -> int:
    import msgspec
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    task, start, end, path = job
    encoder = _floor_encoder(task)
    with Path(task["file"]).open("rb") as stream:
        stream.seek(max(start - 1, 0))
        if start:
            stream.readline()  # the line that began before
        lines = stream.readlines(max(end - stream.tell(), 1)) if stream.tell() < end else []
    decoder = msgspec.json.Decoder(dict[str, str])
    rows = [decoder.decode(line) for line in lines]
    columns = {}
    for side in ("chosen", "rejected"):
        ids, offsets = encoder.encode_batch([row[side] for row in rows])
        columns[f"{side}_ids"] = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(ids))
    with Path(path).open("wb") as out:
        pq.write_table(pa.table(columns), out, compression="zstd", write_page_checksum=True)
    return len(rows)


SIDES: dict[str, Callable[[Task], dict[str, Any]]] = {"ours": ours, "trl": trl, "floor": floor}

if __name__ == "__main__":
    main()
