"""A training that is asked to stop at a counted check, alone or in two processes, which must be able to import this."""

import multiprocessing
import os
from pathlib import Path

import torch

from rm_assets.training.jobs.result import METRICS, clear_output
from rm_assets.training.jobs.training_job import TrainingJob
from rm_assets.training.loop.group import SINGLE_PROCESS, join_group, leave_group
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.processes.children import free_port
from rm_assets.training.processes.signals import Stop, StoppedError
from rm_assets.training.run import train_and_publish


class StopsAt(Stop):
    """Asked to stop by signal 15 from its check number `last` on; never if that is 0."""

    def __init__(self, last=0):
        self.num_checks, self.last, self.is_known = 0, last, False
        super().__init__()

    @property
    def number(self):
        self.num_checks += 1
        self.is_known = self.is_known or self.num_checks == self.last
        return 15 * self.is_known

    @number.setter
    def number(self, _):
        """Signals of other kinds are not part of these tests."""


def run_until(job, last=0, group=SINGLE_PROCESS):
    """Run the job; whether it ended by itself, how often it checked, and what it said."""
    told = []
    stop = StopsAt(last)
    if group.is_first:
        clear_output(Path(job.output_directory))
    log = TrainingLog(Path(job.output_directory) / METRICS if group.is_first else None, told.append)
    try:
        train_and_publish(job, group, log, stop)
    except StoppedError as error:
        assert error.number == 15
        return False, stop.num_checks, told
    return True, stop.num_checks, told


def run_worker(description, rank, port, last, results):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    group = join_group()
    is_done, _, told = run_until(TrainingJob.model_validate_json(description), last, group)
    leave_group()
    results.put((rank, is_done, told))


def run_two(job, last=0):
    """Run the job in two processes, of which only the second one is asked to stop."""
    context = multiprocessing.get_context("forkserver")
    results, port = context.Queue(), free_port()
    workers = [
        context.Process(target=run_worker, args=(job.model_dump_json(), rank, port, last * rank, results))
        for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    found = sorted(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(30)
    return [is_done for _, is_done, _ in found], found[0][2]
