import random
import shutil

import pytest
import torch
from safetensors.torch import save_file

from rm_assets.training.jobs.result import remove_scratch, synced_sha256
from rm_assets.training.loop.checkpoint import Checkpoints, Position
from rm_assets.training.loop.group import SINGLE_PROCESS, Group


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 1 to 3, of which the newest two are left, and what was said."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    said = []
    checkpoints = Checkpoints(tmp_path, "key", SINGLE_PROCESS, said.append)
    for step in (1, 2, 3):
        write(checkpoints, Position(step=step, loss_sum=0.1 * step, tally={"pairs": step}))
    return tmp_path, said


def write(checkpoints, position):
    checkpoints.write(checkpoints.header(position), tensors(position.step))


def tensors(step):
    return {"weight.a": torch.full((2, 3), float(step)), "empty": torch.zeros(0), "random": torch.arange(5)}


def newest(directory, said, key="key", group=SINGLE_PROCESS):
    return Checkpoints(directory, key, group, said.append).latest()


def directories(directory):
    return sorted((directory / "checkpoints").iterdir())


def test_the_newest_of_two_is_read_back_exactly_and_the_curves_with_it(saved):
    directory, said = saved
    (directory / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    position, found = newest(directory, said)
    assert position == Position(step=3, loss_sum=0.1 * 3, tally={"pairs": 3})
    assert set(found) == set(tensors(3))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors(3).items())
    assert [path.name[:13] for path in directories(directory)] == ["step-00000002", "step-00000003"]
    assert (directory / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert said == []


def test_what_others_put_among_the_checkpoints_survives_later_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path, "key", SINGLE_PROCESS, print)
    write(checkpoints, Position(step=1))
    [first] = directories(tmp_path)
    (first / "notes.txt").write_text("mine")
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    for name in ("notes", "step-1", ".unfinished"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "a.safetensors").write_text("mine")
    for step in (2, 3):
        write(checkpoints, Position(step=step))
    remove_scratch(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    unfinished = next(name for name in left if name.startswith("checkpoints/step-00000002"))  # written into .unfinished
    assert left == {
        f"checkpoints/{first.name}/notes.txt",
        "checkpoints/notes.txt",
        "checkpoints/notes/a.safetensors",
        "checkpoints/step-1/a.safetensors",
        unfinished,
    }
    assert unfinished.endswith("/a.safetensors")


def test_a_checkpoint_is_written_over_one_of_its_name_that_was_damaged(saved):
    directory, said = saved
    _, damaged = directories(directory)
    (damaged / "process-0.safetensors").write_bytes(b"")
    (directory / "metrics.jsonl").write_text('{"step": 1}\n')
    assert newest(directory, said)[0].step == 2
    again = Checkpoints(directory, "key", SINGLE_PROCESS, said.append)
    again.latest()
    write(again, Position(step=3, loss_sum=0.1 * 3, tally={"pairs": 3}))
    assert newest(directory, said)[0].step == 3
    assert directories(directory)[1] == damaged


def test_without_checkpoints_there_is_none(tmp_path):
    assert newest(tmp_path, []) is None


def test_one_flipped_bit_anywhere_is_found_and_the_older_one_used(saved):
    directory, _ = saved
    _, damaged = directories(directory)
    generator = random.Random(0)
    for path in sorted(damaged.iterdir()):
        whole = path.read_bytes()
        bits = generator.sample(range(8 * len(whole)), 40)
        for bit in bits:
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            said = []
            position, _ = newest(directory, said)
            assert position.step == 2, (path.name, bit)
            assert len(said) == 1
            assert said[0].startswith(f"checkpoint {damaged.name} is damaged and not used: "), said
        path.write_bytes(whole)
    assert newest(directory, [])[0].step == 3


def test_a_file_that_was_cut_or_is_gone_is_found_and_the_older_one_used(saved):
    directory, _ = saved
    _, damaged = directories(directory)
    for path in sorted(damaged.iterdir()):
        whole = path.read_bytes()
        for length in {0, 1, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:length])
            said = []
            assert newest(directory, said)[0].step == 2
            assert len(said) == 1
        path.unlink()
        assert newest(directory, [])[0].step == 2
        path.write_bytes(whole)


def test_files_of_two_checkpoints_that_were_swapped_are_found(saved):
    directory, said = saved
    older, newer = directories(directory)
    for name in ("process-0.safetensors", "manifest.json"):
        shutil.copyfile(older / name, newer / name)
        assert newest(directory, said)[0].step == 2


