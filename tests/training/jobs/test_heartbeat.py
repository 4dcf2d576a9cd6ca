"""A job shows a line now and then, whatever it is busy with."""

import threading

from rm_assets.training.jobs.heartbeat import Heartbeat, spaced


def test_a_line_that_nothing_follows_is_repeated_with_its_age():
    said, repeated = [], threading.Event()

    def log(text):
        said.append(text)
        if text.startswith("still"):
            repeated.set()

    with Heartbeat(log, seconds=0.05) as beat:
        beat("loading the model")
        assert repeated.wait(30)
        beat("training")
    assert said[:2] == ["loading the model", "still working, 0:00 after: loading the model"]
    assert "training" in said


def test_lines_in_time_are_not_repeated_and_its_thread_ends():
    said = []
    with Heartbeat(said.append, seconds=600) as beat:
        beat("one")
        beat("two")
        [thread] = [thread for thread in threading.enumerate() if thread.name == "heartbeat"]
    assert not thread.is_alive()
    assert said == ["one", "two"]


def test_an_error_of_the_work_ends_the_thread():
    try:
        with Heartbeat(lambda text: None, seconds=600):
            raise ValueError
    except ValueError:
        pass
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_spaced_lines_are_as_far_apart_as_asked(monkeypatch):
    clock, said = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    log = spaced(said.append, seconds=30)
    for second in range(0, 100, 10):
        clock[0] = second
        log(str(second))
    assert said == ["30", "60", "90"]
