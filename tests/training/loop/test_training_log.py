import json

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
