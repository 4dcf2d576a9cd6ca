"""What is said about long work, and how often."""

from rm_assets.data.compute.progress import Progress


def test_a_line_every_ten_seconds_tells_rows_speed_share_and_time_left() -> None:
    said: list[str] = []
    now = 0.0
    progress = Progress("tokenized_pairs", 400_000_000, said.append, lambda: now)
    for second in range(1, 21):
        now = float(second)
        progress.add(1_000, 5_000_000)
    assert said == [
        "tokenized_pairs: 10,000 rows, 5.0 MB/s, 12 %, about 1 min 10 s left",
        "tokenized_pairs: 20,000 rows, 5.0 MB/s, 25 %, about 1 min 0 s left",
    ]


def test_what_needs_no_work_is_not_waited_for() -> None:
    said: list[str] = []
    now = 0.0
    progress = Progress("raw_preferences", 300_000_000, said.append, lambda: now)
    progress.skip(200_000_000)
    now = 10.0
    progress.add(1_000, 50_000_000)
    assert said == ["raw_preferences: 1,000 rows, 5.0 MB/s, 50 %, about 10 s left"]


def test_where_nobody_knows_how_much_there_is_no_time_is_given() -> None:
    said: list[str] = []
    now = 0.0
    progress = Progress("raw_preferences", None, said.append, lambda: now)
    now = 11.0
    progress.add(7, 22_000_000)
    assert said == ["raw_preferences: 7 rows, 2.0 MB/s"]
