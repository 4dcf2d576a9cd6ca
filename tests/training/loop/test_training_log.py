import json
from itertools import pairwise
from pathlib import Path

from rm_assets.training.loop.training_log import StepFigures, TrainingLog, progress_line


def figures(step):
    return StepFigures(step, epoch=1, loss=0.4123, accuracy=0.8125, learning_rate=1e-3, grad_norm=2.0)


def test_a_line_of_progress_reads_well():
    line = "step 40/200 · loss 0.412 · accuracy 0.81 · 220 pairs/s · 0:35 left"
    assert progress_line(figures(40), 200, 220.3, 35.2) == line
    assert progress_line(figures(40), 200, 0.51, 3725).endswith("0.51 pairs/s · 1:02:05 left")


def test_the_first_and_the_last_step_are_told_and_all_are_written(tmp_path):
    said = []
    progress = TrainingLog(tmp_path / "metrics.jsonl", said.append)
    for step in range(1, 9):
        progress.step(figures(step), num_steps=8, num_pairs_done=4 * step)
    assert [line.split(" ")[1] for line in said] == ["1/8", "8/8"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert set(lines[0]) == {
        "step",
        "epoch",
        "loss",
        "accuracy",
        "learning_rate",
        "grad_norm",
        "pairs_per_second",
        "seconds_left",
    }
    assert lines[-1]["seconds_left"] == 0


def test_a_long_run_writes_about_a_thousand_lines(tmp_path):
    progress = TrainingLog(tmp_path / "metrics.jsonl", lambda text: None)
    for step in range(1, 2502):
        progress.step(figures(step), num_steps=2501, num_pairs_done=step)
    # every third step, the first, and the last
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 833 + 2


def test_a_process_without_a_file_says_nothing():
    said = []
    progress = TrainingLog(None, said.append)
    progress.message("hello")
    progress.step(figures(1), 1, 1)
    assert said == []


def seconds_of_lines(monkeypatch, total_seconds, num_steps):
    """When a training whose steps all take as long shows its lines."""
    clock, told = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    progress = TrainingLog(Path("/dev/null"), lambda _: told.append(clock[0]))
    progress.start_clock()
    for step in range(1, num_steps + 1):
        clock[0] = total_seconds * step / num_steps
        progress.step(figures(step), num_steps, step)
    return told


def test_lines_are_frequent_in_the_first_minute_and_then_one_a_minute_at_least(monkeypatch):
    ten_hours = seconds_of_lines(monkeypatch, 36_000, 36_000)
    assert ten_hours[:14] == [*range(1, 57, 5), 56 + 60, 56 + 120]
    assert 600 < len(ten_hours) < 620
    over_an_hour = seconds_of_lines(monkeypatch, 4_500, 4_500)
    assert {later - earlier for earlier, later in pairwise(over_an_hour[13:-1])} == {45}
    ten_minutes = seconds_of_lines(monkeypatch, 600, 600)
    assert [later - earlier for earlier, later in pairwise(ten_minutes)][11:-1] == [30] * 18


def test_every_validation_is_a_line(tmp_path):
    said = []
    TrainingLog(tmp_path / "metrics.jsonl", said.append).validation(40, 0.4123, 0.8125, 1020)
    assert said == ["validation after step 40 · loss 0.412 · accuracy 0.812 · 1,020 pairs"]


def test_progress_within_a_step_is_a_line_where_none_was_shown_for_half_a_minute(monkeypatch):
    clock, said = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    log = TrainingLog(Path("/dev/null"), said.append)
    log.message("begins")
    for second in range(0, 100, 10):
        clock[0] = second
        if second == 50:
            log.message("a line")
        log.progress(f"{second} done")
    assert said == ["begins", "30 done", "a line", "80 done"]
