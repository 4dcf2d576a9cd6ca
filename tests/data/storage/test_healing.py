"""A run that is killed, or whose disk is full, and is started again: it ends where an undisturbed run ends.

Nothing is done in between. Equal is the whole storage, file by file, so that nothing is left over either.
"""

import contextlib
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import plain_row, run_stages, silent, small_disk, write_lines

from rm_assets.data.compute import engine
from rm_assets.data.stages.raw import publish_raw
from rm_assets.data.stages.validation import publish_validated
from rm_assets.data.storage.files import StorageError
from rm_assets.settings import Settings

SHARD_BYTES = 4000
NOT_DATA = ("writer.lock", "stamps.json", "listing.json")


def tree(storage: Path) -> dict[str, str]:
    """Every file, empty directories too, with its content's hash."""
    return {
        str(path.relative_to(storage)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(storage.rglob("*"))
        if path.name not in NOT_DATA
    }


def first_stages(settings: Settings) -> None:
    """Those that load no tokenizer, and take a second."""
    publish_validated(settings, publish_raw(settings, silent), silent)


# Runs the stages named by the first argument; prints a line once all is loaded; kills itself at the n-th time that it
# opens, makes, renames, links or removes something in the storage.
CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[5])
import test_healing, support
from rm_assets.data.chat.model_files import find_tokenizer
from rm_assets.data.chat.tokenizer import load_chat_tokenizer
stages, annotations, storage, moment = *sys.argv[1:4], int(sys.argv[4])
settings = test_healing.settings_of(annotations, storage)
if stages == "run_stages":
    load_chat_tokenizer(find_tokenizer(settings))
EVENTS = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.scandir"}
seen = 0
def watch(event, arguments):
    global seen
    if event in EVENTS and str(arguments[0]).startswith(storage):
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
print("ready", flush=True)
getattr(test_healing, stages)(settings)
print(seen, flush=True)
"""


def settings_of(annotations: str, storage: str) -> Settings:
    """In soak runs with processes of their own for shards, which outlive for a moment the one that is killed."""
    if os.environ.get("HEALING_PROCESSES"):
        engine._SMALL_BYTES = 0
    return Settings(annotations=annotations, storage=storage, shard_bytes=SHARD_BYTES, num_workers=2)


def child(stages: str, annotations: Path, storage: Path, moment: int = 0, **environment: str) -> subprocess.Popen[str]:
    places = [str(annotations), str(storage), str(moment), str(Path(__file__).parent)]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, stages, *places],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """Two files, of several shards each, with a reject."""
    write_lines(tmp_path / "annotations" / "a.jsonl", [*(plain_row(number) for number in range(100)), b"{broken"])
    write_lines(tmp_path / "annotations" / "b.jsonl", [plain_row(number) for number in range(100, 200)])
    return tmp_path / "annotations"


def test_a_run_killed_at_any_file_it_touches_heals_by_itself(annotations: Path, tmp_path: Path) -> None:
    undisturbed = child("first_stages", annotations, tmp_path / "undisturbed")
    num_moments = int(undisturbed.communicate()[0].split()[-1])
    assert undisturbed.returncode == 0
    assert num_moments > 100
    expected = tree(tmp_path / "undisturbed")
    for moment in sorted(random.Random(num_moments).sample(range(1, num_moments), 5)):
        killed = child("first_stages", annotations, tmp_path / "storage", moment)
        killed.communicate()
        # started again after earlier ones, it has less to do, and may end before that moment
        assert killed.returncode in (0, -signal.SIGKILL)
    first_stages(settings_of(str(annotations), str(tmp_path / "storage")))
    assert tree(tmp_path / "storage") == expected


@pytest.mark.soak
@pytest.mark.parametrize("processes", ["", "1"], ids=["one process", "processes"])
def test_a_run_killed_at_thirty_random_times_heals_by_itself(annotations: Path, tmp_path: Path, processes: str) -> None:
    chance = random.Random(30)

    def run(storage: Path, seconds: float | None = None) -> float:
        process = child("run_stages", annotations, storage, HEALING_PROCESSES=processes)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        started = time.monotonic()
        if seconds is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.kill()
        process.communicate()
        assert process.returncode == 0 or (seconds is not None and process.returncode == -signal.SIGKILL)
        return time.monotonic() - started

    whole = run(tmp_path / "undisturbed")
    expected = tree(tmp_path / "undisturbed")
    for number in range(30):
        storage = tmp_path / str(number)
        run(storage, chance.uniform(0, whole))
        run(storage)
        assert tree(storage) == expected


# --- a full disk ---------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_clear_error_and_heals_once_there_is_room(annotations: Path, tmp_path: Path) -> None:
    run_stages(settings_of(str(annotations), str(tmp_path / "undisturbed")))
    storage = tmp_path / "small"
    num_full = 0
    with small_disk(storage, kilobytes=16):
        settings = settings_of(str(annotations), str(storage))
        for kilobytes in (16, 48, 96, 160, 220, 280, 64 * 1024):
            subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(storage)], check=True)
            try:
                run_stages(settings)
            except StorageError as error:
                num_full += 1
                told = (
                    "cannot be written: No space left on device: free some space and run again; finished work is kept"
                )
                assert str(error).endswith(told)
                assert "\n" not in str(error)
        assert num_full > 2
        assert tree(storage) == tree(tmp_path / "undisturbed")


def test_a_file_that_may_not_grow_is_one_clear_error_and_heals(annotations: Path, tmp_path: Path) -> None:
    first_stages(settings_of(str(annotations), str(tmp_path / "undisturbed")))
    settings = settings_of(str(annotations), str(tmp_path / "storage"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, 1000, 2500):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(StorageError, match="cannot be written: File too large: free some space and run again"):
                first_stages(settings)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    first_stages(settings)
    assert tree(tmp_path / "storage") == tree(tmp_path / "undisturbed")
