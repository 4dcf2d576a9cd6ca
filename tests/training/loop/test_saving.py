"""Checkpoints that a thread writes while training goes on."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from architectures import CPU
from safetensors.torch import load_file

from rm_assets.training.devices import bytes_of_copies
from rm_assets.training.loop.checkpoint import Checkpoints, Position
from rm_assets.training.loop.group import SINGLE_PROCESS, Group
from rm_assets.training.loop.saving import Saver, memory_left
from rm_assets.training.loop.training_log import TrainingLog
from rm_assets.training.run import train_and_publish


@dataclass(frozen=True)
class Gate(Group):
    """The group of a process whose thread waits, before it writes, until it is let through."""

    opened = threading.Event()

    def wait(self):
        if threading.current_thread() is not threading.main_thread():
            assert self.opened.wait(60)


def checkpoints(directory, group=SINGLE_PROCESS, say=print):
    return Checkpoints(directory, "key", group, say)


def newest(directory):
    return checkpoints(directory).latest()


def test_a_checkpoint_holds_what_was_when_it_was_asked_for_though_training_went_on(tmp_path):
    curves = tmp_path / "metrics.jsonl"
    curves.write_text('{"step": 1}\n')
    tensors = {"weight.a": torch.ones(2, 3), "of no size": torch.zeros(0)}
    threads = torch.get_num_threads()
    Gate.opened.clear()
    with Saver(checkpoints(tmp_path, Gate(0, 1, CPU))) as saver:
        saver.save(Position(step=1), tensors)
        tensors["weight.a"] += 1
        curves.write_text('{"step": 1}\n{"step": 2}\n')
        saver.check()  # nothing has failed
        assert newest(tmp_path) is None
        Gate.opened.set()
        saver.wait()
        position, found = newest(tmp_path)
    assert position == Position(step=1)
    assert set(found) == set(tensors)
    assert torch.equal(found["weight.a"], torch.ones(2, 3))
    assert curves.read_text() == '{"step": 1}\n'
    [manifest] = tmp_path.glob("checkpoints/*/manifest.json")
    assert json.loads(manifest.read_text())["environment"]["threads"] == threads


def test_no_checkpoint_is_copied_over_one_that_is_being_written(tmp_path):
    Gate.opened.clear()
    with Saver(checkpoints(tmp_path, Gate(0, 1, CPU))) as saver:
        saver.save(Position(step=1), {"weight.a": torch.ones(3)})
        following = threading.Thread(target=saver.save, args=(Position(step=2), {"weight.a": torch.full((3,), 2.0)}))
        following.start()
        following.join(0.3)  # it would be done by then, did it not wait
        Gate.opened.set()
        following.join()
    assert torch.equal(newest(tmp_path)[1]["weight.a"], torch.full((3,), 2.0))
    [first, _] = sorted(tmp_path.glob("checkpoints/*/process-0.safetensors"))
    assert torch.equal(load_file(first)["weight.a"], torch.ones(3))


def test_what_fails_in_the_thread_is_raised_in_the_loop_and_the_one_before_stays(tmp_path):
    cannot_be_written = {"weight.a": torch.zeros(2, dtype=torch.complex128)}
    sound = {"weight.a": torch.zeros(2)}
    for meet in (Saver.wait, Saver.check, lambda saver: saver.save(Position(step=3), sound)):
        with Saver(checkpoints(tmp_path)) as saver:
            saver.save(Position(step=1), sound)
            saver.wait()
            saver._copies.clear()  # the next one has a tensor of another type
            saver.save(Position(step=2), cannot_be_written)
            saver._thread.submit(int).result()  # the thread has done what it was given
            with pytest.raises(Exception, match="complex128"):
                meet(saver)
        assert newest(tmp_path)[0] == Position(step=1)
    with pytest.raises(Exception, match="complex128"), Saver(checkpoints(tmp_path)) as saver:
        saver.save(Position(step=2), cannot_be_written)
    assert newest(tmp_path)[0] == Position(step=1)


def test_an_error_of_the_loop_comes_first_and_the_checkpoint_before_it_is_still_written(tmp_path):
    said = []
    with pytest.raises(ZeroDivisionError), Saver(checkpoints(tmp_path)) as saver:
        saver.save(Position(step=1), {"weight.a": torch.zeros(2)})
        raise ZeroDivisionError
    assert newest(tmp_path)[0] == Position(step=1)
    with pytest.raises(ZeroDivisionError), Saver(checkpoints(tmp_path, say=said.append)) as saver:
        saver.save(Position(step=2), {"weight.a": torch.zeros(2, dtype=torch.complex128)})
        raise ZeroDivisionError
    [told] = said
    assert told.startswith("the last checkpoint was not written: ")


def test_a_training_whose_checkpoints_cannot_be_written_fails(make_job):
    job = make_job(settings={"checkpoint_every_steps": 1})
    output = Path(job.output_directory)
    output.mkdir(parents=True)
    (output / "checkpoints").touch()
    with pytest.raises(OSError, match=r"checkpoints"):
        train_and_publish(job, SINGLE_PROCESS, TrainingLog())
    assert not (output / "manifest.json").exists()


@pytest.mark.parametrize(("left", "is_copied"), [(20 * 4000, True), (20 * 4000 - 1, False), (0, False)])
def test_without_memory_for_a_copy_training_waits_and_says_so_once(tmp_path, left, is_copied):
    said, threads = [], []

    class Noting(Checkpoints):
        def write(self, *arguments):
            threads.append(threading.current_thread())
            super().write(*arguments)

    with Saver(Noting(tmp_path, "key", SINGLE_PROCESS, said.append), lambda: left) as saver:
        for step in (1, 2):
            saver.save(Position(step=step), {"weight.a": torch.full((1000,), float(step))})
    assert [thread is threading.main_thread() for thread in threads] == [not is_copied] * 2
    position, found = newest(tmp_path)
    assert position == Position(step=2)
    assert torch.equal(found["weight.a"], torch.full((1000,), 2.0))
    assert len(said) == (0 if is_copied else 1)
    assert all(text.startswith("training waits for every checkpoint: copies of 0 MiB are more") for text in said)


def test_every_process_of_a_machine_needs_a_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    said = []
    with Saver(checkpoints(tmp_path, say=said.append), lambda: 4 * 20 * 4000 - 1) as saver:
        saver.save(Position(step=1), {"weight.a": torch.zeros(1000)})
    assert len(said) == 1


def test_pinned_memory_is_counted_as_torch_rounds_it_up():
    tensors = {"a": torch.zeros(1024), "b": torch.zeros(1025), "c": torch.zeros((), dtype=torch.int32)}
    assert bytes_of_copies(tensors, CPU) == 4096 + 4100 + 4
    assert bytes_of_copies(tensors, torch.device("cuda")) == 4096 + 8192 + 4


def test_the_memory_that_is_left_is_the_machines_or_that_of_the_group_which_bounds_it(tmp_path):
    assert memory_left(tmp_path) == 0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 64 kB\nMemFree: 1 kB\nMemAvailable:      40 kB\n")
    assert memory_left(tmp_path) == 40 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.stat").write_text("anon 5000\ninactive_file 2000\n")
    (group / "memory.current").write_text("9000\n")
    (group / "memory.max").write_text("max\n")
    assert memory_left(tmp_path) == 40 * 1024
    (group / "memory.max").write_text("10000\n")
    assert memory_left(tmp_path) == 10000 - (9000 - 2000)
    (group / "memory.max").write_text("1000\n")
    assert memory_left(tmp_path) == 0
