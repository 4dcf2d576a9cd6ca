"""A job on several nodes of a Ray cluster: on each, `python -m rm_assets.training JOB.json` with its place among them.

This process is the Ray job's driver. It holds a node's GPUs by an actor there, which runs the node's processes, passes
the driver's signal on to them, and takes them along when it ends, however it ends. No torch here.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rm_assets.display_text import printable
from rm_assets.training.processes.lifecycle import NODE, PARENT_FD, STOP_SIGNALS, free_address

GPUS = "RM_GPUS_OF_NODE"
"""Environment variable: how many GPUs this job asks of each node."""

SECONDS_TO_STOP = 30.0


class Node:
    """Runs the processes of one node, as a Ray actor there."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def address(self) -> str:
        """Where the first node can be met by the others, as `host:port`."""
        import ray

        return free_address(str(ray.util.get_node_ip_address()))

    def run(self, command: list[str], place: str) -> Iterator[str | int]:
        """Run the command to its end: its lines of output, without their ends, then its exit code."""
        read_end, write_end = os.pipe()  # the processes end with this actor
        self._process = subprocess.Popen(
            command,
            start_new_session=True,
            pass_fds=(read_end,),
            env=os.environ | {PARENT_FD: str(read_end), NODE: place},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield line.rstrip("\n")
        yield self._process.wait()
        os.close(write_end)
        os.close(read_end)

    def stop(self, number: int) -> None:
        """Pass a signal on."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def run_on_nodes(job_path: Path, num_nodes: int) -> int:
    """Run the job on `num_nodes` nodes of the Ray cluster that this process is part of; returns the exit code.

    The output of the first node is this process's own. Where a node fails, the others are ended. SIGTERM and SIGINT
    are passed on once, and give 143 and 130.
    """
    import ray

    received: list[int] = []
    ray.init(address="auto", log_to_driver=False, configure_logging=False)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: received.append(number))
    num_gpus = int(os.environ.get(GPUS, "0"))
    bundles = [{"CPU": 1.0} | ({"GPU": float(num_gpus)} if num_gpus else {}) for _ in range(num_nodes)]
    group = ray.util.placement_group(bundles, strategy="STRICT_SPREAD")
    print(f"waiting for {num_nodes} nodes with {num_gpus} GPUs each", flush=True)
    while not group.wait(0.5):
        if received:
            return 128 + received[0]
    strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
    actors = [
        ray.remote(Node)
        .options(
            num_cpus=1,
            num_gpus=num_gpus,
            max_concurrency=2,  # it runs, and hears a signal
            scheduling_strategy=strategy(group, placement_group_bundle_index=rank),
        )
        .remote()
        for rank in range(num_nodes)
    ]
    meeting = ray.get(actors[0].address.remote())
    command = [sys.executable, "-m", "rm_assets.training", str(job_path)]
    runs = [_Run(ray, actor, command, f"{rank} {num_nodes} {meeting}") for rank, actor in enumerate(actors)]
    code = _watch(ray, actors, runs, received)
    for actor in actors:
        ray.kill(actor)
    return 128 + received[0] if received else code


class _Run(threading.Thread):
    """One node's run: prints the first node's lines, and keeps the exit code, None until there is one."""

    def __init__(self, ray: Any, actor: Any, command: list[str], place: str) -> None:
        super().__init__(daemon=True)
        self._ray = ray
        self._place = place
        self._results = actor.run.options(num_returns="streaming").remote(command, place)
        self.code: int | None = None
        self.start()

    def run(self) -> None:
        try:
            for reference in self._results:
                told = self._ray.get(reference)
                if isinstance(told, int):
                    self.code = told
                elif self._place.startswith("0 "):
                    print(printable(told), flush=True)
                else:
                    print(f"node {self._place.split()[0]}: {printable(told)}", flush=True)
        except self._ray.exceptions.RayError as error:
            told = printable(str(error).splitlines()[-1])
            print(f"error: node {self._place.split()[0]} is lost: {told}", file=sys.stderr)
        finally:
            self.code = 1 if self.code is None else self.code


def _watch(ray: Any, actors: list[Any], runs: list[_Run], received: list[int]) -> int:
    """The first exit code that is not 0, or 0 once all runs have ended so."""
    told = False
    while any(run.is_alive() for run in runs):
        for run in runs:
            run.join(0.2)
            if run.code and not received:
                return run.code
        if received and not told:
            told = True
            for actor in actors:
                actor.stop.remote(received[0])
    with contextlib.suppress(StopIteration):
        return next(run.code for run in runs if run.code)
    return 0
