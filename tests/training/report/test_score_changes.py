"""Which held-out pairs a new model ranks better or worse than the model before."""

import pandas as pd

from rm_assets.training.report.score_changes import changed_verdicts


def scores(*differences: float, first_line: int = 1) -> pd.DataFrame:
    """Held-out scores of pairs with these differences between chosen and rejected."""
    frame = {
        "source": "a",
        "line": range(first_line, first_line + len(differences)),
        "pair_id": "p",
        "split": "test",
        "chosen_score": [10.0 + difference for difference in differences],
        "rejected_score": 10.0,
    }
    return pd.DataFrame(frame)


def test_pairs_whose_ranking_changed_are_found_largest_change_first() -> None:
    better, worse = changed_verdicts(scores(1, -1, -1, 1, 2), scores(2, 1, 3, -1, 1))
    assert better["line"].tolist() == [3, 2]
    assert worse["line"].tolist() == [4]
    assert better["chosen_score"].tolist() == [13, 11]
    assert better["chosen_score_before"].tolist() == [9, 9]


def test_the_largest_change_comes_first_also_where_another_model_is_more_certain() -> None:
    better, _ = changed_verdicts(scores(-0.5, -4), scores(4, 1))  # by 4.5 and by 5
    assert better["line"].tolist() == [2, 1]


def test_a_tie_is_between_right_and_wrong() -> None:
    better, worse = changed_verdicts(scores(0, -1, 1, 0), scores(1, 0, 0, 0))
    assert sorted(better["line"]) == [1, 2]
    assert worse["line"].tolist() == [3]


def test_pairs_that_only_one_model_scored_do_not_count() -> None:
    better, worse = changed_verdicts(scores(-1, -1), scores(1, 1, first_line=2))
    assert (better["line"].tolist(), worse["line"].tolist()) == ([2], [])
