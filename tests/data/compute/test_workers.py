"""Processes that compute shards: kept between stages, and gone with the one that started them."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from real_runs import ROOT, SECONDS_TO_LEAVE, SECONDS_TO_START, wait_until
from worker_functions import bytes_in_pools_of_arrow, has_torch, loads_pandas_for_an_array, own_number

from rm_assets.data.compute.workers import close_workers, map_in_processes


def test_the_processes_of_one_stage_stay_for_the_next() -> None:
    try:
        started = set(map_in_processes(own_number, list(range(8)), 2))
        kept = {process.pid for process in multiprocessing.active_children()}
        assert started <= kept
        assert set(map_in_processes(own_number, list(range(8)), 2)) <= kept
        assert list(map_in_processes(has_torch, [0], 2)) == [False]
        assert list(map_in_processes(loads_pandas_for_an_array, [0], 2)) == [False]
        assert list(map_in_processes(bytes_in_pools_of_arrow, [0], 2)) == [0]
    finally:
        close_workers()


PANDAS = """
import sys
import pyarrow as pa
from rm_assets.data.compute.workers import keep_pandas_unloaded

keep_pandas_unloaded()
values = [1.5, None]
assert pa.array(values).to_pylist() == values and "pandas" not in sys.modules
import pandas as pd

frame = pd.DataFrame({"value": values, "kind": pd.Categorical(["a", "b"]), "time": pd.to_datetime(["2026-01-01"] * 2)})
assert pa.array(frame["value"], from_pandas=True).to_pylist() == values
table = pa.Table.from_pandas(frame)
assert table.schema.field("kind").type == pa.dictionary(pa.int8(), pa.large_string())
pd.testing.assert_frame_equal(table.to_pandas(), frame)
"""


def test_arrow_loads_pandas_for_frames_and_not_for_lists() -> None:
    subprocess.run([sys.executable, "-c", PANDAS], check=True, cwd=ROOT)


UNGUARDED = """
import os, sys
from pathlib import Path
from rm_assets.data.compute.workers import map_in_processes
from rm_assets.data.storage.locks import hold_lock

with hold_lock(Path(sys.argv[1]) / "writer.lock", "a script", print):
    list(map_in_processes(os.getpgid, [0], 2))
"""


def test_a_script_that_its_workers_would_run_again_fails_instead_of_waiting_for_itself(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 1
    assert "materialize assets only within `if __name__ == '__main__':`" in run.stderr


STARTER = """
import os, sys, time
from rm_assets.data.compute.workers import map_in_processes
if __name__ == "__main__":
    list(map_in_processes(os.getpgid, [0], 2))
    children = open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read()
    print(children, flush=True)
    time.sleep(60)
"""


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "starter.py").write_text(STARTER)
    with subprocess.Popen([sys.executable, str(tmp_path / "starter.py")], stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        children = [int(number) for number in starter.stdout.readline().split()]
        assert children
        starter.kill()
    deadline = time.monotonic() + 20
    while any(_is_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_is_alive(child) for child in children)


BUSY = """
import signal
import sys
from pathlib import Path
from worker_functions import count_for_minutes
from rm_assets.data.compute.workers import map_in_processes
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with it ignored
    list(map_in_processes(count_for_minutes, [Path(sys.argv[1])] * 9, 2))
"""


def test_an_interrupt_waits_for_no_process_however_busy_it_is(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    (home := tmp_path / "home").mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
    command = [sys.executable, str(tmp_path / "busy.py"), str(home)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as busy:
        try:
            assert wait_until(lambda: len(list(home.iterdir())) == 2, SECONDS_TO_START)
            children = [int(path.name) for path in home.iterdir()]
            busy.send_signal(signal.SIGINT)
            _, errors = busy.communicate(timeout=SECONDS_TO_LEAVE)
            assert errors.splitlines()[-1] == "KeyboardInterrupt"
            assert not any(map(_is_alive, children))
        finally:
            for process in (busy.pid, *(int(path.name) for path in home.iterdir())):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