def test_where_no_checkpoint_is_whole_each_is_named_and_none_is_used(saved):
    directory, said = saved
    for path in directories(directory):
        (path / "process-0.safetensors").write_bytes(b"")
    assert newest(directory, said) is None
    assert len(said) == 2


def test_a_save_that_was_cut_short_does_not_count_and_is_cleared_away(saved):
    directory, said = saved
    shutil.copytree(directories(directory)[1], directory / "checkpoints" / ".unfinished")
    checkpoints = Checkpoints(directory, "key", SINGLE_PROCESS, said.append)
    assert checkpoints.latest()[0].step == 3
    write(checkpoints, Position(step=4))
    assert [path.name[:13] for path in directories(directory)] == ["step-00000003", "step-00000004"]


def test_a_damaged_checkpoint_never_takes_the_place_of_a_whole_one(saved):
    directory, said = saved
    damaged = directories(directory)[1]
    (damaged / "manifest.json").write_text("{}")
    checkpoints = Checkpoints(directory, "key", SINGLE_PROCESS, said.append)
    assert checkpoints.latest()[0].step == 2
    write(checkpoints, Position(step=3))
    left = directories(directory)
    assert [path.name[:13] for path in left] == ["step-00000002", "step-00000003"]
    assert damaged not in left


def test_a_checkpoint_of_another_job_is_not_used(saved):
    directory, said = saved
    assert newest(directory, said, key="other") is None
    assert "it belongs to the job 'key'" in said[0]


class OneOfSeveral(Group):
    """A process whose others agree."""

    def all_reduce(self, tensor):
        pass


@pytest.mark.parametrize(("num_written", "num_read"), [(1, 2), (1, 3), (2, 1), (3, 2), (3, 7), (7, 3)])
def test_another_number_of_processes_divides_the_rows_of_each_tensor_again(tmp_path, num_written, num_read):
    whole = {"weight.a": torch.arange(10.0).reshape(5, 2), "exp_avg.b": torch.arange(4.0), "weight.c": torch.ones(1, 3)}

    def part_of(name, number, size):
        parts = torch.chunk(whole[name], size)
        return parts[number] if number < len(parts) else whole[name][:0]

    home = tmp_path / "checkpoints" / ".unfinished"
    home.mkdir(parents=True)
    for number in range(num_written):
        own = {name: part_of(name, number, num_written).clone() for name in whole}
        save_file(
            own | {"step.a": torch.tensor(3.0), "random.cpu": torch.arange(5)}, home / f"process-{number}.safetensors"
        )
    header = Checkpoints(tmp_path, "key", OneOfSeveral(0, num_written, SINGLE_PROCESS.device), print).header(
        Position(step=3)
    )
    hashes = [synced_sha256(home / f"process-{number}.safetensors") for number in range(num_written)]
    Checkpoints(tmp_path, "key", SINGLE_PROCESS, print)._publish(home, header, hashes)
    for rank in range(num_read):
        said = []
        position, found = newest(tmp_path, said, group=OneOfSeveral(rank, num_read, SINGLE_PROCESS.device))
        assert position.step == 3
        assert f"processes {num_written} -> {num_read}" in said[0]
        assert torch.equal(found["random.cpu"], torch.arange(5))
        assert found["step.a"].item() == 3.0
        for name in whole:
            assert torch.equal(found[name], part_of(name, rank, num_read)), (name, rank)


def test_another_number_of_threads_is_said_to_round_differently(saved):
    directory, said = saved
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert newest(directory, said)[0].step == 3
    finally:
        torch.set_num_threads(before)
    [told] = said
    assert told.startswith(f"this training began under other conditions (threads {before} -> {before + 1}): ")


def test_what_a_kill_left_of_removed_checkpoints_goes_with_the_others_and_no_more(tmp_path):
    home = tmp_path / "checkpoints"
    for name in ("step-00000004-0123456789abcdef", ".unfinished", "step-of-somebody"):
        (home / name).mkdir(parents=True)
    (home / ".unfinished" / ".tmpF3Y9MS").touch()  # as safetensors names a file before it renames it
    remove_scratch(tmp_path)
    assert [path.name for path in home.iterdir()] == ["step-of-somebody"]
    (home / "step-of-somebody").rmdir()
    remove_scratch(tmp_path)
    assert list(tmp_path.iterdir()) == []
